"""What the rating desk does, without HTTP: tasks as a rater sees them, answers as they give them.

A rater sees sides 'a', 'b', ..., never an id that could be traced to a model; `answers` translates.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, text

from feedback_app.accounts import Person
from feedback_app.answers import Given, as_shown, as_stored
from feedback_app.progress import days_in_a_row, open_tasks, progress_of
from feedback_app.rendering import tree
from feedback_app.store.annotations import Receipt, answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.gold import GoldResult
from feedback_app.store.history import Answered, my_answers, open_answer
from feedback_app.store.leases import TaskView, get_lease, heartbeat, lease_next, skip, view_lease
from feedback_app.store.projects import ProjectInfo, ProjectSettings, list_projects, project_settings
from feedback_app.store.schema import drafts

HISTORY_PAGE = 20
MAX_SNIPPET = 140
_ID = Field(min_length=1, max_length=64)
_KEY = Field(min_length=8, max_length=128)
_HELD = Field(default=(), max_length=64)
LeaseId = Annotated[str, Field(max_length=64)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NextBody(_Body):
    project: str = Field(min_length=1, max_length=128)
    holding: tuple[LeaseId, ...] = _HELD


class AnswerBody(Given):
    lease: str = _ID
    key: str = _KEY
    seconds: float | None = Field(default=None, ge=0, le=86_400)


class SkipBody(_Body):
    lease: str = _ID
    key: str = _KEY
    reason: str = Field(min_length=1, max_length=1000)


class HeartbeatBody(_Body):
    leases: tuple[LeaseId, ...] = _HELD


class DraftBody(Given):
    """What is chosen and written so far. `spent`: seconds; `corrects`: the version that is being corrected."""

    lease: str = _ID
    spent: float = Field(default=0, ge=0, le=86_400)
    corrects: int | None = Field(default=None, ge=1)


_RUBRIC = text("SELECT version FROM rubrics WHERE project_id = :project ORDER BY version DESC LIMIT 1")
_DRAFT = text("SELECT content FROM drafts WHERE task_id = :task AND annotator_id = :annotator").columns(
    content=drafts.c.content.type
)
_VERSION = text("SELECT max(version) FROM annotations WHERE task_id = :task AND annotator_id = :annotator")


class Desk:
    """The desk over one store. Every method takes the person and touches only what is theirs."""

    def __init__(self, store: Store, *, lease_s: float) -> None:
        self.store, self.lease_s = store, lease_s

    def overview(self, person: Person, shift_min: int = 0) -> dict[str, Any]:
        """Who I am and what there is to rate. `shift_min`: the person's local time minus UTC, minutes."""
        with self.store.read() as connection:
            projects = [_project(info) for info in list_projects(connection, person)]
            days = days_in_a_row(connection, person.annotator_id, shift_s=shift_min * 60)
        me = {"name": person.name, "role": person.role, "simulated": person.simulated, "days": days}
        return {"me": me, "projects": projects, "lease_s": self.lease_s}

    def next(self, person: Person, body: NextBody) -> dict[str, Any]:
        """Lease the next task; {'task': None} when nothing is left for this person."""
        view = lease_next(
            self.store, person.annotator_id, body.project, lease_s=self.lease_s, holding=body.holding
        )
        with self.store.read() as connection:
            progress = progress_of(connection, person.annotator_id, body.project)
            progress |= open_tasks(connection, person.annotator_id, body.project)
            version = connection.execute(_RUBRIC, {"project": body.project}).scalar()
            task = None
            if view is not None:
                task = _shown(view, project_settings(connection, view.project_id))
                task["draft"] = _draft(connection, person, view)
        return {"task": task, "progress": progress, "rubric": version}

    def answer(self, person: Person, body: AnswerBody) -> dict[str, Any]:
        """Store an answer; when this returns it is on disk.

        An answer to a task that this person has answered before is a correction: a new version.
        """
        with self.store.read() as connection:
            view = view_lease(connection, body.lease, person.annotator_id)
        judgement = answer(view, person.annotator_id, **as_stored(view, body))
        receipt: Receipt = submit(
            self.store, judgement, lease_id=body.lease, client_key=body.key, seconds=body.seconds
        )
        with self.store.read() as connection:
            progress = progress_of(connection, person.annotator_id, view.project_id)
        return {
            "saved": True,
            "version": receipt.version,
            "repeated": receipt.repeated,
            "surplus": receipt.surplus,
            "progress": progress,
            "gold": _told(view, receipt.gold) if receipt.gold is not None else None,
        }

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

        def unit(connection: Connection) -> bool:
            lease = get_lease(connection, body.lease, person.annotator_id)
            keys = {"task_id": lease.task_id, "annotator_id": person.annotator_id}
            if body.corrects is not None:
                who = {"task": lease.task_id, "annotator": person.annotator_id}
                if connection.execute(_VERSION, who).scalar() != body.corrects:
                    return False  # on its way while the correction was saved
            elif lease.state in ("submitted", "skipped"):
                return False  # on its way while the answer was saved
            content = body.model_dump(mode="json", exclude={"lease"}, exclude_defaults=True)
            values = {"content": content, "updated_at": time.time()}
            where = (drafts.c.task_id == lease.task_id, drafts.c.annotator_id == person.annotator_id)
            if connection.execute(drafts.update().where(*where).values(**values)).rowcount == 0:
                connection.execute(drafts.insert(), {**keys, **values})
            return True

        return {"kept": self.store.run(unit)}

    def history(self, person: Person, project: str, before: str | None = None) -> dict[str, Any]:
        """My last answers, newest first, as the side panel lists them; `before`: the last id of the page above."""
        with self.store.read() as connection:
            found = my_answers(connection, person.annotator_id, project, limit=HISTORY_PAGE, before=before)
        return {"answers": [_past(answered) for answered in found], "more": len(found) == HISTORY_PAGE}

    def past(self, person: Person, annotation_id: str) -> dict[str, Any]:
        """One of my answers with its task, to look at and to correct."""
        with self.store.read() as connection:
            view = open_answer(connection, annotation_id, person.annotator_id)
            task = _shown(view, project_settings(connection, view.project_id))
            draft = _draft(connection, person, view)
        answered = view.answer
        assert answered is not None
        task["given"] = as_shown(answered.completion_ids, answered.shown_order, answered.model_dump())
        task["draft"] = draft if draft is not None and draft.get("corrects") == answered.version else None
        return {"task": task, "version": answered.version}


