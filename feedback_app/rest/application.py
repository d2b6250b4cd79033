"""The API as an application of its own, mounted at /api/v1, with its own description and form of errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI

from feedback_app.rest.callers import Anybody
from feedback_app.rest.data import data_router
from feedback_app.rest.errors import STATUSES, install
from feedback_app.rest.people import people_router
from feedback_app.rest.work import work_router
from feedback_app.store.engine import Store

PREFIX = "/api/v1"
_ABOUT = """\
Projects, prompts, completions, tasks, annotations, imports and snapshots of the rating desk.

Sign in with `Authorization: Bearer TOKEN` (made with `rlhf users token NAME --scopes read,write`), or with the
session of a lead or an admin. Writes take an `Idempotency-Key`. Lists come in pages: pass `next` as `cursor`."""


def rest_application(store: Store, snapshot_folder: Path | None) -> FastAPI:
    """The API over a store. `snapshot_folder`: where snapshots that are asked for go, None to make none."""
    app = FastAPI(
        title="rating desk",
        version="1",
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        responses=STATUSES,
        servers=[{"url": PREFIX}],
    )
    install(app)
    app.include_router(work_router(store))
    app.include_router(data_router(store, snapshot_folder))
    app.include_router(people_router(store))

    @app.get("/openapi.json", include_in_schema=False)
    def description(person: Anybody) -> dict[str, Any]:
        schema = app.openapi()
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        return schema

    return app
