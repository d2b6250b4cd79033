"""Gold items: tasks whose right answer is known, mixed in among the others without a mark.

A gold task leaves the queue: it is handed out by the draw at `gold_rate`, once to each person, takes no place
of its quota, and its answers are neither exported nor counted in agreement. Whether an answer was right is
decided when it comes and kept with it; only a person's first answer to an item says something about them,
since after it they may have been told.

What `expected` holds, in the task's canonical order ("first" is its first completion):
    pairwise   {"preference": "first" | "second" | "tie" | "both_bad"}, and "strength" with
               "strength_tolerance" (0 where it is not given) where the strength matters too
    ranking    {"best": completion id}: it must be in the first group; and/or {"ranking": [[id, ...], ...]}
               with "min_tau": Kendall's tau-b with that order is at least this (default 0.6)
    scores     {"scores": {attribute: {completion id: 1..5}}}, each within "tolerance" (default 1)
    thumbs     {"thumb": "up" | "down"}
A demonstration has no right answer and cannot be gold.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import JSON, Connection, insert, text, update

from feedback_app.store import audit
from feedback_app.store.draws import digest
from feedback_app.store.engine import Store
from feedback_app.store.schema import gold_items, tasks
from rlhf.core.errors import DataError, StoreError
from rlhf.core.records import Judgement, Verdict
from rlhf.core.validation import problems


@dataclass(frozen=True)
class GoldResult:
    """How an answer to a gold item went; `expected` is in the task's canonical order."""

    correct: bool
    expected: dict[str, Any]
    explanation: str


@dataclass(frozen=True)
class GoldTally:
    """One person's first answers to gold items of a project."""

    annotator_id: str
    num_answers: int
    num_correct: int


