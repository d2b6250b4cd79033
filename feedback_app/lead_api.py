"""The JSON door of the leads' pages, under /api/v1/lead: for leads and administrators with a session."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import Response, StreamingResponse

from feedback_app.accounts import Person
from feedback_app.api import current_person
from feedback_app.lead.dashboards import ViewName
from feedback_app.lead.office import (
    ArchiveBody,
    DecideBody,
    GoldBody,
    MemberBody,
    NotALead,
    Office,
    ReleaseBody,
    RetireBody,
    RubricBody,
    SettingsBody,
    check_lead,
)

Project = Annotated[str, Query(min_length=1, max_length=128)]


def current_lead(request: Request) -> Person:
    """The lead behind the request's session; 401 without a session, 403 for an annotator."""
    person = current_person(request)
    try:
        check_lead(person)
    except NotALead as error:
        raise HTTPException(403, str(error)) from error
    return person


Lead = Annotated[Person, Depends(current_lead)]


def lead_router(office: Office) -> APIRouter:
    """The routes of dashboards, disputes and project settings."""
    router = APIRouter(prefix="/api/v1/lead", tags=["lead"])

    @router.get("")
    def overview(me: Lead) -> dict[str, Any]:
        return office.overview(me)

    @router.get("/view/{name}")
    def view(me: Lead, name: ViewName, project: Project) -> dict[str, Any]:
        return office.view(me, project, name)

    @router.get("/disputes")
    def disputes(me: Lead, project: Project) -> dict[str, Any]:
        return office.disputes(me, project)

    @router.get("/gold")
    def gold(me: Lead, project: Project) -> dict[str, Any]:
        return office.gold(me, project)

    @router.get("/case")
    def case(me: Lead, task: Annotated[str, Query(min_length=1, max_length=64)]) -> dict[str, Any]:
        return office.case(me, task)

    @router.get("/settings")
    def settings(me: Lead, project: Project) -> dict[str, Any]:
        return office.settings(me, project)

    @router.get("/members")
    def members(me: Lead, project: Project) -> dict[str, Any]:
        return office.members(me, project)

    @router.post("/release")
    def release(me: Lead, body: ReleaseBody) -> dict[str, Any]:
        return office.release(me, body)

    @router.post("/decide")
    def decide(me: Lead, body: DecideBody) -> dict[str, Any]:
        return office.decide(me, body)

    @router.post("/gold")
    def make_gold(me: Lead, body: GoldBody) -> dict[str, Any]:
        return office.make_gold(me, body)

    @router.post("/gold/retire")
    def retire_gold(me: Lead, body: RetireBody) -> dict[str, Any]:
        return office.retire_gold(me, body)

    @router.post("/settings")
    def change_settings(me: Lead, body: SettingsBody) -> dict[str, Any]:
        return office.change_settings(me, body)

    @router.post("/rubric")
    def add_rubric(me: Lead, body: RubricBody) -> dict[str, Any]:
        return office.add_rubric(me, body)

    @router.post("/archive")
    def archive(me: Lead, body: ArchiveBody) -> dict[str, Any]:
        return office.archive(me, body)

    @router.post("/member")
    def set_member(me: Lead, body: MemberBody) -> dict[str, Any]:
        return office.set_member(me, body)

    # Last: a project's name may hold a slash.
    @router.get("/{project:path}/{name}.csv")
    def csv(me: Lead, project: str, name: str) -> Response:
        lines = office.csv(me, project, name)
        if lines is None:
            raise HTTPException(404, f"there is no table '{name}'")
        headers = {"content-disposition": f'attachment; filename="{name}.csv"'}
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

    return router