def _project(info: ProjectInfo) -> dict[str, Any]:
    settings = info.settings
    return {
        "id": info.project_id,
        "title": info.title,
        "simulated": info.simulated,
        "open": info.num_open,
        "settings": {"markdown": settings.markdown, "flags": list(settings.flags)},
        "guidelines": tree(settings.guidelines) if settings.guidelines else None,
        "rubric": {
            "version": info.rubric_version,
            "title": info.rubric_title,
            "text": info.rubric_text,
            "tree": tree(info.rubric_text),
            "attributes": list(info.attributes),
        },
    }


def _shown(view: TaskView, settings: ProjectSettings) -> dict[str, Any]:
    """A task as the page gets it: every text as it is and, where the project wants it, as a tree."""
    texts = {completion.completion_id: completion.text for completion in view.completions}
    sides = [texts[completion_id] for completion_id in view.shown_order]
    task: dict[str, Any] = {
        "lease": view.lease_id,
        "kind": view.kind,
        "messages": [{"role": m.role, "content": m.content} for m in view.prompt.messages],
        "context": view.prompt.context,
        "sides": sides,
        "simulated": bool(view.simulated),
    }
    if settings.markdown:
        for message in task["messages"]:
            message["tree"] = tree(message["content"])
        task["context_tree"] = tree(view.prompt.context) if view.prompt.context else None
        task["trees"] = [tree(side) for side in sides]
    return task


def _draft(connection: Connection, person: Person, view: TaskView) -> dict[str, Any] | None:
    keys = {"task": view.task_id, "annotator": person.annotator_id}
    content: dict[str, Any] | None = connection.execute(_DRAFT, keys).scalar()
    return content


def _told(view: TaskView, gold: GoldResult) -> dict[str, Any]:
    ids = [completion.completion_id for completion in view.completions]
    expected = as_shown(ids, view.shown_order, gold.expected)
    return {"correct": gold.correct, "expected": expected, "explanation": gold.explanation}


def _past(answered: Answered) -> dict[str, Any]:
    judgement = answered.answer
    return {
        "id": answered.annotation_id,
        "kind": answered.kind,
        "prompt": " ".join(answered.excerpt.split())[:MAX_SNIPPET],
        "given": as_shown(judgement.completion_ids, judgement.shown_order, judgement.model_dump()),
        "version": answered.version,
        "at": answered.answered_at,
        "seconds": answered.seconds,
    }
