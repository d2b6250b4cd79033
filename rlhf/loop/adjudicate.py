"""`rlhf adjudicate`: what the reward model learned goes back to the people whose ratings it learned from.

    a rating that the model gives a small probability   -> a dispute that a lead decides, with the reason on their page
    an open pair that the model cannot decide           -> to the front of the queue, beside its uniform share
    such a pair that one person alone has rated         -> one more place

The probability of a rating is the model's calibrated one (`reward.calibrate`), for a ranking the mean over its pairs.
A pair is undecided where that is nearest to one half; with an ensemble, where the members disagree the most. Ratings
that the model was trained on are marked: it contradicts them in spite of having seen them, while a contradiction of a
held-out rating is the model's own opinion.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from scipy.special import entr, expit

from feedback_app.store.doubts import Raised, Rated, raise_doubts, rated_answers
from feedback_app.store.engine import Store
from feedback_app.store.overlap import raise_overlap
from feedback_app.store.pairs import AskablePair, askable_pairs
from feedback_app.store.priority import Counts, prioritise
from feedback_app.store.projects import project_settings
from feedback_app.store.snapshots import SnapshotManifest
from reward.data import load_preferences
from rlhf.core.errors import DataError
from rlhf.core.files import write_json, write_jsonl
from rlhf.core.inputs import find_path, required
from rlhf.core.records import Preference, Prompt
from rlhf.core.run import MANIFEST, Launch, Run, Workspace, read_manifest
from rlhf.loop.config import AdjudicateConfig
from rlhf.loop.models import ModelPool
from rlhf.loop.reward_runs import Learned, learned_from, run_of
from rlhf.loop.text_scores import TextTable, score_table

STAGE = "adjudicate"
ACTOR = "rlhf adjudicate"
DEFAULT_PROJECT = "default"
QUADRATURE_POINTS = 21


@dataclass
class Rating:
    """One stored answer of a snapshot: its comparisons as (chosen, rejected), numbers of texts."""

    split: str
    preference: Preference
    comparisons: list[tuple[int, int]]
    probability: float = float("nan")


@dataclass(frozen=True)
class Undecided:
    """A pair that could be asked about, and what the model thinks of it.

    probability: that the first completion is better. disagreement: of an ensemble, in nats; 0 without one.
    """

    pair: AskablePair
    probability: float
    disagreement: float


@dataclass
class Findings:
    """What is to be sent back. disputes: contradicted ratings by task, the most contradicted task first. ranks: of
    the open pairs that come next. passed_over: contradicted ratings that no lead needs to see, by reason."""

    disputes: dict[str, list[Rating]]
    passed_over: Counter[str]
    rated: dict[str, Rated]
    reopened: list[Undecided]
    ranks: dict[str, float]
    undecided: list[Undecided]


def run(config: AdjudicateConfig, launch: Launch) -> None:
    """Write OUT/adjudicate.json, contradicted.jsonl and uncertain.jsonl, and change the store (not with --dry-run)."""
    name = required(
        config.reward, "reward", "a reward run, adapter directory or sequence-classification model"
    )
    snapshot = find_path(
        required(config.snapshot, "snapshot", "a directory written by `rlhf export`"), launch
    )
    pool = ModelPool(config.model, launch)
    folder = pool.reward_path(name)
    project = config.project or _project_of(snapshot)
    out = launch.out or Workspace(launch.workspace).runs / STAGE
    model = pool.reward_id(name)
    parents = {"snapshot": snapshot} | ({"reward": folder} if folder is not None else {})
    with Store.open(launch.db, create=False) as store:
        with store.read() as connection:
            project_settings(connection, project)
        if launch.dry_run:
            found, figures, _ = _look(config, launch, store, pool, name, folder, snapshot, project)
            print(f"adjudicate: would bring {_summary(found, figures)}")
            return
        with Run.open(out, stage=STAGE, settings=config, launch=launch, parents=parents, seed=0) as record:
            if record.finished:
                print(f"adjudicate: {out} is already finished; --force looks at the store again")
                return
            found, figures, learned = _look(config, launch, store, pool, name, folder, snapshot, project)
            record.begin()
            figures |= {"model": model, "project": project} | _send_back(store, project, model, found)
            _write(record.path, found, figures, learned)
            record.finish(figures)
    print(f"adjudicate: {_summary(found, figures)}; details in {out}")


def _look(
    config: AdjudicateConfig,
    launch: Launch,
    store: Store,
    pool: ModelPool,
    name: str,
    folder: Path | None,
    snapshot: Path,
    project: str,
) -> tuple[Findings, dict[str, Any], Learned | None]:
    """Score everything and choose; nothing is changed."""
    texts = TextTable()
    ratings = _ratings(snapshot, texts)
    with store.read() as connection:
        pairs = list(askable_pairs(connection, project)) if config.uncertain or config.second_opinions else []
    numbers = [(texts.add(pair.prompt, pair.first), texts.add(pair.prompt, pair.second)) for pair in pairs]
    scorer = pool.scorer(name)
    scores_N, spreads_N = score_table(scorer, texts, max_tokens=config.micro_batch_tokens, stage=STAGE)

    temperature = scorer.scale.temperature
    for rating in ratings:
        chosen, rejected = np.array(rating.comparisons).T
        rating.probability = float(expit(scorer.scale.logits(scores_N[chosen] - scores_N[rejected])).mean())
    undecided = _undecided(pairs, numbers, scores_N, spreads_N, temperature)
    learned = _learned(folder, launch)
    found = _choose(config, store, project, ratings, undecided)
    contradicted = [rating for rating in ratings if rating.probability < config.threshold]
    figures: dict[str, Any] = {
        "temperature": temperature,
        "threshold": config.threshold,
        "num_ratings": len(ratings),
        "num_too_long": int(sum(np.isnan(rating.probability) for rating in ratings)),
        "num_contradicted": len(contradicted),
        "num_contradicted_held_out": sum(_trained_on(rating, learned) is False for rating in contradicted),
        "trained_on_known": learned is not None,
        "passed_over": dict(found.passed_over),
        "num_askable": len(pairs),
    }
    return found, figures, learned


def _ratings(snapshot: Path, texts: TextTable) -> list[Rating]:
    """The decided ratings of a snapshot, the comparisons of one ranking together. Raises DataError without any."""
    found: dict[str, Rating] = {}
    for split, where, preference in load_preferences(snapshot, 0):
        if preference.tie:
            continue
        prompt = Prompt.model_validate({"prompt": [m.model_dump() for m in preference.prompt]})
        both = [texts.add(prompt, side[0].content) for side in (preference.chosen, preference.rejected)]
        rating = found.setdefault(preference.judgement_id or where, Rating(split, preference, []))
        rating.comparisons.append((both[0], both[1]))
    if not found:
        raise DataError(f"{snapshot}: holds no rating that prefers one completion to another")
    return list(found.values())


def _undecided(
    pairs: Sequence[AskablePair],
    numbers: Sequence[tuple[int, int]],
    scores_N: np.ndarray,
    spreads_N: np.ndarray,
    temperature: float,
) -> list[Undecided]:
    """The pairs that fit the model, the least decided first: by disagreement, then by how near to one half."""
    if not pairs:
        return []
    first, second = np.array(numbers).T
    delta_P = (scores_N[first] - scores_N[second]) / temperature
    # As if the members' scores of the two were independent. An offset that a member gives to every completion of a
    # prompt cancels in truth, so this is rather too much, and alike for all pairs.
    spread_P = np.hypot(spreads_N[first], spreads_N[second]) / temperature
    disagreement_P = disagreement(delta_P, spread_P)
    found = [
        Undecided(pair, float(expit(delta)), float(nats))
        for pair, delta, nats in zip(pairs, delta_P, disagreement_P, strict=True)
        if np.isfinite(delta)
    ]
    return sorted(found, key=lambda u: (-round(u.disagreement, 12), abs(u.probability - 0.5), u.pair.task_id))


def disagreement(delta_P: np.ndarray, spread_P: np.ndarray) -> np.ndarray:
    """[P] nats that an answer would tell about which member of an ensemble is right (BALD; Houlsby et al.,
    arXiv:1112.5745): the entropy of the mean probability less the mean entropy, members' differences being normal
    with mean delta and deviation spread, both in units of the temperature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_POINTS)
    weights = weights / weights.sum()
    p_PQ = expit(delta_P[:, None] + spread_P[:, None] * nodes)

    def entropy(p: np.ndarray) -> np.ndarray:
        result: np.ndarray = entr(p) + entr(1 - p)
        return result

    nats: np.ndarray = entropy(p_PQ @ weights) - entropy(p_PQ) @ weights
    return np.maximum(nats, 0.0)


