"""Accounts over the API, for admins."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from feedback_app.accounts import create_annotator, create_link, list_accounts, set_disabled
from feedback_app.rest import models as m
from feedback_app.rest.callers import Admin
from feedback_app.rest.errors import Refused, missing
from feedback_app.rest.once import Key, once
from feedback_app.store.engine import Store


def people_router(store: Store) -> APIRouter:
    """The routes about accounts."""
    router = APIRouter(tags=["people"])

    @router.get("/users")
    def users(person: Admin) -> m.Users:
        return m.Users(items=[m.User.model_validate(asdict(account)) for account in list_accounts(store)])

    @router.post("/users", status_code=201)
    def add(person: Admin, request: Request, body: m.UserIn, key: Key = None) -> m.NewUser:
        """Add an account. Its one-time link is told now and never again, also not for a repeated key."""

        def act() -> dict[str, Any]:
            new_id = create_annotator(store, body.name, password=None, role=body.role)
            link = f"/welcome/{create_link(store, new_id, actor=person.annotator_id)}"
            return {**_user(store, new_id).model_dump(), "welcome": link}

        return m.NewUser.model_validate(once(store, person, request, key, body, act, secret=("welcome",)))

    @router.patch("/users/{annotator_id}")
    def change(
        person: Admin, request: Request, annotator_id: m.Id, body: m.UserChange, key: Key = None
    ) -> m.User:
        """Close an account, which ends its sessions and tokens, or open it again."""
        _user(store, annotator_id)
        if annotator_id == person.annotator_id and body.disabled:
            raise Refused(409, "nobody closes their own account", where="path", expected="another admin")

        def act() -> dict[str, Any]:
            set_disabled(store, annotator_id, body.disabled, actor=person.annotator_id)
            return _user(store, annotator_id).model_dump()

        return m.User.model_validate(once(store, person, request, key, body, act))

    return router


def _user(store: Store, annotator_id: str) -> m.User:
    for account in list_accounts(store):
        if account.annotator_id == annotator_id:
            return m.User.model_validate(asdict(account))
    raise missing("account", annotator_id)
