"""What the rating desk does, without HTTP: tasks as a rater sees them, answers as they give them.

A rater sees sides 'a' and 'b', never an id that could be traced to a model; the lease knows which is which.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, text

from feedback_app.accounts import Person
from feedback_app.store.annotations import Receipt, answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.leases import TaskView, get_lease, heartbeat, lease_next, skip, view_lease
from feedback_app.store.schema import drafts
from rlhf.core.errors import DataError

Choice = Literal["a", "b", "tie", "both_bad"]
MAX_REASON = 10_000
_ID = Field(min_length=1, max_length=64)
_KEY = Field(min_length=8, max_length=128)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NextBody(_Body):
    project: str = Field(min_length=1, max_length=128)
    holding: tuple[str, ...] = Field(default=(), max_length=8)


class AnswerBody(_Body):
    lease: str = _ID
    key: str = _KEY
    choice: Choice
    strength: int | None = Field(default=None, ge=1, le=3)
    reason: str = Field(default="", max_length=MAX_REASON)
    seconds: float | None = Field(default=None, ge=0, le=86_400)


class SkipBody(_Body):
    lease: str = _ID
    key: str = _KEY
    reason: str = Field(min_length=1, max_length=1000)


class HeartbeatBody(_Body):
    leases: tuple[str, ...] = Field(max_length=8)


class DraftBody(_Body):
    lease: str = _ID
    choice: Choice | None = None
    strength: int | None = Field(default=None, ge=1, le=3)
    reason: str = Field(default="", max_length=MAX_REASON)


_PROJECTS = text(
    "SELECT p.project_id, p.title, p.simulated, "
    "(SELECT count(*) FROM tasks t WHERE t.project_id = p.project_id AND t.is_open) AS num_open "
    "FROM projects p WHERE p.archived_at IS NULL ORDER BY p.created_at DESC, p.project_id"
)
_RUBRIC = text(
    "SELECT version, title, text FROM rubrics WHERE project_id = :project ORDER BY version DESC LIMIT 1"
)
_PROGRESS = text(
    "SELECT count(*) AS mine, coalesce(sum(CASE WHEN created_at >= :since THEN 1 ELSE 0 END), 0) AS recent, "
    "avg(seconds) AS seconds FROM annotations "
    "WHERE annotator_id = :annotator AND project_id = :project AND version = 1"
)
# What is left for this person: open places, and the tasks they hold already.
_LEFT = text(
    "SELECT (SELECT count(*) FROM tasks WHERE project_id = :project AND is_open) + "
    "(SELECT count(*) FROM leases l JOIN tasks t ON t.task_id = l.task_id WHERE l.annotator_id = :annotator "
    "AND l.project_id = :project AND l.state = 'active' AND NOT t.is_open)"
)
_DRAFT = text("SELECT content FROM drafts WHERE task_id = :task AND annotator_id = :annotator").columns(
    content=drafts.c.content.type
)


class Desk:
    """The desk over one store. Every method takes the person and touches only what is theirs."""

    def __init__(self, store: Store, *, lease_s: float) -> None:
        self.store, self.lease_s = store, lease_s

    def overview(self, person: Person) -> dict[str, Any]:
        """Who I am and what there is to rate."""
        with self.store.read() as connection:
            projects = [
                {
                    "id": row.project_id,
                    "title": row.title,
                    "simulated": bool(row.simulated),
                    "open": row.num_open,
                    "rubric": self._rubric(connection, row.project_id),
                }
                for row in connection.execute(_PROJECTS)
            ]
        me = {"name": person.name, "role": person.role, "simulated": person.simulated}
        return {"me": me, "projects": projects, "lease_s": self.lease_s}

    def next(self, person: Person, body: NextBody) -> dict[str, Any]:
        """Lease the next task; {'task': None} when nothing is left for this person."""
        view = lease_next(
            self.store, person.annotator_id, body.project, lease_s=self.lease_s, holding=body.holding
        )
        with self.store.read() as connection:
            return {
                "task": None if view is None else self._shown(connection, person, view),
                "progress": self._progress(connection, person, body.project),
            }

    def answer(self, person: Person, body: AnswerBody) -> dict[str, Any]:
        """Store an answer; when this returns it is on disk."""
        if (body.strength is None) != (body.choice in ("tie", "both_bad")):
            raise DataError("a preference has a strength of 1 to 3, a tie and 'both bad' have none")
        with self.store.read() as connection:
            view = view_lease(connection, body.lease, person.annotator_id)
        judgement = answer(
            view,
            person.annotator_id,
            preference=_verdict(view, body.choice),
            strength=body.strength,
            reason=body.reason.strip(),
        )
        receipt: Receipt = submit(
            self.store, judgement, lease_id=body.lease, client_key=body.key, seconds=body.seconds
        )
        with self.store.read() as connection:
            progress = self._progress(connection, person, view.project_id)
        return {"saved": True, "version": receipt.version, "repeated": receipt.repeated, "progress": progress}

    def skip(self, person: Person, body: SkipBody) -> dict[str, Any]:
        """Give a task back with a reason."""
        done = skip(
            self.store, body.lease, person.annotator_id, reason=body.reason.strip(), client_key=body.key
        )
        return {"skipped": done}

    def heartbeat(self, person: Person, body: HeartbeatBody) -> dict[str, Any]:
        """Keep leases alive while the page is open."""
        alive = [
            lease
            for lease in body.leases
            if heartbeat(self.store, lease, person.annotator_id, lease_s=self.lease_s)
        ]
        return {"alive": alive}

    def draft(self, person: Person, body: DraftBody) -> dict[str, Any]:
        """Keep what is being typed, so that a reload loses nothing."""

        def unit(connection: Connection) -> None:
            lease = get_lease(connection, body.lease, person.annotator_id)
            if lease.state in ("submitted", "skipped"):
                return  # a draft that was on its way while the answer was saved
            where = (drafts.c.task_id == lease.task_id, drafts.c.annotator_id == person.annotator_id)
            values = {"content": body.model_dump(exclude={"lease"}), "updated_at": time.time()}
            if connection.execute(drafts.update().where(*where).values(**values)).rowcount == 0:
                keys = {"task_id": lease.task_id, "annotator_id": person.annotator_id}
                connection.execute(drafts.insert(), {**keys, **values})

        self.store.run(unit)
        return {"kept": True}

    def _shown(self, connection: Connection, person: Person, view: TaskView) -> dict[str, Any]:
        texts = {completion.completion_id: completion.text for completion in view.completions}
        draft = connection.execute(_DRAFT, {"task": view.task_id, "annotator": person.annotator_id}).scalar()
        return {
            "lease": view.lease_id,
            "kind": view.kind,
            "messages": [{"role": m.role, "content": m.content} for m in view.prompt.messages],
            "context": view.prompt.context,
            "sides": [texts[completion_id] for completion_id in view.shown_order],
            "simulated": bool(view.simulated),
            "draft": draft,
        }

    def _progress(self, connection: Connection, person: Person, project: str) -> dict[str, Any]:
        keys = {"annotator": person.annotator_id, "project": project, "since": time.time() - 12 * 3600}
        row = connection.execute(_PROGRESS, keys).one()
        num_open = connection.execute(_LEFT, keys).scalar_one()
        return {"mine": row.mine, "recent": row.recent, "open": num_open, "seconds": row.seconds}

    def _rubric(self, connection: Connection, project: str) -> dict[str, Any]:
        row = connection.execute(_RUBRIC, {"project": project}).first()
        return {"version": row.version, "title": row.title, "text": row.text} if row is not None else {}


def _verdict(view: TaskView, choice: Choice) -> str:
    """What was said about sides, as a verdict about the task's canonical order."""
    if choice in ("tie", "both_bad"):
        return choice
    chosen = view.shown_order[0 if choice == "a" else 1]
    return "first" if chosen == view.completions[0].completion_id else "second"