def _choose(
    config: AdjudicateConfig,
    store: Store,
    project: str,
    ratings: Sequence[Rating],
    undecided: Sequence[Undecided],
) -> Findings:
    """Which disputes and which next tasks. What was chosen before is chosen again while nothing about it changed."""
    contradicted = sorted(
        (rating for rating in ratings if rating.probability < config.threshold),
        key=lambda rating: (rating.probability, rating.preference.judgement_id),
    )
    with store.read() as connection:
        rated = rated_answers(connection, project, [r.preference.judgement_id for r in contradicted])
    if contradicted and not rated:
        raise DataError(
            f"none of the {len(contradicted)} contradicted ratings is in project '{project}' of the feedback store; "
            "expected a snapshot of this store (--project names another project)"
        )
    disputes: dict[str, list[Rating]] = defaultdict(list)
    passed_over: Counter[str] = Counter()
    for rating in contradicted:
        answer = rated.get(rating.preference.judgement_id)
        if answer is None or answer.state != "standing":
            passed_over[answer.state if answer is not None else "unknown"] += 1
        elif answer.task_id in disputes or len(disputes) < config.contradicted:
            disputes[answer.task_id].append(rating)
    # One answer so far and at most two planned: also those that an earlier run has opened again.
    alone = [
        u for u in undecided if u.pair.num_answers == 1 and u.pair.has_verdict and u.pair.places_left <= 1
    ]
    reopened = [u for u in alone if u.pair.task_id not in disputes][: config.second_opinions]
    again = {u.pair.task_id for u in reopened}
    coming = [u for u in undecided if u.pair.places_left > 0 or u.pair.task_id in again][: config.uncertain]
    # Below 0, the rank of every other task.
    ranks = {u.pair.task_id: float(place - len(coming)) for place, u in enumerate(coming)}
    return Findings(dict(disputes), passed_over, rated, reopened, ranks, list(undecided))


