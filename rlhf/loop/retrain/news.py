"""What has come in since a snapshot: the new ratings, how well their raters agree, and whether anything drifts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import text

from feedback_app.quality.agreement import VERDICTS, Agreement, agreement
from feedback_app.quality.drift import homogeneity
from feedback_app.store.engine import Store
from rlhf.core.stats import Interval, wilson_interval
from rlhf.loop.retrain.config import TriggerSettings

LABELS_P = 0.001
LABELS_SHIFT = 0.1
PSI_FLOOR = 1e-3
NUM_BINS = 10

# Which answers are new is asked of a snapshot's members, not of the clock: what was answered during an export counts.
_NEW = text(
    "SELECT a.annotation_id, a.task_id, a.annotator_id, a.kind, a.preference, p.prompt_id, p.source, p.messages, "
    "CASE WHEN m.annotation_id IS NULL THEN 1 ELSE 0 END AS is_new "
    "FROM final_annotations a JOIN tasks t ON t.task_id = a.task_id JOIN prompts p ON p.prompt_id = t.prompt_id "
    "LEFT JOIN snapshot_members m ON m.annotation_id = a.annotation_id AND m.snapshot_id = :snapshot "
    "WHERE a.project_id = :project AND NOT a.surplus ORDER BY a.annotation_id"
)
_ANY_NEW = text(
    "SELECT 1 FROM final_annotations a WHERE a.project_id = :project AND NOT a.surplus "
    "AND a.kind IN ('pairwise', 'ranking') AND NOT EXISTS (SELECT 1 FROM snapshot_members m "
    "WHERE m.annotation_id = a.annotation_id AND m.snapshot_id = :snapshot) LIMIT 1"
)
_NAMES = text("SELECT annotator_id, name FROM annotators")


@dataclass(frozen=True)
class Said:
    """One accepted answer. preference: None for an answer that is no comparison of two."""

    annotation_id: str
    task_id: str
    annotator_id: str
    kind: str
    preference: str | None
    prompt_id: str
    source: str
    length: int
    is_new: bool


@dataclass(frozen=True)
class News:
    """Accepted answers of a project, those that a snapshot does not hold marked as new."""

    said: tuple[Said, ...]
    names: dict[str, str]

    @property
    def new(self) -> list[Said]:
        return [one for one in self.said if one.is_new]

    @property
    def num_new(self) -> int:
        """New comparisons: pairs, and rankings, of which each holds some."""
        return sum(one.kind in ("pairwise", "ranking") for one in self.new)

    @property
    def num_comparisons(self) -> int:
        return sum(one.kind in ("pairwise", "ranking") for one in self.said)

    def agreement(self) -> Agreement:
        """Of the raters of new pairs, with each other."""
        return agreement(
            (one.task_id, one.annotator_id, one.preference) for one in self.new if one.preference is not None
        )

    def with_others(self) -> dict[str, Interval]:
        """Rater -> how often they preferred the same side as another rater of a new pair, ties left out.

        The interval is Wilson's over items; each of its ends errs, for all raters together, in 5 % (Bonferroni).
        """
        by_task: dict[str, list[Said]] = defaultdict(list)
        for one in self.new:
            if one.preference in ("first", "second"):
                by_task[one.task_id].append(one)
        same: dict[str, float] = defaultdict(float)
        asked: Counter[str] = Counter()
        for answers in by_task.values():
            for one in answers:
                others = [other for other in answers if other.annotator_id != one.annotator_id]
                if others:
                    asked[one.annotator_id] += 1
                    agreeing = sum(other.preference == one.preference for other in others)
                    same[one.annotator_id] += agreeing / len(others)
        level = 1 - 2 * 0.05 / max(1, len(asked))
        return {
            rater: wilson_interval(min(same[rater], asked[rater]), asked[rater], level) for rater in asked
        }

    def name_of(self, annotator_id: str) -> str:
        return self.names.get(annotator_id, annotator_id)


def news(store: Store, project: str, snapshot_id: str | None) -> News:
    """Everything that is accepted now, against what `snapshot_id` holds (nothing, where there is none yet)."""
    values = {"project": project, "snapshot": snapshot_id or ""}
    with store.read() as connection:
        rows = connection.execute(_NEW, values).all()
        names = {row.annotator_id: row.name for row in connection.execute(_NAMES)}
    said = tuple(
        Said(
            row.annotation_id,
            row.task_id,
            row.annotator_id,
            row.kind,
            row.preference,
            row.prompt_id,
            row.source or "",
            len(row.messages if isinstance(row.messages, str) else str(row.messages)),
            bool(row.is_new),
        )
        for row in rows
    )
    return News(said, names)


def any_new(store: Store, project: str, snapshot_id: str | None) -> bool:
    """Whether there is a comparison that the snapshot does not hold: cheaper than reading everything."""
    with store.read() as connection:
        found = connection.execute(_ANY_NEW, {"project": project, "snapshot": snapshot_id or ""}).first()
    return found is not None


# ---- drift --------------------------------------------------------------------------------------------------


def population_stability(earlier_B: Sequence[float], recent_B: Sequence[float]) -> float:
    """Population-stability index of two distributions over the same bins, from counts: the sum over bins of
    (recent - earlier) x ln(recent / earlier). Below 0.1 nothing has changed, above 0.25 much has (Siddiqi, Credit Risk
    Scorecards, 2006). Empty bins count as PSI_FLOOR."""
    one, two = np.asarray(earlier_B, float), np.asarray(recent_B, float)
    one, two = np.maximum(one / one.sum(), PSI_FLOOR), np.maximum(two / two.sum(), PSI_FLOOR)
    return float(((two - one) * np.log(two / one)).sum())


def drift_alerts(found: News, settings: TriggerSettings) -> list[str]:
    """What has changed between what a snapshot holds and what is new, in words; empty where nothing has."""
    old, new = [one for one in found.said if not one.is_new], found.new
    if not old or not new:
        return []
    return [*_prompt_alerts(old, new, settings.drift_psi), *_label_alerts(old, new)]


def _prompt_alerts(old: Sequence[Said], new: Sequence[Said], limit: float) -> list[str]:
    alerts = []
    earlier = {one.prompt_id: one for one in old}
    recent = {one.prompt_id: one for one in new if one.prompt_id not in earlier}
    if len(earlier) < NUM_BINS or len(recent) < NUM_BINS:
        return []
    lengths = np.array([one.length for one in earlier.values()], float)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(edges, [one.length for one in side.values()]), minlength=len(edges) + 1)
        for side in (earlier, recent)
    ]
    psi = population_stability(counts[0].tolist(), counts[1].tolist())
    # The index of equal distributions is not 0 in samples: about its number of free bins over their sizes.
    noise = 3 * len(edges) * (1 / len(earlier) + 1 / len(recent))
    if psi > limit + noise:
        alerts.append(f"prompts drift: the index of their lengths is {psi:.2f} (limit {limit:g})")
    sources = sorted({one.source for one in [*earlier.values(), *recent.values()]})
    by_source = [
        [sum(one.source == s for one in side.values()) for s in sources] for side in (earlier, recent)
    ]
    psi = population_stability(by_source[0], by_source[1]) if len(sources) > 1 else 0.0
    if psi > limit + 3 * len(sources) * (1 / len(earlier) + 1 / len(recent)):
        alerts.append(f"prompts drift: the index of their sources is {psi:.2f} (limit {limit:g})")
    return alerts


def _label_alerts(old: Sequence[Said], new: Sequence[Said]) -> list[str]:
    """Ties and both-bad more or less often than before. Which side is first is arbitrary, so sides are one label."""
    counts: Any = []
    for side in (old, new):
        verdicts = Counter(one.preference for one in side if one.preference is not None)
        preferring = verdicts["first"] + verdicts["second"]
        counts.append([preferring, *(verdicts[name] for name in VERDICTS[2:])])
    table = np.array(counts, float)
    if not table.sum(1).all():
        return []
    p = homogeneity(table)
    shares = table / table.sum(1, keepdims=True)
    shift = float(np.abs(shares[1] - shares[0]).max())
    if p is None or math.isnan(p) or p >= LABELS_P or shift < LABELS_SHIFT:
        return []
    tied = [f"{share:.0%}" for share in 1 - shares[:, 0]]
    return [f"ratings drift: {tied[1]} of the new answers prefer neither side, {tied[0]} of the old ones"]
