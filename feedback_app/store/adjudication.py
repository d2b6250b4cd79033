"""Adjudication: where annotators contradict each other, or a reward model them, a lead looks at the task and decides.

The decision is an answer of its own (purpose "adjudicate"): append-only like every other, with versions when
the same lead decides again, and audited. It takes no place of the task. What the annotators said stays as it
was and still counts in agreement; in exports (`judgements`, snapshots) the decision stands in place of all of
it. Of several leads' decisions the newest stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Connection, Row, text

from feedback_app.store import audit
from feedback_app.store.annotations import Receipt, Submission, submit_in
from feedback_app.store.disputes import describe
from feedback_app.store.doubts import Doubts, doubts_of
from feedback_app.store.engine import Store
from feedback_app.store.leases import TaskView, view_task
from feedback_app.store.projects import SEES_EVERYTHING
from rlhf.core.errors import StoreError
from rlhf.core.records import Judgement


@dataclass(frozen=True)
class Opinion:
    """One person's current answer to a disputed task; the fields of other kinds of task are None."""

    annotation_id: str
    annotator_id: str
    name: str
    preference: str | None
    strength: int | None
    ranking: list[list[str]] | None
    scores: dict[str, dict[str, int]] | None
    thumb: str | None
    reason: str
    flags: tuple[str, ...]
    seconds: float | None
    created_at: float


@dataclass(frozen=True)
class Dispute:
    """A task on which people contradict each other. `differs`: how, in a line ('2 first, 1 second').

    `task` carries no lease; `annotations.answer(dispute.task, lead_id, ...)` makes the decision from it. The
    names of the models are not in it: a decision is to be as blind as an answer. `doubts`: where a reward model
    contradicts some of the answers.
    """

    task: TaskView
    answers: tuple[Opinion, ...]
    differs: str
    doubts: Doubts | None = None


_DISPUTED = text(
    "SELECT task_id FROM tasks WHERE project_id = :project AND dispute = 'open' AND pool = 'queue' "
    "ORDER BY sort_key LIMIT :limit"
)
_NUM_DISPUTED = text(
    "SELECT count(*) FROM tasks WHERE project_id = :project AND dispute = 'open' AND pool = 'queue'"
)
_OPINIONS = text(
    "SELECT a.*, n.name FROM current_annotations a JOIN annotators n ON n.annotator_id = a.annotator_id "
    "WHERE a.task_id = :task_id ORDER BY a.created_at, a.annotation_id"
).columns(ranking=JSON, scores=JSON, flags=JSON)
_LEAD = text("SELECT name, role, disabled_at FROM annotators WHERE annotator_id = :lead")
_DECIDE = text("UPDATE tasks SET dispute = 'decided' WHERE task_id = :task_id")
_POOL = text("SELECT pool, project_id FROM tasks WHERE task_id = :task_id")


def disputed(connection: Connection, project: str, limit: int = 50) -> list[Dispute]:
    """The project's open disputes in the order of its queue, at most `limit`."""
    task_ids = connection.execute(_DISPUTED, {"project": project, "limit": limit}).scalars().all()
    return [open_dispute(connection, task_id) for task_id in task_ids]


def num_disputed(connection: Connection, project: str) -> int:
    """How many disputes of a project are open."""
    return int(connection.execute(_NUM_DISPUTED, {"project": project}).scalar_one())


def open_dispute(connection: Connection, task_id: str) -> Dispute:
    """One task with what people said about it, disputed or not. Unknown task -> StoreError."""
    if connection.execute(_POOL, {"task_id": task_id}).first() is None:
        raise StoreError(f"there is no task '{task_id}'")
    view = view_task(connection, task_id, "", None, 0.0)
    opinions = connection.execute(_OPINIONS, {"task_id": task_id}).all()
    return Dispute(
        view,
        tuple(_opinion(row) for row in opinions),
        describe(view.kind, opinions),
        doubts_of(connection, task_id),
    )


def adjudicate(
    store: Store, judgement: Judgement, lead_id: str, *, client_key: str, seconds: float | None = None
) -> Receipt:
    """Store a lead's decision on a task; the same client key again returns the first receipt. Audited.

    Any task of the queue can be decided, disputed or not. Raises StoreError when `lead_id` is not a lead or
    administrator and for gold items and repeats; DataError for an answer that does not fit the task.
    """
    decision = judgement.model_copy(update={"annotator_id": lead_id})

    def unit(connection: Connection) -> Receipt:
        lead = connection.execute(_LEAD, {"lead": lead_id}).first()
        if lead is None or lead.disabled_at is not None or lead.role not in SEES_EVERYTHING:
            raise StoreError("only a lead or an administrator decides disputes")
        task = connection.execute(_POOL, {"task_id": decision.task_id}).first()
        if task is not None and task.pool != "queue":
            raise StoreError(f"task '{decision.task_id}' is a {task.pool} task; there is nothing to decide")
        submission = Submission(decision, client_key, None, seconds, "lead")
        receipt = submit_in(connection, submission, adjudicates=True)
        if not receipt.repeated:
            connection.execute(_DECIDE, {"task_id": decision.task_id})
            details = {"annotation": receipt.annotation_id, "version": receipt.version}
            audit.append(connection, lead_id, "adjudicate", decision.task_id, **details)
        return receipt

    return store.run(unit)


def _opinion(row: Row[Any]) -> Opinion:
    return Opinion(
        annotation_id=row.annotation_id,
        annotator_id=row.annotator_id,
        name=row.name,
        preference=row.preference,
        strength=row.strength,
        ranking=row.ranking,
        scores=row.scores,
        thumb=row.thumb,
        reason=row.reason,
        flags=tuple(row.flags),
        seconds=row.seconds,
        created_at=row.created_at,
    )