def _send_back(store: Store, project: str, model: str, found: Findings) -> dict[str, Any]:
    """Change the store. Each step is a transaction of its own and changes nothing when it was done before."""
    doubts = {
        rating.preference.judgement_id: rating.probability
        for ratings in found.disputes.values()
        for rating in ratings
    }
    raised = raise_doubts(store, project, model, doubts, actor=ACTOR) if doubts else Raised()
    again = [u.pair.task_id for u in found.reopened]
    num_reopened = raise_overlap(store, project, again, 2, reason=model, actor=ACTOR) if again else 0
    counts = prioritise(store, project, found.ranks, actor=ACTOR) if found.ranks else Counts(0, 0, 0)
    return {
        "num_disputes": len(found.disputes),
        "num_disputes_opened": raised.num_opened,
        "num_disputes_noted": raised.num_noted,
        "num_disputes_known": raised.num_known,
        "num_disputes_passed_over": raised.num_passed_over,
        "num_next": len(found.ranks),
        "num_moved": counts.num_moved,
        "num_second_opinions": len(again),
        "num_reopened": num_reopened,
    }


def _write(folder: Path, found: Findings, figures: dict[str, Any], learned: Learned | None) -> None:
    again = {u.pair.task_id for u in found.reopened}
    rows = [
        {
            "task_id": task_id,
            "judgement_id": rating.preference.judgement_id,
            "annotator": found.rated[rating.preference.judgement_id].name,
            "probability": rating.probability,
            "split": rating.split,
            "trained_on": _trained_on(rating, learned),
            "prompt": rating.preference.prompt[-1].content,
            "chosen": rating.preference.chosen[-1].content,
            "rejected": rating.preference.rejected[-1].content,
        }
        for task_id, ratings in found.disputes.items()
        for rating in ratings
    ]
    write_jsonl(folder / "contradicted.jsonl", rows)
    next_rows = [
        {
            "task_id": u.pair.task_id,
            "rank": found.ranks.get(u.pair.task_id),
            "second_opinion": u.pair.task_id in again,
            "probability": u.probability,
            "disagreement": u.disagreement,
            "num_answers": u.pair.num_answers,
            "prompt": u.pair.prompt.text,
            "first": u.pair.first,
            "second": u.pair.second,
        }
        for u in found.undecided
        if u.pair.task_id in found.ranks or u.pair.task_id in again
    ]
    write_jsonl(folder / "uncertain.jsonl", next_rows)
    write_json(folder / "adjudicate.json", figures)


def _summary(found: Findings, figures: dict[str, Any]) -> str:
    num_ratings = sum(map(len, found.disputes.values()))
    text = (
        f"{num_ratings} of {figures['num_ratings']} ratings (below {figures['threshold']:g}) on {len(found.disputes)} "
        f"tasks before a lead, {len(found.ranks)} undecided pairs to the front of the queue, "
        f"{len(found.reopened)} to a second person"
    )
    if found.passed_over:
        text += f"; passed over: {', '.join(f'{n} {why}' for why, n in sorted(found.passed_over.items()))}"
    return text


def _trained_on(rating: Rating, learned: Learned | None) -> bool | None:
    """Whether the model learned from the rating's prompt; None where that is not known."""
    return None if learned is None else rating.preference.group_id in learned.train


def _learned(folder: Path | None, launch: Launch) -> Learned | None:
    run_folder = run_of(folder) if folder is not None else None
    return learned_from(read_manifest(run_folder), launch) if run_folder is not None else None


def _project_of(snapshot: Path) -> str:
    """The project that a snapshot was exported from, as its manifest says."""
    path = snapshot / MANIFEST
    if not path.is_file():
        return DEFAULT_PROJECT
    try:
        return SnapshotManifest.model_validate_json(path.read_bytes()).project
    except ValidationError as error:
        raise DataError(
            f"{path}: is not the manifest of a snapshot; name the project with --project"
        ) from error
