"""What a reward model contradicts with confidence goes to a lead, as a dispute of the model with the raters.

A doubt is about one stored answer: the model gives it a small probability. The task of a doubted answer becomes an
open dispute, one a task however many of its answers are doubted, and stays one until a lead decides or until none
of the doubted answers stands any more (corrected or erased). Which model doubted which answer, and how much, is
kept in the audit log with the task as its subject; only the lead's view of the case reads it, nothing that is
shown to annotators does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import JSON, Connection, text

from feedback_app.store import audit
from feedback_app.store.engine import Store
from feedback_app.store.rows import look_up, run_for

ACTION = "dispute.doubt"
CHUNK = 500

State = Literal["standing", "decided", "replaced", "not in the queue", "unknown"]

_RATED = (
    "SELECT a.annotation_id, a.task_id, a.annotator_id, n.name, a.purpose, t.dispute, t.pool, t.retired_at, "
    "NOT EXISTS (SELECT 1 FROM annotations s WHERE s.supersedes = a.annotation_id) AND NOT EXISTS "
    "(SELECT 1 FROM tombstones d WHERE d.annotation_id = a.annotation_id) AS stands "
    "FROM {wanted} w CROSS JOIN annotations a JOIN tasks t ON t.task_id = a.task_id "
    "JOIN annotators n ON n.annotator_id = a.annotator_id "
    "WHERE a.annotation_id = w.id AND t.project_id = :project"
)
_STANDS = (
    "SELECT a.annotation_id FROM {wanted} w CROSS JOIN current_annotations a WHERE a.annotation_id = w.id"
)
_NEWEST = text(
    "SELECT details FROM audit_log WHERE subject = :task_id AND action = :action ORDER BY seq DESC LIMIT 1"
).columns(details=JSON)
_TASK = "SELECT dispute FROM tasks WHERE task_id = :task_id"
_OPEN = text("UPDATE tasks SET dispute = 'open' WHERE task_id = :task_id")


@dataclass(frozen=True)
class Rated:
    """A stored answer and whether it can be doubted.

    state: "standing"; "decided" by a lead, or a lead's decision itself; "replaced" by a correction, or erased; "not
    in the queue": of a gold item, a repeat or a task that was retired.
    """

    annotation_id: str
    task_id: str
    annotator_id: str
    name: str
    state: State


@dataclass(frozen=True)
class Doubts:
    """What the newest model to doubt a task thinks of it. probabilities: of the answers that still stand, by id."""

    model: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Raised:
    """What became of doubts, in tasks. num_opened: disputes that there were not; num_noted: disputes that were open
    and got the doubt beside them; num_known: nothing new; num_passed_over: decided or changed meanwhile."""

    num_opened: int = 0
    num_noted: int = 0
    num_known: int = 0
    num_passed_over: int = 0


def rated_answers(connection: Connection, project: str, annotation_ids: Collection[str]) -> dict[str, Rated]:
    """The answers of a project by id; ids that it does not hold are not in the result."""
    rows = run_for(connection, _RATED, annotation_ids, project=project)
    return {
        row.annotation_id: Rated(row.annotation_id, row.task_id, row.annotator_id, row.name, _state(row))
        for row in rows
    }


def raise_doubts(
    store: Store, project: str, model: str, doubts: Mapping[str, float], *, actor: str = "system"
) -> Raised:
    """Bring answers that `model` doubts before a lead. Audited, once: the same call again changes nothing.

    doubts: annotation id -> the probability that the model gives this answer. Answers that no longer stand, whose
    task was decided, or that are not of this project are passed over.
    """
    with store.read() as connection:
        rated = rated_answers(connection, project, doubts)
    by_task: dict[str, dict[str, float]] = defaultdict(dict)
    for annotation_id, found in sorted(rated.items()):
        by_task[found.task_id][annotation_id] = round(doubts[annotation_id], 6)
    counts = dict.fromkeys(("num_opened", "num_noted", "num_known", "num_passed_over"), 0)
    task_ids = sorted(by_task)
    for start in range(0, len(task_ids), CHUNK):
        chunk = task_ids[start : start + CHUNK]

        def unit(connection: Connection, chunk: list[str] = chunk) -> list[str]:
            return [_raise(connection, project, task_id, model, by_task[task_id], actor) for task_id in chunk]

        for outcome in store.run(unit):
            counts[outcome] += 1
    return Raised(**counts)


def doubts_of(connection: Connection, task_id: str) -> Doubts | None:
    """The doubts about a task that still stand; None where there are none. For leads' eyes only."""
    details = connection.execute(_NEWEST, {"task_id": task_id, "action": ACTION}).scalar()
    if details is None:
        return None
    given: dict[str, float] = details["probabilities"]
    standing = [annotation_id for (annotation_id,) in look_up(connection, _STANDS, given)]
    return Doubts(details["model"], {i: given[i] for i in standing}) if standing else None


def _state(row: Any) -> State:
    if not row.stands:
        return "replaced"
    if row.purpose == "adjudicate" or (row.dispute == "decided" and row.purpose == "rate"):
        return "decided"
    if row.pool != "queue" or row.retired_at is not None or row.purpose != "rate":
        return "not in the queue"
    return "standing"


def _raise(
    connection: Connection, project: str, task_id: str, model: str, doubts: dict[str, float], actor: str
) -> str:
    """One task, in the caller's transaction: the name of the count that it belongs to."""
    locking = " FOR UPDATE" if connection.dialect.name == "postgresql" else ""
    known = connection.execute(text(_TASK + locking), {"task_id": task_id}).scalar()
    rated = rated_answers(connection, project, doubts)
    standing = {i: doubts[i] for i, answer in sorted(rated.items()) if answer.state == "standing"}
    if not standing:
        return "num_passed_over"
    before = connection.execute(_NEWEST, {"task_id": task_id, "action": ACTION}).scalar()
    details = {"model": model, "probabilities": standing}
    if known == "open" and before == details:
        return "num_known"
    if known != "open":
        connection.execute(_OPEN, {"task_id": task_id})
    audit.append(connection, actor, ACTION, task_id, **details)
    return "num_noted" if known == "open" else "num_opened"
