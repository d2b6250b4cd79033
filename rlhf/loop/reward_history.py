"""`rlhf reward-history`: how each new batch of ratings moved accuracy.

All finished reward runs of a workspace score the same held-out prompts: the test split of one snapshot, without the
prompts that any of the runs has learned from. A gain is the difference to the run before it, comparison by comparison,
so that what is hard about the prompts cancels; its interval resamples prompts. A run whose own snapshot is gone may
have been trained on these prompts: it is listed, and left out of the gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reward.data import Pair, load_preferences
from reward.evaluate import correctness, rater_agreement
from rlhf.core import html
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import write_json, write_text
from rlhf.core.inputs import find_path, required
from rlhf.core.plots import line_plot
from rlhf.core.records import Prompt
from rlhf.core.run import Launch, Run, Workspace
from rlhf.core.stats import Interval, bootstrap_mean
from rlhf.loop.config import RewardHistoryConfig
from rlhf.loop.models import ModelPool
from rlhf.loop.reward_runs import RewardRun, finished_runs, learned_from
from rlhf.loop.text_scores import TextTable, score_table

STAGE = "reward-history"


@dataclass(frozen=True)
class Measured:
    """One run on the common comparisons. gain: to the run before it whose training prompts are known too."""

    run: str
    created: str
    num_pairs: int | None
    accuracy: Interval
    prompts_known: bool
    gain: Interval | None


@dataclass(frozen=True)
class History:
    """runs: the oldest first. num_seen: comparisons left out since a run has learned from their prompts;
    num_too_long: since they do not fit one of the models. agreement: of raters, on the same comparisons."""

    runs: list[Measured]
    num_comparisons: int
    num_prompts: int
    num_seen: int
    num_too_long: int
    agreement: Interval | None


def run(config: RewardHistoryConfig, launch: Launch) -> None:
    """Write OUT/reward_history.json, .png and .html, and print the newest gain."""
    snapshot = find_path(
        required(config.snapshot, "snapshot", "a directory written by `rlhf export`"), launch
    )
    runs = _chosen(config.runs, launch)
    out = launch.out or Workspace(launch.workspace).runs / STAGE
    parents = {"snapshot": snapshot} | {f"run {one.name}": one.path for one in runs}
    with Run.open(
        out, stage=STAGE, settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"reward-history: {out} is already finished")
            return
        history = reward_history(runs, snapshot, config, launch)
        record.begin()
        write_json(record.path / "reward_history.json", figures(history))
        (record.path / "reward_history.png").write_bytes(picture(history, image="png"))
        page = html.page(
            "How each batch of ratings moved accuracy",
            [("", history_section(history))],
            lead=f"{history.num_comparisons} held-out comparisons of {history.num_prompts} prompts",
        )
        write_text(record.path / "reward_history.html", page)
        newest = history.runs[-1]
        record.finish({"accuracy": newest.accuracy.mean, "num_runs": len(runs)})
    print(f"reward-history: {summary(history)}; details in {out}")


def reward_history(
    runs: Sequence[RewardRun], snapshot: Path, config: RewardHistoryConfig, launch: Launch
) -> History:
    """Score the common held-out comparisons with every run. Raises DataError where none is left."""
    learned = [learned_from(one.manifest, launch) for one in runs]
    seen = frozenset().union(*(known.train | known.validation for known in learned if known is not None))
    texts = TextTable()
    pairs, num_seen = _held_out(snapshot, seen, texts)
    pool = ModelPool(config.model, launch)
    scores = [
        score_table(pool.scorer(str(one.path)), texts, max_tokens=config.micro_batch_tokens, stage=STAGE)[0]
        for one in runs
    ]
    unread = np.isnan(np.stack(scores)).any(0)
    fitting = [pair for pair in pairs if not unread[[pair.chosen, pair.rejected]].any()]
    if not fitting:
        raise DataError(
            f"{snapshot}: no decided comparison of the test split is left: {num_seen} are on prompts that a run has "
            f"learned from, {len(pairs)} do not fit all models"
        )
    groups = [pair.group_id for pair in fitting]

    def interval(values: np.ndarray) -> Interval:
        return bootstrap_mean(values, groups=groups, num_resamples=config.num_resamples, seed=config.seed)

    measured: list[Measured] = []
    before: np.ndarray | None = None
    for one, known, found in zip(runs, learned, scores, strict=True):
        correct = correctness(found, fitting)
        gain = interval(correct - before) if before is not None and known is not None else None
        measured.append(
            Measured(
                one.name, one.manifest.created, one.num_pairs, interval(correct), known is not None, gain
            )
        )
        before = correct if known is not None else before
    return History(
        measured,
        len(fitting),
        len(set(groups)),
        num_seen,
        len(pairs) - len(fitting),
        rater_agreement(fitting, config.seed),
    )


def _chosen(names: Sequence[str], launch: Launch) -> list[RewardRun]:
    """The runs that were named, or all. Raises ConfigError for a name that is not one."""
    runs = finished_runs(launch)
    if names:
        wanted = {find_path(name, launch).resolve(): name for name in names}
        known = {one.path.resolve() for one in runs}
        strangers = [name for path, name in wanted.items() if path not in known]
        if strangers:
            raise ConfigError(
                f"--runs: {strangers[0]} is not a finished reward run of the workspace; found "
                f"{', '.join(one.name for one in runs) or 'none'}"
            )
        runs = [one for one in runs if one.path.resolve() in wanted]
    if not runs:
        raise DataError(f"{Workspace(launch.workspace).runs}: holds no finished reward run")
    return runs


def _held_out(snapshot: Path, seen: frozenset[str], texts: TextTable) -> tuple[list[Pair], int]:
    """(decided comparisons of the test split on prompts that no run has seen, how many were left out)."""
    pairs, num_seen = [], 0
    for split, _, preference in load_preferences(snapshot, 0):
        if split != "test" or preference.tie:
            continue
        if preference.group_id in seen:
            num_seen += 1
            continue
        prompt = Prompt.model_validate({"prompt": [m.model_dump() for m in preference.prompt]})
        chosen, rejected = (
            texts.add(prompt, side[0].content) for side in (preference.chosen, preference.rejected)
        )
        pairs.append(Pair(chosen, rejected, preference))
    return pairs, num_seen


def figures(history: History) -> dict[str, Any]:
    """The history as it goes into reward_history.json: each interval as its mean with _low and _high."""
    runs = [
        {
            "run": one.run,
            "created": one.created,
            "num_pairs": one.num_pairs,
            "prompts_known": one.prompts_known,
            **_columns("accuracy", one.accuracy),
            **_columns("gain", one.gain),
        }
        for one in history.runs
    ]
    counts = ("num_comparisons", "num_prompts", "num_seen", "num_too_long")
    return {
        "runs": runs,
        **{name: getattr(history, name) for name in counts},
        **_columns("agreement", history.agreement),
    }


def _columns(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


# ---- shown -------------------------------------------------------------------------------------------------


def picture(history: History, *, image: Any = "svg") -> bytes:
    """Accuracy with its interval over the number of comparisons, beside how often raters agree."""
    points = sorted(
        (one.num_pairs, one.accuracy)
        for one in history.runs
        if one.prompts_known and one.num_pairs is not None
    )
    xs = [number for number, _ in points]
    series: dict[str, Any] = {"reward model": (xs, [accuracy.mean for _, accuracy in points])}
    bands = {"reward model": (xs, [a.low for _, a in points], [a.high for _, a in points])}
    if history.agreement is not None and xs:
        ends = [min(xs), max(xs)]
        series["raters with each other"] = (ends, [history.agreement.mean] * 2)
        bands["raters with each other"] = (ends, [history.agreement.low] * 2, [history.agreement.high] * 2)
    return line_plot(
        series, "Held-out accuracy", "comparisons trained on", "share of ratings", bands, image=image
    )


def history_section(history: History) -> str:
    """The picture and the table, as HTML."""
    rows = [
        {
            "run": one.run,
            "trained": one.created,
            "comparisons": one.num_pairs,
            "accuracy": _shown(one.accuracy),
            "gain on the run before": _gain(one),
        }
        for one in history.runs
    ]
    notes = [
        "Every run is measured on the same comparisons, without prompts that any is known to have learned from. "
        "A gain is paired: its interval is that of the difference, comparison by comparison."
    ]
    if history.num_seen:
        notes.append(f"{history.num_seen} comparisons were left out: a run has learned from their prompts.")
    if history.num_too_long:
        notes.append(f"{history.num_too_long} comparisons do not fit the context of one of the models.")
    if history.agreement is not None:
        notes.append(f"Two raters of the same pair agree on {_shown(history.agreement)}.")
    figure = html.figure(picture(history), "held-out accuracy with its 95 % interval")
    return figure + html.table(rows) + "".join(map(html.paragraph, notes))


def summary(history: History) -> str:
    """One line: the newest run and what it gained."""
    newest = history.runs[-1]
    text = (
        f"{newest.run} orders {_shown(newest.accuracy)} of {history.num_comparisons} held-out comparisons "
        "as their raters did"
    )
    return text + (f", {_gain(newest)} on the run before" if newest.gain is not None else "")


def _gain(one: Measured) -> str:
    if not one.prompts_known:
        return "unknown training prompts"
    if one.gain is None:
        return ""
    return f"{one.gain.mean:+.3f} [{one.gain.low:+.3f}, {one.gain.high:+.3f}]"


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