class _Expected(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Pairwise(_Expected):
    preference: Verdict
    strength: int | None = Field(default=None, ge=1, le=3)
    strength_tolerance: int = Field(default=0, ge=0, le=2)

    def fits(self, judgement: Judgement) -> bool:
        if judgement.preference != self.preference:
            return False
        if self.strength is None:
            return True
        return (
            judgement.strength is not None
            and abs(judgement.strength - self.strength) <= self.strength_tolerance
        )


class _Ranking(_Expected):
    best: str | None = None
    ranking: tuple[tuple[str, ...], ...] | None = None
    min_tau: float = Field(default=0.6, ge=-1, le=1)

    def fits(self, judgement: Judgement) -> bool:
        given = judgement.ranking or ((),)
        if self.best is not None and self.best not in given[0]:
            return False
        return self.ranking is None or tau(self.ranking, given) >= self.min_tau


class _Scores(_Expected):
    scores: dict[str, dict[str, int]]
    tolerance: int = Field(default=1, ge=0, le=4)

    def fits(self, judgement: Judgement) -> bool:
        given = judgement.scores or {}
        return all(
            abs(given.get(attribute, {}).get(completion_id, 99) - score) <= self.tolerance
            for attribute, by_completion in self.scores.items()
            for completion_id, score in by_completion.items()
        )


class _Thumbs(_Expected):
    thumb: Literal["up", "down"]

    def fits(self, judgement: Judgement) -> bool:
        return judgement.thumb == self.thumb


_KINDS: dict[str, type[_Pairwise | _Ranking | _Scores | _Thumbs]] = {
    "pairwise": _Pairwise,
    "ranking": _Ranking,
    "scores": _Scores,
    "thumbs": _Thumbs,
}
_TASK = text("SELECT t.kind, t.pool, t.project_id FROM tasks t WHERE t.task_id = :task_id")
_IDS = text("SELECT completion_id FROM task_completions WHERE task_id = :task_id ORDER BY position")
_ITEM = text("SELECT expected, explanation FROM gold_items WHERE task_id = :task_id").columns(expected=JSON)
# From a place that this person's draw picks, the first item that they were not given yet.
_NEXT = (
    "SELECT t.task_id FROM tasks t WHERE t.project_id = :project AND t.pool = 'gold' "
    "AND t.task_id {after} :start AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.task_id = t.task_id "
    "AND l.annotator_id = :annotator AND l.state IN ('active', 'submitted', 'skipped')) "
    "ORDER BY t.task_id LIMIT 1"
)
_NEXT_AFTER, _NEXT_BEFORE = text(_NEXT.format(after=">")), text(_NEXT.format(after="<="))
_TALLY = text(
    "SELECT a.annotator_id, count(*) AS num_answers, "
    "sum(CASE WHEN a.gold_correct THEN 1 ELSE 0 END) AS num_correct "
    "FROM annotations a WHERE a.project_id = :project AND a.purpose = 'gold' AND a.purpose <> 'rate' "
    # coalesce: without it SQLite takes the index of `supersedes`, which holds NULL for nearly every answer.
    "AND coalesce(a.supersedes, '') = '' "
    "AND NOT EXISTS (SELECT 1 FROM tombstones d WHERE d.annotation_id = a.annotation_id) "
    "GROUP BY a.annotator_id ORDER BY a.annotator_id"
)


def set_gold(
    store: Store,
    task_id: str,
    expected: dict[str, Any],
    *,
    explanation: str = "",
    created_by: str | None = None,
) -> None:
    """Make a task a gold item, or change what is expected of it; audited.

    Answers that it got before stay what they are. Raises StoreError for an unknown task or a repeat,
    DataError when `expected` does not fit the task.
    """

    def unit(connection: Connection) -> None:
        task = connection.execute(_TASK, {"task_id": task_id}).first()
        if task is None:
            raise StoreError(f"there is no task '{task_id}'")
        if task.pool == "repeat":
            raise StoreError(f"task '{task_id}' is one person's repeat and cannot be gold")
        ids = tuple(connection.execute(_IDS, {"task_id": task_id}).scalars())
        checked = _check_expected(task.kind, expected, ids).model_dump(mode="json", exclude_none=True)
        values = {"expected": checked, "explanation": explanation, "retired_at": None}
        changed = update(gold_items).where(gold_items.c.task_id == task_id).values(**values)
        if connection.execute(changed).rowcount == 0:
            row = {"task_id": task_id, "created_at": time.time(), "created_by": created_by, **values}
            connection.execute(insert(gold_items), row)
        leaves_queue = {"pool": "gold", "is_open": False, "retired_at": None}
        connection.execute(update(tasks).where(tasks.c.task_id == task_id).values(**leaves_queue))
        audit.append(connection, created_by or "system", "gold.set", task_id, project=task.project_id)

    store.run(unit)


def retire_gold(store: Store, task_id: str, *, reopen: bool = False, actor: str | None = None) -> None:
    """Hand a gold item out no longer; `reopen` puts its task into the queue as ordinary work. Audited.

    Raises StoreError when the task is not gold now.
    """

    def unit(connection: Connection) -> None:
        now = time.time()
        retired = update(gold_items).where(gold_items.c.task_id == task_id, gold_items.c.retired_at.is_(None))
        if connection.execute(retired.values(retired_at=now)).rowcount == 0:
            raise StoreError(f"task '{task_id}' is not a gold item")
        has_place = tasks.c.num_done + tasks.c.num_held < tasks.c.overlap
        goes = update(tasks).where(tasks.c.task_id == task_id).values(pool="queue")
        if reopen:
            connection.execute(goes.values(is_open=has_place, retired_at=None))
        else:
            connection.execute(goes.values(is_open=False, retired_at=now))
        audit.append(connection, actor or "system", "gold.retire", task_id, reopened=reopen)

    store.run(unit)


def tally(connection: Connection, project: str) -> list[GoldTally]:
    """How each person did on gold: their first answers only, erased ones left out."""
    rows = connection.execute(_TALLY, {"project": project})
    return [GoldTally(row.annotator_id, row.num_answers, int(row.num_correct)) for row in rows]


def next_gold(connection: Connection, annotator_id: str, project: str, position: int) -> str | None:
    """A gold task that this person was not given yet, None when they had them all."""
    keys = {
        "annotator": annotator_id,
        "project": project,
        "start": f"t-{digest(annotator_id, project, position, 'item')[:16]}",
    }
    found = connection.execute(_NEXT_AFTER, keys).scalar()
    if found is None:
        found = connection.execute(_NEXT_BEFORE, keys).scalar()
    return None if found is None else str(found)


def judge(connection: Connection, judgement: Judgement) -> GoldResult:
    """The verdict on an answer to a gold task (also one that was retired meanwhile)."""
    item = connection.execute(_ITEM, {"task_id": judgement.task_id}).one()
    correct = _KINDS[judgement.kind].model_validate(item.expected).fits(judgement)
    return GoldResult(correct, item.expected, item.explanation)


def tau(one: tuple[tuple[str, ...], ...], other: tuple[tuple[str, ...], ...]) -> float:
    """Kendall's tau-b (Kendall, 1945) of two rankings with ties; 0 where one of them ties everything."""
    rank_one = {i: rank for rank, group in enumerate(one) for i in group}
    rank_other = {i: rank for rank, group in enumerate(other) for i in group}
    agreed = spread_one = spread_other = 0
    for a, b in combinations(sorted(rank_one), 2):
        sign_one = (rank_one[a] > rank_one[b]) - (rank_one[a] < rank_one[b])
        sign_other = (rank_other[a] > rank_other[b]) - (rank_other[a] < rank_other[b])
        agreed += sign_one * sign_other
        spread_one += abs(sign_one)
        spread_other += abs(sign_other)
    return agreed / sqrt(spread_one * spread_other) if spread_one and spread_other else 0.0


def _check_expected(kind: str, expected: dict[str, Any], ids: tuple[str, ...]) -> _Expected:
    if kind not in _KINDS:
        raise DataError(f"a {kind} task has no right answer and cannot be gold")
    try:
        checked = _KINDS[kind].model_validate(expected)
    except ValidationError as error:
        path, message = problems(error)[0]
        raise DataError(f"gold answer of a {kind} task: '{'.'.join(path)}' {message}") from error
    if isinstance(checked, _Pairwise) and checked.strength and checked.preference in ("tie", "both_bad"):
        raise DataError(f"gold answer: '{checked.preference}' has no strength; found {checked.strength}")
    named: list[str] = []
    if isinstance(checked, _Ranking):
        if checked.best is None and checked.ranking is None:
            raise DataError("gold answer of a ranking task needs 'best' or 'ranking'; found neither")
        named = [] if checked.best is None else [checked.best]
        if checked.ranking is not None and sorted(i for group in checked.ranking for i in group) != sorted(
            ids
        ):
            raise DataError("gold answer: 'ranking' names every completion of the task exactly once")
    if isinstance(checked, _Scores):
        if not any(checked.scores.values()):
            raise DataError("gold answer of a scores task needs at least one score; found none")
        for attribute, by_completion in checked.scores.items():
            named += by_completion
            for score in by_completion.values():
                if not 1 <= score <= 5:
                    raise DataError(f"gold answer: a score is 1 to 5; found {score} for '{attribute}'")
    for completion_id in named:
        if completion_id not in ids:
            raise DataError(
                f"gold answer: '{completion_id}' is not a completion of the task; found {', '.join(ids)}"
            )
    return checked
