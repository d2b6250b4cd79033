"""`rlhf reward-eval`: examine a reward model, as a page for people and as figures for gates.

OUT/reward_eval.html, OUT/reward_eval.json, and OUT/scores.jsonl with every held-out comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from reward.assess.config import RewardEvalConfig
from reward.assess.heldout import HeldOut, load_heldout, prompts_seen
from reward.assess.measure import Gathered, comparison_rows, gather, measure
from reward.assess.outside import load_set
from reward.assess.page import page
from reward.assess.pool import TextPool
from reward.assess.words import verdict
from reward.config import RewardConfig
from reward.foreign import Classifier
from reward.texts import find_scorer, load_scorer
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import write_json, write_jsonl, write_text
from rlhf.core.inputs import find_path, require_one_process, required
from rlhf.core.metrics import finite
from rlhf.core.run import (
    MANIFEST,
    Launch,
    Manifest,
    Run,
    Workspace,
    content_sha256,
    is_finished,
    read_manifest,
)
from rlhf.core.terms import load_terms
from rlhf.core.validation import problems

REPORT = "reward_eval"


@dataclass(frozen=True)
class Examined:
    """What is examined. name: for people and for --out. folder: None for a model of the hub. manifest: that of the
    reward run which the folder belongs to. found: what is loaded."""

    name: str
    folder: Path | None
    manifest: Manifest | None
    found: Classifier | Path

    def trained_on(self, launch: Launch) -> Path | None:
        """The snapshot of the run; None where there is none or it is gone."""
        if self.manifest is None or self.manifest.snapshot is None:
            return None
        path = Workspace(launch.workspace).resolve(self.manifest.snapshot.path)
        return path if path.exists() else None

    def settings(self) -> RewardConfig | None:
        """The settings of the run. Raises DataError where this version does not know them."""
        if self.manifest is None:
            return None
        # Runs of before there was such a setting left the splits as they came.
        values = {"near_duplicates": 0.0, **self.manifest.settings}
        try:
            return RewardConfig.model_validate(values)
        except ValidationError as error:
            path, message = problems(error)[0]
            raise DataError(f"{self.name}: {MANIFEST}: settings.{'.'.join(path)} {message}") from error


def run(config: RewardEvalConfig, launch: Launch) -> None:
    """Measure, write the three files, and print the verdict in one line."""
    require_one_process("reward-eval")
    what = "a reward run, adapter directory or sequence-classification model"
    examined = find_reward(required(config.reward, "reward", what), launch)
    trained_on = examined.trained_on(launch)
    snapshot = find_path(config.snapshot, launch) if config.snapshot else trained_on
    sets = [find_path(name, launch) for text in config.set for name in text.split(",") if name]
    if snapshot is None and not sets:
        why = "does not say what it was trained on"
        if examined.manifest is not None and examined.manifest.snapshot is not None:
            why = f"was trained on {examined.manifest.snapshot.path}, which is gone"
        raise ConfigError(f"--snapshot or --set is required: {examined.name} {why}")
    terms_path = find_path(config.terms, launch) if config.terms else None
    terms = load_terms(terms_path)
    out = launch.out or Workspace(launch.workspace).runs / f"{examined.name}-eval"
    given = {"reward": examined.folder, "snapshot": snapshot, "terms": terms_path}
    parents = {name: path for name, path in given.items() if path is not None}
    parents |= {f"set_{i}": path for i, path in enumerate(sets, start=1)}
    # An evaluation that was killed has nothing to continue: it is made again.
    again = replace(launch, resume=True)
    with Run.open(
        out, stage="reward-eval", settings=config, launch=again, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"reward-eval: {out} is already finished: {verdict(record.manifest.metrics)}")
            return
        scorer = load_scorer(examined.found, config.model, launch, backbone=config.backbone)
        pool = TextPool(scorer)
        heldout = None
        if snapshot is not None:
            seed = config.seed if examined.manifest is None else examined.manifest.seed
            own = snapshot == trained_on
            heldout = load_heldout(snapshot, pool, seed, examined.settings(), own=own)
        found = gather(pool, heldout, [load_set(path, pool) for path in sets], terms, config)
        if snapshot == trained_on and examined.manifest is not None:
            found.trained_raters = examined.manifest.extra.get("raters", [])
        record.begin()
        scores = pool.score(config.micro_batch_tokens)
        result = finite(measure(scores, found, scorer.scale, config.seed))
        result["notes"] = notes(found, examined, snapshot, trained_on)
        result["reward"] = examined.name
        result["num_texts"] = len(pool.rows)
        if heldout is not None:
            rows = comparison_rows(scores, heldout, scorer.scale)
            write_jsonl(record.path / "scores.jsonl", rows)
        write_json(record.path / f"{REPORT}.json", result)
        write_text(record.path / f"{REPORT}.html", page(result, examined.name))
        record.finish(result["metrics"])
    print(f"reward-eval: {verdict(result['metrics'])}; page at {out / f'{REPORT}.html'}")


def find_reward(text: str, launch: Launch) -> Examined:
    """The reward model that was named. Raises DataError for a run that is not finished or of another stage, and
    what `find_scorer` raises."""
    for path in (Path(text), launch.workspace / text):
        if (path / MANIFEST).is_file() and not is_finished(path):
            raise DataError(
                f"{path}: is an unfinished run; expected a finished one (continue it with --resume)"
            )
    found = find_scorer(text, launch)
    folder = found.folder if isinstance(found, Classifier) else found
    places = [] if folder is None else [folder, folder.parent]
    directory = next((place for place in places if (place / MANIFEST).is_file()), folder)
    if directory is None:
        return Examined(text.rpartition("/")[2].replace("#", "-"), None, None, found)
    name = directory.resolve().name
    if not (directory / MANIFEST).is_file():
        return Examined(name, folder, None, found)
    manifest = read_manifest(directory)
    if manifest.stage != "reward":
        raise DataError(f"{directory}: holds a {manifest.stage} run; expected a reward run")
    return Examined(name, folder, manifest, found)


def notes(found: Gathered, examined: Examined, snapshot: Path | None, trained_on: Path | None) -> list[str]:
    """What a reader has to know about how the figures came about."""
    said = []
    heldout: HeldOut | None = found.heldout
    if heldout is not None and snapshot is not None:
        if heldout.num_too_long:
            said.append(
                f"{heldout.num_too_long} answers of the snapshot (all splits) were left out as too long."
            )
        parent = None if examined.manifest is None else examined.manifest.snapshot
        if parent is None:
            said.append("It is not known what the model was trained on; held-out prompts may be among it.")
        elif snapshot == trained_on and content_sha256(snapshot) != parent.sha256:
            said.append("The snapshot has changed since the model was trained on it.")
        if trained_on is not None and trained_on != snapshot and examined.manifest is not None:
            seen = prompts_seen(heldout, trained_on, examined.manifest.seed)
            if seen:
                said.append(
                    f"The model was trained on {seen} of the held-out prompts: these figures flatter it."
                )
    for outside in found.sets:
        if outside.too_long:
            said.append(
                f"{outside.path.name}: {len(outside.too_long)} rows were left out because a text is too long; the "
                f"first is {Path(outside.too_long[0]).name}."
            )
    return said
