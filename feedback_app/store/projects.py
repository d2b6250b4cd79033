"""Projects as people run them: their settings, who may rate in them, and the list of them.

Settings are kept as what differs from the defaults, so that a better default reaches old projects too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from sqlalchemy import Connection, delete, insert, select, text, update

from feedback_app.store import audit
from feedback_app.store.engine import Store
from feedback_app.store.schema import annotators, project_members, projects
from rlhf.core.errors import DataError, StoreError
from rlhf.core.files import to_json
from rlhf.core.validation import nearest, problems

SEES_EVERYTHING = ("lead", "admin")


class ProjectSettings(BaseModel):
    """How a project is rated.

    gold_rate, repeat_rate: of the tasks a person is given, the share that is gold, and the share that they
    answered at least `repeat_after` own answers ago. gold_feedback: the person is told how a gold answer went.
    min_seconds: faster answers are kept and marked. uniform_share: of the tasks given, the share that comes
    from the unprioritised queue while the priority queue is not empty. members_only: annotators need to be
    added to the project; leads and admins always see it. guidelines: longer text beside the rubric, markdown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gold_rate: float = Field(default=0.0, ge=0, le=1)
    gold_feedback: bool = True
    repeat_rate: float = Field(default=0.0, ge=0, le=1)
    repeat_after: int = Field(default=10, ge=1, le=1000)
    min_seconds: float = Field(default=0.0, ge=0, le=3600)
    uniform_share: float = Field(default=0.2, ge=0, le=1)
    markdown: bool = True
    flags: tuple[str, ...] = Field(
        default=("unsafe", "off_topic", "personal_data", "other_language"), max_length=20
    )
    members_only: bool = False
    guidelines: str = Field(default="", max_length=100_000)

    @field_validator("flags")
    @classmethod
    def _flags_are_names(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        for flag in flags:
            if not 1 <= len(flag) <= 64 or not flag.isprintable():
                raise ValueError(f"a flag has 1 to 64 printable characters; found {flag[:70]!r}")
        if len(set(flags)) != len(flags):
            raise ValueError("a flag is named twice")
        return flags

    @model_validator(mode="after")
    def _leaves_room_for_work(self) -> ProjectSettings:
        if self.gold_rate + self.repeat_rate > 1:
            raise ValueError(
                f"gold_rate ({self.gold_rate:g}) and repeat_rate ({self.repeat_rate:g}) "
                "must be at most 1 together"
            )
        return self


class Someone(Protocol):
    """Who asks: `accounts.Person`, or whatever carries an id and a role."""

    @property
    def annotator_id(self) -> str: ...

    @property
    def role(self) -> str: ...


@dataclass(frozen=True)
class ProjectInfo:
    """A project as its list shows it. num_open: tasks in the queue with a free place."""

    project_id: str
    title: str
    purpose: str
    simulated: bool
    settings: ProjectSettings
    rubric_version: int
    rubric_title: str
    rubric_text: str
    attributes: tuple[dict[str, Any], ...]
    num_open: int
    created_at: float
    archived_at: float | None


_LISTED = (
    "SELECT p.*, r.version, r.title AS rubric_title, r.text AS rubric_text, r.attributes, "
    "(SELECT count(*) FROM tasks t WHERE t.project_id = p.project_id AND t.is_open) AS num_open, "
    "EXISTS (SELECT 1 FROM project_members m WHERE m.project_id = p.project_id AND m.annotator_id = :person) "
    "AS is_member FROM projects p JOIN rubrics r ON r.project_id = p.project_id "
    "AND r.version = (SELECT max(version) FROM rubrics WHERE project_id = p.project_id) "
    "{only} ORDER BY p.created_at DESC, p.project_id"
)
_LIST, _ONE = (
    text(_LISTED.format(only=only)).columns(
        settings=projects.c.settings.type, attributes=projects.c.settings.type
    )
    for only in ("", "WHERE p.project_id = :project")
)
# One row for everything that lets somebody into a project, or keeps them out.
_GATE = text(
    "SELECT a.simulated, a.role, a.disabled_at, p.project_id, p.settings, p.archived_at, "
    "EXISTS (SELECT 1 FROM project_members m WHERE m.project_id = :project AND m.annotator_id = :annotator) "
    "AS is_member FROM annotators a LEFT JOIN projects p ON p.project_id = :project "
    "WHERE a.annotator_id = :annotator"
).columns(settings=projects.c.settings.type)


def settings_of(stored: dict[str, Any] | None) -> ProjectSettings:
    """The settings behind the JSON column. Parsed once per content: this is on the way of every rating."""
    return _parsed(to_json(stored or {}))


def project_settings(connection: Connection, project: str) -> ProjectSettings:
    """A project's settings. Unknown project -> StoreError."""
    row = connection.execute(select(projects.c.settings).where(projects.c.project_id == project)).first()
    if row is None:
        raise StoreError(f"there is no project '{project}'")
    return settings_of(row.settings)


def change_settings(store: Store, project: str, changes: dict[str, Any], *, actor: str) -> ProjectSettings:
    """Change some settings of a project and return all of them; audited.

    Raises StoreError for an unknown project, DataError for an unknown setting or a value that cannot be.
    """
    return store.run(lambda connection: change_settings_in(connection, project, changes, actor=actor))


def change_settings_in(
    connection: Connection, project: str, changes: dict[str, Any], *, actor: str
) -> ProjectSettings:
    """`change_settings` within the caller's transaction."""
    for name in changes:
        if name not in ProjectSettings.model_fields:
            raise DataError(
                f"'{name}' is not a project setting{nearest(name, sorted(ProjectSettings.model_fields))}"
            )
    stored = connection.execute(
        select(projects.c.settings).where(projects.c.project_id == project).with_for_update()
    ).first()
    if stored is None:
        raise StoreError(f"there is no project '{project}'")
    try:
        settings = ProjectSettings.model_validate({**stored.settings, **changes})
    except ValidationError as error:
        path, message = problems(error)[0]
        where = f" '{'.'.join(path)}'" if path else "s:"
        raise DataError(f"project setting{where} {message}") from error
    kept = settings.model_dump(mode="json", exclude_defaults=True)
    connection.execute(update(projects).where(projects.c.project_id == project).values(settings=kept))
    audit.append(connection, actor, "project.settings", project, changed=sorted(changes))
    return settings


def list_projects(
    connection: Connection, person: Someone, *, with_archived: bool = False, project: str | None = None
) -> list[ProjectInfo]:
    """The projects that this person may see, newest first; with `project` that one alone."""
    who = {"person": person.annotator_id}
    rows = (
        connection.execute(_LIST, who)
        if project is None
        else connection.execute(_ONE, {**who, "project": project})
    )
    found = []
    for row in rows:
        settings = settings_of(row.settings)
        hidden = settings.members_only and not row.is_member and person.role not in SEES_EVERYTHING
        if hidden or (row.archived_at is not None and not with_archived):
            continue
        info = ProjectInfo(
            project_id=row.project_id,
            title=row.title,
            purpose=row.purpose,
            simulated=bool(row.simulated),
            settings=settings,
            rubric_version=row.version,
            rubric_title=row.rubric_title,
            rubric_text=row.rubric_text,
            attributes=tuple(row.attributes),
            num_open=row.num_open,
            created_at=row.created_at,
            archived_at=row.archived_at,
        )
        found.append(info)
    return found


def archive_project(store: Store, project: str, archived: bool, *, actor: str) -> None:
    """Take a project off the desk (or put it back); everything in it stays. Audited."""

    def unit(connection: Connection) -> None:
        when = time.time() if archived else None
        changed = update(projects).where(projects.c.project_id == project).values(archived_at=when)
        if connection.execute(changed).rowcount == 0:
            raise StoreError(f"there is no project '{project}'")
        audit.append(connection, actor, "project.archive" if archived else "project.reopen", project)

    store.run(unit)


def set_member(store: Store, project: str, annotator_id: str, member: bool, *, actor: str) -> None:
    """Add a person to a project or take them out of it; idempotent, audited when it changes something."""

    def unit(connection: Connection) -> None:
        project_settings(connection, project)
        known = select(annotators.c.annotator_id).where(annotators.c.annotator_id == annotator_id)
        if connection.execute(known).first() is None:
            raise StoreError(f"there is no annotator '{annotator_id}'")
        where = (project_members.c.project_id == project, project_members.c.annotator_id == annotator_id)
        is_member = connection.execute(select(project_members).where(*where)).first() is not None
        if is_member == member:
            return
        if member:
            row = {"project_id": project, "annotator_id": annotator_id, "added_at": time.time()}
            connection.execute(insert(project_members), row)
        else:
            connection.execute(delete(project_members).where(*where))
        action = "project.member.add" if member else "project.member.remove"
        audit.append(connection, actor, action, project, annotator=annotator_id)

    store.run(unit)


def list_members(connection: Connection, project: str) -> list[str]:
    """The annotator ids of a project's members, in the order in which they were added."""
    query = select(project_members.c.annotator_id).where(project_members.c.project_id == project)
    return list(connection.execute(query.order_by(project_members.c.added_at)).scalars())


def enter(connection: Connection, annotator_id: str, project: str) -> ProjectSettings | None:
    """The settings under which this person may rate in this project; None when it is archived or unknown.

    Raises StoreError for an unknown or disabled annotator and for one who is not among its members.
    """
    row = connection.execute(_GATE, {"annotator": annotator_id, "project": project}).first()
    if row is None:
        raise StoreError(f"there is no annotator '{annotator_id}'")
    if row.disabled_at is not None:
        raise StoreError(f"annotator '{annotator_id}' is disabled")
    if row.project_id is None or row.archived_at is not None:
        return None
    settings = settings_of(row.settings)
    if settings.members_only and not row.is_member and row.role not in SEES_EVERYTHING:
        raise StoreError(f"project '{project}' is for its members only")
    return settings


@lru_cache(maxsize=256)
def _parsed(stored: str) -> ProjectSettings:
    return ProjectSettings.model_validate_json(stored)
