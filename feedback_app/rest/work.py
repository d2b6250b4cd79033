"""Projects, prompts, completions, tasks and annotations over the API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from pydantic import ValidationError
from sqlalchemy import JSON, Connection, text

from feedback_app.accounts import Person
from feedback_app.quality.agreement import pairwise_agreement
from feedback_app.rest import models as m
from feedback_app.rest.callers import Anybody, Reader, Writer
from feedback_app.rest.errors import Refused, missing
from feedback_app.rest.once import Key, once
from feedback_app.rest.paging import Cursor, Limit, after, page
from feedback_app.security import BEARER
from feedback_app.store.engine import Store
from feedback_app.store.projects import ProjectInfo, change_settings, list_projects
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, ensure_project, set_rubric
from rlhf.core.records import Completion, Prompt
from rlhf.core.validation import problems

NUM_RESAMPLES = 300  # for intervals in an answer that somebody waits for

_PROMPTS = text(
    "SELECT prompt_id, messages, source, group_id, context, created_at FROM prompts "
    "WHERE prompt_id > :after ORDER BY prompt_id LIMIT :num"
).columns(messages=JSON)
_PROMPT = text(
    "SELECT prompt_id, messages, source, group_id, context, created_at FROM prompts WHERE prompt_id = :id"
).columns(messages=JSON)
_COMPLETIONS = (
    "SELECT completion_id, prompt_id, text, model_id, created_at FROM completions "
    "WHERE {prompt} completion_id > :after ORDER BY completion_id LIMIT :num"
)
_TASKS = (
    "SELECT task_id, kind, pool, prompt_id, overlap, num_done, num_held, is_open, dispute, created_at, retired_at "
    "FROM tasks WHERE project_id = :project AND (created_at, task_id) > (:at, :after) {more}"
    "ORDER BY created_at, task_id LIMIT :num"
)
_PLACES = "SELECT completion_id FROM task_completions WHERE task_id = :id ORDER BY position"
_ANNOTATIONS = text(
    "SELECT annotation_id, task_id, annotator_id, kind, purpose, version, preference, strength, ranking, scores, "
    "thumb, demonstration, reason, flags, shown_order, seconds, surplus, simulated, created_at "
    "FROM latest_annotations WHERE project_id = :project AND (created_at, annotation_id) > (:at, :after) "
    "ORDER BY created_at, annotation_id LIMIT :num"
).columns(ranking=JSON, scores=JSON, flags=JSON, shown_order=JSON)


def work_router(store: Store) -> APIRouter:
    """The routes about what is rated and what was said."""
    router = APIRouter(tags=["work"])

    @router.get("/me")
    def me(request: Request, person: Anybody) -> m.Me:
        bearer = request.scope.get(BEARER)
        scopes = sorted(bearer.scopes) if bearer is not None else None
        return m.Me(annotator_id=person.annotator_id, name=person.name, role=person.role, scopes=scopes)

    @router.get("/projects")
    def projects_of(person: Reader) -> m.Projects:
        with store.read() as connection:
            found = list_projects(connection, person, with_archived=True)
        return m.Projects(items=[_project(info) for info in found])

    @router.post("/projects", status_code=201)
    def make_project(person: Writer, request: Request, body: m.ProjectIn, key: Key = None) -> m.Project:
        def act() -> dict[str, Any]:
            ensure_project(store, body.project, title=body.title, rubric=body.rubric)
            info = find_project(store, person, body.project)
            attributes = [attribute.model_dump() for attribute in body.attributes]
            if attributes and not info.attributes:
                set_rubric(
                    store,
                    body.project,
                    info.rubric_text,
                    title=info.rubric_title,
                    attributes=attributes,
                    created_by=person.annotator_id,
                )
            return _project(find_project(store, person, body.project)).model_dump()

        return m.Project.model_validate(once(store, person, request, key, body, act))

    @router.get("/projects/{project}")
    def project_of(person: Reader, project: m.Name) -> m.Project:
        return _project(find_project(store, person, project))

    @router.get("/projects/{project}/settings")
    def settings(person: Reader, project: m.Name) -> dict[str, Any]:
        return find_project(store, person, project).settings.model_dump(mode="json")

    @router.patch("/projects/{project}/settings")
    def change(
        person: Writer,
        request: Request,
        project: m.Name,
        changes: Annotated[dict[str, Any], Body(max_length=50, description="only what changes")],
        key: Key = None,
    ) -> dict[str, Any]:
        find_project(store, person, project)

        def act() -> dict[str, Any]:
            return change_settings(store, project, changes, actor=person.annotator_id).model_dump(mode="json")

        return once(store, person, request, key, repr(sorted(changes.items(), key=repr)), act)

    @router.get("/projects/{project}/quality")
    def quality(person: Reader, project: m.Name) -> m.Figures:
        find_project(store, person, project)
        found = pairwise_agreement(store, project, num_resamples=NUM_RESAMPLES)
        interval = found.alpha_interval
        return m.Figures(
            alpha=found.alpha,
            alpha_low=interval.low if interval is not None else None,
            alpha_high=interval.high if interval is not None else None,
            raw_agreement=found.raw,
            num_items=found.n_items,
            num_pairs=found.n_pairs,
            num_annotators=found.n_annotators,
        )

    @router.get("/prompts")
    def prompts(person: Reader, limit: Limit = 100, cursor: Cursor = "") -> m.Prompts:
        (last,) = after(cursor, (str,), ("",))
        with store.read() as connection:
            rows = list(connection.execute(_PROMPTS, {"after": last, "num": limit + 1}).all())
        rows, following = page(rows, limit, "prompt_id")
        return m.Prompts(items=[m.Prompt.model_validate(r._mapping) for r in rows], next=following)

    @router.post("/prompts", status_code=201)
    def send_prompts(person: Writer, request: Request, body: m.PromptsIn, key: Key = None) -> m.Added:
        def act() -> dict[str, Any]:
            fields = [item.model_dump(exclude_none=True) for item in body.items]
            records = [_record(Prompt, f"body.items.{i}", f) for i, f in enumerate(fields)]
            return {"ids": [p.prompt_id for p in records], "new": add_prompts(store, records)}

        return m.Added.model_validate(once(store, person, request, key, body, act))

    @router.get("/prompts/{prompt_id}")
    def prompt(person: Reader, prompt_id: m.Id) -> m.Prompt:
        with store.read() as connection:
            row = connection.execute(_PROMPT, {"id": prompt_id}).first()
        if row is None:
            raise missing("prompt", prompt_id)
        return m.Prompt.model_validate(row._mapping)

    @router.get("/completions")
    def completions(
        person: Reader,
        prompt_id: Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9._:\-]+$")] = None,
        limit: Limit = 100,
        cursor: Cursor = "",
    ) -> m.Completions:
        (last,) = after(cursor, (str,), ("",))
        query = text(_COMPLETIONS.format(prompt="" if prompt_id is None else "prompt_id = :prompt AND"))
        keys = {"after": last, "num": limit + 1} | ({} if prompt_id is None else {"prompt": prompt_id})
        with store.read() as connection:
            rows = list(connection.execute(query, keys).all())
        rows, following = page(rows, limit, "completion_id")
        return m.Completions(items=[m.Completion.model_validate(r._mapping) for r in rows], next=following)

    @router.post("/completions", status_code=201)
    def send_completions(person: Writer, request: Request, body: m.CompletionsIn, key: Key = None) -> m.Added:
        def act() -> dict[str, Any]:
            fields = [item.model_dump(exclude_none=True) for item in body.items]
            records = [_record(Completion, f"body.items.{i}", f) for i, f in enumerate(fields)]
            return {"ids": [c.completion_id for c in records], "new": add_completions(store, records)}

        return m.Added.model_validate(once(store, person, request, key, body, act))

    @router.get("/projects/{project}/tasks")
    def tasks(
        person: Reader,
        project: m.Name,
        state: Annotated[Literal["all", "open", "disputed"], Query()] = "all",
        limit: Limit = 100,
        cursor: Cursor = "",
    ) -> m.Tasks:
        find_project(store, person, project)
        at, last = after(cursor, (float, str), (-1.0, ""))
        more = {"all": "", "open": "AND is_open ", "disputed": "AND dispute = 'open' "}[state]
        keys = {"project": project, "at": at, "after": last, "num": limit + 1}
        with store.read() as connection:
            rows = list(connection.execute(text(_TASKS.format(more=more)), keys).all())
            rows, following = page(rows, limit, "created_at", "task_id")
            items = [
                m.Task.model_validate({**r._mapping, "completion_ids": _places(connection, r.task_id)})
                for r in rows
            ]
        return m.Tasks(items=items, next=following)

    @router.post("/projects/{project}/tasks", status_code=201)
    def send_tasks(
        person: Writer, request: Request, project: m.Name, body: m.TasksIn, key: Key = None
    ) -> m.TaskIds:
        find_project(store, person, project)

        def act() -> dict[str, Any]:
            wanted = [(item.prompt_id, item.completion_ids) for item in body.items]
            made = create_tasks(store, project=project, kind=body.kind, items=wanted, overlap=body.overlap)
            return {"ids": made}

        return m.TaskIds.model_validate(once(store, person, request, key, body, act))

    @router.get("/projects/{project}/annotations")
    def annotations(
        person: Reader, project: m.Name, limit: Limit = 100, cursor: Cursor = ""
    ) -> m.Annotations:
        """The newest version of each answer, gold answers and repeats among them (see `purpose`)."""
        find_project(store, person, project)
        at, last = after(cursor, (float, str), (-1.0, ""))
        keys = {"project": project, "at": at, "after": last, "num": limit + 1}
        with store.read() as connection:
            rows = list(connection.execute(_ANNOTATIONS, keys).all())
        rows, following = page(rows, limit, "created_at", "annotation_id")
        return m.Annotations(items=[m.Annotation.model_validate(r._mapping) for r in rows], next=following)

    return router


def find_project(store: Store, person: Person, project: str) -> ProjectInfo:
    """A project that this person may see; 404 for any other."""
    with store.read() as connection:
        found = list_projects(connection, person, with_archived=True, project=project)
    if found:
        return found[0]
    raise missing("project", project)


def _project(info: ProjectInfo) -> m.Project:
    return m.Project(
        project=info.project_id,
        title=info.title,
        purpose=info.purpose,
        simulated=info.simulated,
        rubric_version=info.rubric_version,
        rubric_title=info.rubric_title,
        rubric=info.rubric_text,
        attributes=list(info.attributes),
        num_open=info.num_open,
        settings=info.settings.model_dump(mode="json"),
        created_at=info.created_at,
        archived_at=info.archived_at,
    )


def _places(connection: Connection, task_id: str) -> list[str]:
    return list(connection.execute(text(_PLACES), {"id": task_id}).scalars())


def _record(model: type[Any], where: str, fields: dict[str, Any]) -> Any:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        path, message = problems(error)[0]
        raise Refused(422, message, where=".".join((where, *path))) from error
