"""What leads do, without HTTP: look at dashboards, release leases, decide disputes, run a project.

Every method takes the person and checks the role first: nothing here is done for anybody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import JSON, Connection, text

from feedback_app.accounts import Person
from feedback_app.lead.cases import (
    decision,
    expected_of,
    gold_candidates,
    open_case,
    open_disputes,
    taken_over,
)
from feedback_app.lead.dashboards import Dashboards, ViewName
from feedback_app.store import audit
from feedback_app.store.adjudication import adjudicate, num_disputed, open_dispute
from feedback_app.store.engine import Store
from feedback_app.store.gold import retire_gold, set_gold
from feedback_app.store.leases import release
from feedback_app.store.projects import (
    SEES_EVERYTHING,
    archive_project,
    change_settings,
    list_members,
    list_projects,
    project_settings,
    set_member,
)
from feedback_app.store.tasks import set_rubric
from rlhf.core.errors import DataError, StoreError
from rlhf.core.records import Judgement

_ID = Field(min_length=1, max_length=64)
_PROJECT = Field(min_length=1, max_length=128)
DISPUTES_AT_ONCE = 20


class NotALead(StoreError):
    """Somebody without the role of lead or administrator asked for what only they may see or do."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReleaseBody(_Body):
    lease: str = _ID


class DecideBody(_Body):
    """Either a choice of one's own (for a pair), or the id of the answer that is taken over."""

    task: str = _ID
    key: str = Field(min_length=8, max_length=128)
    choice: Literal["a", "b", "tie", "both_bad"] | None = None
    strength: int | None = Field(default=None, ge=1, le=3)
    annotation: str | None = Field(default=None, max_length=64)
    reason: str = Field(default="", max_length=10_000)
    seconds: float | None = Field(default=None, ge=0, le=86_400)


class GoldBody(_Body):
    """What is expected is the choice, or the answer that is named."""

    task: str = _ID
    choice: Literal["a", "b", "tie", "both_bad"] | None = None
    annotation: str | None = Field(default=None, max_length=64)
    explanation: str = Field(default="", max_length=10_000)


class RetireBody(_Body):
    task: str = _ID
    reopen: bool = False


class SettingsBody(_Body):
    project: str = _PROJECT
    changes: dict[str, Any] = Field(max_length=32)


class Attribute(_Body):
    name: str = Field(min_length=1, max_length=64)
    definition: str = Field(default="", max_length=2000)
    anchors: dict[str, str] = Field(default_factory=dict, max_length=5)


class RubricBody(_Body):
    project: str = _PROJECT
    title: str = Field(min_length=1, max_length=256)
    text: str = Field(min_length=1, max_length=100_000)
    attributes: tuple[Attribute, ...] = Field(default=(), max_length=20)


class MemberBody(_Body):
    project: str = _PROJECT
    person: str = _ID
    member: bool


class ArchiveBody(_Body):
    project: str = _PROJECT
    archived: bool


_HOLDER = text("SELECT annotator_id, project_id, task_id, state FROM leases WHERE lease_id = :lease")
_GOLD = text(
    "SELECT g.task_id, g.explanation, g.created_at, g.retired_at, t.kind, p.messages, n.name, "
    "(SELECT count(*) FROM annotations a WHERE a.task_id = g.task_id AND a.purpose = 'gold' "
    " AND coalesce(a.supersedes, '') = '') AS answers, "
    "(SELECT count(*) FROM annotations a WHERE a.task_id = g.task_id AND a.purpose = 'gold' "
    " AND coalesce(a.supersedes, '') = '' AND a.gold_correct) AS correct "
    "FROM gold_items g JOIN tasks t ON t.task_id = g.task_id JOIN prompts p ON p.prompt_id = t.prompt_id "
    "LEFT JOIN annotators n ON n.annotator_id = g.created_by "
    "WHERE t.project_id = :project ORDER BY g.retired_at IS NOT NULL, g.created_at DESC LIMIT 500"
)
_RUBRICS = text(
    "SELECT r.version, r.title, r.text, r.attributes, r.created_at, n.name FROM rubrics r "
    "LEFT JOIN annotators n ON n.annotator_id = r.created_by WHERE r.project_id = :project "
    "ORDER BY r.version DESC"
)
_PEOPLE = text(
    "SELECT a.annotator_id, a.name, a.role, a.simulated, a.disabled_at, "
    "coalesce(g.num_answers, 0) AS answers, g.last_answer_at FROM annotators a LEFT JOIN progress g "
    "ON g.annotator_id = a.annotator_id AND g.project_id = :project ORDER BY a.name"
)


