"""The JSON door of the desk, under /api/v1: what the page itself calls.

Every handler takes the person from the session that the gate found; there is no handler without one.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request

from feedback_app.accounts import Person
from feedback_app.desk import AnswerBody, Desk, DraftBody, HeartbeatBody, NextBody, SkipBody
from feedback_app.security import PERSON


def current_person(request: Request) -> Person:
    """The person behind the request's session; 401 without one."""
    person = request.scope.get(PERSON)
    if not isinstance(person, Person):
        raise HTTPException(401, "log in first")
    return person


Me = Annotated[Person, Depends(current_person)]


def desk_router(desk: Desk) -> APIRouter:
    """The routes of the rating desk."""
    router = APIRouter(prefix="/api/v1/desk", tags=["desk"])

    @router.get("")
    def overview(me: Me, shift: Annotated[int, Query(ge=-900, le=900)] = 0) -> dict[str, Any]:
        return desk.overview(me, shift)

    @router.post("/next")
    def next_task(me: Me, body: NextBody) -> dict[str, Any]:
        return desk.next(me, body)

    @router.post("/answer")
    def answer(me: Me, body: AnswerBody) -> dict[str, Any]:
        return desk.answer(me, body)

    @router.post("/skip")
    def skip(me: Me, body: SkipBody) -> dict[str, Any]:
        return desk.skip(me, body)

    @router.post("/heartbeat")
    def heartbeat(me: Me, body: HeartbeatBody) -> dict[str, Any]:
        return desk.heartbeat(me, body)

    @router.post("/draft")
    def draft(me: Me, body: DraftBody) -> dict[str, Any]:
        return desk.draft(me, body)

    @router.get("/history")
    def history(
        me: Me,
        project: Annotated[str, Query(min_length=1, max_length=128)],
        before: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        return desk.history(me, project, before)

    @router.get("/history/{annotation_id}")
    def past_answer(me: Me, annotation_id: Annotated[str, Path(max_length=64)]) -> dict[str, Any]:
        return desk.past(me, annotation_id)

    return router
