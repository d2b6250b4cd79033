"""A person's own answers, newest first, to look at and to correct. A correction is a new version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Connection, Row, text

from feedback_app.store.annotations import judgement_of
from feedback_app.store.leases import TaskView, view_task
from rlhf.core.errors import StoreError
from rlhf.core.records import Judgement

EXCERPT = 200


@dataclass(frozen=True)
class Answered:
    """One of my answers, as the list shows it. `excerpt`: the start of the prompt's last message.

    It does not say what the answer was for: a gold item or a repeat looks like any other.
    """

    annotation_id: str
    task_id: str
    kind: str
    excerpt: str
    answered_at: float
    version: int
    seconds: float | None
    answer: Judgement


_COLUMNS = (
    "SELECT a.*, t.prompt_id, p.messages FROM latest_annotations a JOIN tasks t ON t.task_id = a.task_id "
    "JOIN prompts p ON p.prompt_id = t.prompt_id WHERE a.annotator_id = :annotator "
    "AND a.purpose <> 'adjudicate' "
)
_TYPES = dict.fromkeys(("ranking", "scores", "flags", "shown_order", "messages"), JSON)
_NEWEST = text(
    f"{_COLUMNS} AND a.project_id = :project ORDER BY a.created_at DESC, a.annotation_id DESC LIMIT :limit"
).columns(**_TYPES)
_BEFORE = text(
    f"{_COLUMNS} AND a.project_id = :project AND (a.created_at, a.annotation_id) < "
    "(SELECT b.created_at, b.annotation_id FROM annotations b WHERE b.annotation_id = :before) "
    "ORDER BY a.created_at DESC, a.annotation_id DESC LIMIT :limit"
).columns(**_TYPES)
# The newest version of what an id once was.
_OPEN = text(
    f"{_COLUMNS} AND a.task_id = (SELECT b.task_id FROM annotations b WHERE b.annotation_id = :annotation "
    "AND b.annotator_id = :annotator) ORDER BY a.version DESC LIMIT 1"
).columns(**_TYPES)
_COMPLETIONS = text("SELECT completion_id FROM task_completions WHERE task_id = :task_id ORDER BY position")


def my_answers(
    connection: Connection, annotator_id: str, project: str, limit: int = 20, before: str | None = None
) -> list[Answered]:
    """This person's current answers in a project, newest first; `before` is the last id of the page above.

    Erased answers are not listed.
    """
    keys = {"annotator": annotator_id, "project": project, "limit": limit}
    if before is None:
        rows = connection.execute(_NEWEST, keys).all()
    else:
        rows = connection.execute(_BEFORE, {**keys, "before": before}).all()
    return [
        Answered(
            annotation_id=row.annotation_id,
            task_id=row.task_id,
            kind=row.kind,
            excerpt=row.messages[-1]["content"][:EXCERPT],
            answered_at=row.created_at,
            version=row.version,
            seconds=row.seconds,
            answer=_judgement(connection, row),
        )
        for row in rows
    ]


def open_answer(connection: Connection, annotation_id: str, annotator_id: str) -> TaskView:
    """The task of one of my answers as it was shown then, with the newest version of what I said.

    Submit the correction with the view's lease and a client key of its own. Not mine, erased or unknown ->
    StoreError.
    """
    row = connection.execute(_OPEN, {"annotation": annotation_id, "annotator": annotator_id}).first()
    if row is None:
        raise StoreError(f"'{annotation_id}' is not an answer of this annotator")
    view = view_task(connection, row.task_id, row.lease_id or "", row.shown_order, 0.0)
    return view.model_copy(update={"answer": _judgement(connection, row)})


def _judgement(connection: Connection, row: Row[Any]) -> Judgement:
    return judgement_of(row, tuple(connection.execute(_COMPLETIONS, {"task_id": row.task_id}).scalars()))