class Office:
    """The leads' side of one store."""

    def __init__(self, store: Store) -> None:
        self.store, self.dashboards = store, Dashboards(store)

    # --- looking ----------------------------------------------------------------------------------------

    def overview(self, person: Person) -> dict[str, Any]:
        """Who I am and which projects there are."""
        check_lead(person)
        with self.store.read() as connection:
            found = [
                {
                    "id": info.project_id,
                    "title": info.title,
                    "purpose": info.purpose,
                    "simulated": info.simulated,
                    "archived": info.archived_at is not None,
                    "disputes": num_disputed(connection, info.project_id),
                }
                for info in list_projects(connection, person, with_archived=True)
            ]
        return {"me": {"name": person.name, "role": person.role}, "projects": found}

    def view(self, person: Person, project: str, name: ViewName) -> dict[str, Any]:
        """One dashboard of a project."""
        check_lead(person)
        return self.dashboards.view(project, name).to_json()

    def csv(self, person: Person, project: str, name: str) -> Iterator[str] | None:
        """The table behind one panel, line by line; None for a name that no panel has."""
        check_lead(person)
        panel = self.dashboards.panel(project, name)
        return None if panel is None else panel.to_csv()

    # --- the queue and disputes -------------------------------------------------------------------------

    def release(self, person: Person, body: ReleaseBody) -> dict[str, Any]:
        """Give back a task that somebody holds; it may be given to them again. Audited."""
        check_lead(person)
        with self.store.read() as connection:
            lease = connection.execute(_HOLDER, {"lease": body.lease}).first()
        if lease is None:
            raise StoreError(f"there is no lease '{body.lease}'")
        if lease.state != "active":
            return {"released": False}
        release(self.store, body.lease, lease.annotator_id)

        def note(connection: Connection) -> None:
            audit.append(
                connection, person.annotator_id, "lease.release", body.lease, holder=lease.annotator_id
            )

        self.store.run(note)
        return {"released": True}

    def disputes(self, person: Person, project: str) -> dict[str, Any]:
        """The open disputes of a project, the first of them with their texts."""
        check_lead(person)
        with self.store.read() as connection:
            project_settings(connection, project)
            return {
                "number": num_disputed(connection, project),
                "cases": open_disputes(connection, project, person.annotator_id, DISPUTES_AT_ONCE),
            }

    def decide(self, person: Person, body: DecideBody) -> dict[str, Any]:
        """Store the lead's decision about a task."""
        check_lead(person)
        if body.choice is not None and (body.strength is None) != (body.choice in ("tie", "both_bad")):
            raise DataError("a preference has a strength of 1 to 3, a tie and 'both bad' have none")
        judgement = self._judgement(
            person, body.task, body.choice, body.strength, body.annotation, body.reason
        )
        receipt = adjudicate(
            self.store, judgement, person.annotator_id, client_key=body.key, seconds=body.seconds
        )
        return {"decided": True, "version": receipt.version, "repeated": receipt.repeated}

    def _judgement(
        self,
        person: Person,
        task: str,
        choice: str | None,
        strength: int | None,
        annotation: str | None,
        reason: str = "",
    ) -> Judgement:
        if (choice is None) == (annotation is None):
            raise DataError("name either a choice of your own or the answer that you take over")
        with self.store.read() as connection:
            dispute = open_dispute(connection, task)
        if choice is not None:
            return decision(dispute.task, person.annotator_id, choice, strength, reason.strip())
        return taken_over(dispute, person.annotator_id, str(annotation), reason.strip())

    # --- gold -------------------------------------------------------------------------------------------

    def gold(self, person: Person, project: str) -> dict[str, Any]:
        """The gold items with how they are answered, and tasks that could become one."""
        check_lead(person)
        with self.store.read() as connection:
            project_settings(connection, project)
            items = [
                {
                    "task": row.task_id,
                    "kind": row.kind,
                    "prompt": row.messages[-1]["content"][:300],
                    "explanation": row.explanation,
                    "answers": row.answers,
                    "correct": row.correct,
                    "by": row.name,
                    "at": row.created_at,
                    "retired": row.retired_at is not None,
                }
                for row in connection.execute(_GOLD.columns(messages=JSON), {"project": project})
            ]
            return {"items": items, "candidates": gold_candidates(connection, project, person.annotator_id)}

    def case(self, person: Person, task: str) -> dict[str, Any]:
        """Any one task with what was said about it."""
        check_lead(person)
        with self.store.read() as connection:
            return open_case(open_dispute(connection, task), person.annotator_id)

    def make_gold(self, person: Person, body: GoldBody) -> dict[str, Any]:
        """Make a task a gold item that expects a choice or somebody's answer."""
        check_lead(person)
        judgement = self._judgement(person, body.task, body.choice, None, body.annotation)
        set_gold(
            self.store,
            body.task,
            expected_of(judgement),
            explanation=body.explanation.strip(),
            created_by=person.annotator_id,
        )
        return {"gold": True}

    def retire_gold(self, person: Person, body: RetireBody) -> dict[str, Any]:
        """Hand a gold item out no longer."""
        check_lead(person)
        retire_gold(self.store, body.task, reopen=body.reopen, actor=person.annotator_id)
        return {"retired": True}

    # --- the project ------------------------------------------------------------------------------------

    def settings(self, person: Person, project: str) -> dict[str, Any]:
        """The settings and every version of the rubric, newest first."""
        check_lead(person)
        with self.store.read() as connection:
            settings = project_settings(connection, project)
            rubrics = [
                {
                    "version": row.version,
                    "title": row.title,
                    "text": row.text,
                    "attributes": row.attributes,
                    "at": row.created_at,
                    "by": row.name,
                }
                for row in connection.execute(_RUBRICS.columns(attributes=JSON), {"project": project})
            ]
        return {"settings": settings.model_dump(mode="json"), "rubrics": rubrics}

    def change_settings(self, person: Person, body: SettingsBody) -> dict[str, Any]:
        """Change some settings and return all of them."""
        check_lead(person)
        settings = change_settings(self.store, body.project, body.changes, actor=person.annotator_id)
        return {"settings": settings.model_dump(mode="json")}

    def add_rubric(self, person: Person, body: RubricBody) -> dict[str, Any]:
        """Add a version of the rubric; answers keep the version under which they were given."""
        check_lead(person)
        names = [attribute.name for attribute in body.attributes]
        if len(set(names)) != len(names):
            raise DataError("an attribute is named twice")
        version = set_rubric(
            self.store,
            body.project,
            body.text,
            title=body.title,
            attributes=[attribute.model_dump() for attribute in body.attributes],
            created_by=person.annotator_id,
        )
        return {"version": version}

    def archive(self, person: Person, body: ArchiveBody) -> dict[str, Any]:
        """Take a project off the desk, or put it back."""
        check_lead(person)
        archive_project(self.store, body.project, body.archived, actor=person.annotator_id)
        return {"archived": body.archived}

    def members(self, person: Person, project: str) -> dict[str, Any]:
        """Everybody with an account, and who is a member of the project."""
        check_lead(person)
        with self.store.read() as connection:
            settings = project_settings(connection, project)
            members = set(list_members(connection, project))
            people = [
                {
                    "id": row.annotator_id,
                    "name": row.name,
                    "role": row.role,
                    "simulated": bool(row.simulated),
                    "disabled": row.disabled_at is not None,
                    "answers": row.answers,
                    "last_at": row.last_answer_at,
                    "member": row.annotator_id in members,
                }
                for row in connection.execute(_PEOPLE, {"project": project})
            ]
        return {"members_only": settings.members_only, "people": people}

    def set_member(self, person: Person, body: MemberBody) -> dict[str, Any]:
        """Add somebody to a project or take them out of it."""
        check_lead(person)
        set_member(self.store, body.project, body.person, body.member, actor=person.annotator_id)
        return {"member": body.member}


def check_lead(person: Person) -> None:
    """Raises NotALead for annotators."""
    if person.role not in SEES_EVERYTHING:
        raise NotALead("this is for leads and administrators")
