"""What people said about live answers: thumbs with the control limits of a p-chart, and choices between models.

A p-chart (Shewhart) puts each group's share beside p +- 3 sqrt(p (1 - p) / n), p the share of all groups: a group
outside it is not explained by chance (about 3 in 1000 would be).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from feedback_app.store.engine import Store
from rlhf.core.stats import Interval, wilson_interval

GROUP = 20
MAX_RATINGS = 20_000

_THUMBS = text(
    "SELECT a.created_at, a.thumb, c.model_id FROM current_annotations a "
    "JOIN task_completions tc ON tc.task_id = a.task_id JOIN completions c ON c.completion_id = tc.completion_id "
    "WHERE a.project_id = :project AND a.kind = 'thumbs' ORDER BY a.created_at DESC LIMIT :most"
)
_CHOICES = text(
    "SELECT a.annotation_id, a.preference, tc.position, c.model_id FROM current_annotations a "
    "JOIN task_completions tc ON tc.task_id = a.task_id JOIN completions c ON c.completion_id = tc.completion_id "
    "WHERE a.project_id = :project AND a.kind = 'pairwise' ORDER BY a.annotation_id, tc.position"
)
_COUNTS = text(
    "SELECT a.kind, count(*) FROM current_annotations a WHERE a.project_id = :project GROUP BY a.kind"
)


@dataclass(frozen=True)
class Thumb:
    at: float
    up: bool
    model: str


@dataclass(frozen=True)
class Group:
    """A point of the p-chart: n thumbs up to the time `at`."""

    at: float
    n: int
    share: float
    low: float
    high: float

    @property
    def out_of_control(self) -> bool:
        return not self.low <= self.share <= self.high


@dataclass(frozen=True)
class Ratings:
    """thumbs: oldest first. choices: (first model, second model) -> (wins of the first, comparisons), a tie is half."""

    thumbs: tuple[Thumb, ...] = ()
    choices: tuple[tuple[str, str, float, int], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()


def live_ratings(store: Store | None, project: str) -> Ratings:
    """The ratings that a project holds now."""
    if store is None:
        return Ratings()
    with store.read() as connection:
        thumbs = [
            Thumb(at, thumb == "up", model)
            for at, thumb, model in connection.execute(_THUMBS, {"project": project, "most": MAX_RATINGS})
        ]
        sides: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for annotation_id, preference, _, model in connection.execute(_CHOICES, {"project": project}):
            sides[annotation_id].append((preference, model))
        counts = [(kind, int(number)) for kind, number in connection.execute(_COUNTS, {"project": project})]
    return Ratings(tuple(reversed(thumbs)), _choices(list(sides.values())), tuple(sorted(counts)))


def _choices(sides: Sequence[Sequence[tuple[str, str]]]) -> tuple[tuple[str, str, float, int], ...]:
    wins: dict[tuple[str, str], float] = defaultdict(float)
    number: dict[tuple[str, str], int] = defaultdict(int)
    for pair in sides:
        if len(pair) != 2 or pair[0][1] == pair[1][1]:
            continue  # two answers of one model say nothing about models
        preference, first, second = pair[0][0], pair[0][1], pair[1][1]
        won = {"first": 1.0, "second": 0.0}.get(preference, 0.5)
        if first > second:
            first, second, won = second, first, 1 - won
        wins[first, second] += won
        number[first, second] += 1
    return tuple((first, second, wins[first, second], n) for (first, second), n in sorted(number.items()))


def p_chart(thumbs: Sequence[Thumb], *, group: int = GROUP) -> list[Group]:
    """Groups of consecutive thumbs with their control limits; what is left over after the last whole group waits."""
    num_groups = len(thumbs) // group
    if not num_groups:
        return []
    counted = thumbs[: num_groups * group]
    mean = sum(thumb.up for thumb in counted) / len(counted)
    spread = 3 * math.sqrt(mean * (1 - mean) / group)
    found = []
    for start in range(0, len(counted), group):
        part = counted[start : start + group]
        share = sum(thumb.up for thumb in part) / group
        found.append(Group(part[-1].at, group, share, max(0.0, mean - spread), min(1.0, mean + spread)))
    return found


def by_model(thumbs: Sequence[Thumb]) -> dict[str, Interval]:
    """The share of thumbs up of each model with Wilson's interval."""
    found: dict[str, list[bool]] = defaultdict(list)
    for thumb in thumbs:
        found[thumb.model].append(thumb.up)
    return {model: wilson_interval(sum(ups), len(ups)) for model, ups in sorted(found.items())}
