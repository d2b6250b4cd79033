"""Repeats: now and then a person is asked again what they answered some tasks ago.

How often they say the same is their self-consistency, a ceiling for their agreement with anybody else. A
repeat is a task of its own (`repeat_of`, `repeat_for`) with the same prompt and completions, shown in an order
of its own, so that a habit for one side shows too. It takes no place of the original's quota, and its answer
is neither exported nor counted in agreement.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Connection, insert, select, text

from feedback_app.store.draws import digest
from feedback_app.store.schema import task_completions, tasks
from rlhf.core.records import content_id

# The repeat is drawn from this many own answers, so that finding one costs the same after a million.
WINDOW = 40


@dataclass(frozen=True)
class RepeatPair:
    """What one person said about the same thing twice, each as the columns of its kind of answer."""

    annotator_id: str
    kind: str
    task_id: str
    first: dict[str, Any]
    again: dict[str, Any]
    first_at: float
    again_at: float


_CANDIDATES = text(
    "SELECT task_id, purpose, kind, surplus FROM annotations "
    "WHERE annotator_id = :annotator AND project_id = :project "
    f"ORDER BY created_at DESC LIMIT {WINDOW} OFFSET :after"
)
_EXISTS = text(
    "SELECT t.task_id FROM tasks t JOIN leases l ON l.task_id = t.task_id AND l.annotator_id = :annotator "
    "WHERE t.task_id = :task_id AND l.state IN ('active', 'submitted', 'skipped')"
)
_STILL_GOOD = text(
    "SELECT t.pool = 'queue' AND t.retired_at IS NULL AND EXISTS (SELECT 1 FROM latest_annotations a "
    "WHERE a.task_id = t.task_id AND a.annotator_id = :annotator AND a.purpose = 'rate') "
    "FROM tasks t WHERE t.task_id = :task_id"
)
_COPY = (
    "project_id",
    "kind",
    "prompt_id",
    "simulated",
    "selection",
)
_ANSWER = ("preference", "strength", "ranking", "scores", "thumb", "flags", "shown_order")
_PAIRS = text(
    "SELECT t.repeat_of, again.annotator_id, again.kind, again.created_at AS again_at, "
    "first.created_at AS first_at, "
    + ", ".join(f"first.{name} AS first_{name}, again.{name} AS again_{name}" for name in _ANSWER)
    + " FROM latest_annotations again JOIN tasks t ON t.task_id = again.task_id "
    "JOIN latest_annotations first ON first.task_id = t.repeat_of "
    "AND first.annotator_id = again.annotator_id AND first.purpose = 'rate' "
    # Not sorted here: that would make SQLite walk all answers in their order instead of the few repeats.
    "WHERE again.project_id = :project AND again.purpose = 'repeat' AND again.purpose <> 'rate'"
).columns(
    **{
        f"{side}_{name}": JSON
        for side in ("first", "again")
        for name in ("ranking", "scores", "flags", "shown_order")
    }
)


def next_repeat(
    connection: Connection, annotator_id: str, project: str, position: int, *, repeat_after: int
) -> str | None:
    """A task in which this person answers something again, None when nothing is old enough."""
    keys = {"annotator": annotator_id, "project": project, "after": repeat_after}
    candidates = [
        row.task_id
        for row in connection.execute(_CANDIDATES, keys)
        if row.purpose == "rate" and row.kind != "demonstration"
    ]
    for original in sorted(set(candidates), key=lambda task_id: digest(position, annotator_id, task_id)):
        task_id = content_id("t", "repeat", original, annotator_id)
        if connection.execute(_EXISTS, {"task_id": task_id, "annotator": annotator_id}).first() is not None:
            continue
        if connection.execute(_STILL_GOOD, {"task_id": original, "annotator": annotator_id}).scalar():
            _make(connection, task_id, original, annotator_id)
            return task_id
    return None


def repeat_pairs(connection: Connection, project: str) -> list[RepeatPair]:
    """Every repeat that was answered, in order, beside what the same person says now about the original."""
    pairs = [
        RepeatPair(
            annotator_id=row.annotator_id,
            kind=row.kind,
            task_id=row.repeat_of,
            first={name: getattr(row, f"first_{name}") for name in _ANSWER},
            again={name: getattr(row, f"again_{name}") for name in _ANSWER},
            first_at=row.first_at,
            again_at=row.again_at,
        )
        for row in connection.execute(_PAIRS, {"project": project})
    ]
    return sorted(pairs, key=lambda pair: (pair.again_at, pair.annotator_id))


def _make(connection: Connection, task_id: str, original: str, annotator_id: str) -> None:
    """The repeat's own task, unless it is there from a lease that was given back."""
    if connection.execute(select(tasks.c.task_id).where(tasks.c.task_id == task_id)).first() is not None:
        return
    source = connection.execute(select(tasks).where(tasks.c.task_id == original)).one()
    row = {
        **{name: getattr(source, name) for name in _COPY},
        "task_id": task_id,
        "overlap": 1,
        "is_open": False,
        "pool": "repeat",
        "sort_key": source.sort_key,
        "repeat_of": original,
        "repeat_for": annotator_id,
        "created_at": time.time(),
    }
    connection.execute(insert(tasks), row)
    places = select(task_completions).where(task_completions.c.task_id == original)
    for place in connection.execute(places).all():
        copy = {"task_id": task_id, "position": place.position, "completion_id": place.completion_id}
        connection.execute(insert(task_completions), copy)
