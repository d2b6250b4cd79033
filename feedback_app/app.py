"""`rlhf app`: the web server in front of the feedback store.

One FastAPI application: the account pages, the desk at /desk and the leads' pages at /lead (Gradio), each with
its JSON door, /healthz, /metrics; the gate of `security` in front of all of it. One process serves one store; a
second process may serve the same one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Read by gradio when it is imported: no telemetry, no version check, from this program.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from feedback_app.accounts import Person, first_admin_link
from feedback_app.api import desk_router
from feedback_app.config import AppConfig
from feedback_app.desk import Desk
from feedback_app.lead.office import Office
from feedback_app.lead_api import lead_router
from feedback_app.listener import allow_connections, listen, server_settings
from feedback_app.monitoring import Health, Monitoring, Watch
from feedback_app.pages.account import account_router
from feedback_app.pages.desk import desk_blocks, mount_options
from feedback_app.pages.lead.page import lead_blocks, lead_mount_options, lead_only
from feedback_app.rest.application import PREFIX, rest_application
from feedback_app.security import PERSON, Gate
from feedback_app.store.engine import Store, shown_url, sqlite_path
from rlhf.core.errors import BusyError, DataError, RlhfError
from rlhf.core.run import Launch, Workspace

DESK, LEAD = "/desk", "/lead"
STATIC = Path(__file__).parent / "pages" / "static"
# What SIGTERM waits for: requests in flight. The slowest are bounded by the store's own 10 s.
STOP_S = 20


def build_app(store: Store, settings: AppConfig, *, snapshots: Path | None = None) -> FastAPI:
    """The application over an open store. It does not close the store.

    snapshots: the folder for snapshots that are made through the API; None: beside a SQLite store.
    """

    app = FastAPI(title="rating desk", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(
        account_router(store, secure=settings.secure_cookies, trusted_proxy=settings.trusted_proxy)
    )
    app.include_router(desk_router(Desk(store, lease_s=settings.lease_s)))
    app.include_router(lead_router(Office(store)))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    def front() -> Response:
        return RedirectResponse(f"{DESK}/", 303)

    @app.get("/favicon.ico", include_in_schema=False)
    def favicon() -> Response:
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")

    health, monitoring = Health(store), Monitoring(store, trusted_proxy=settings.trusted_proxy)
    app.add_api_route("/healthz", health.page, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", monitoring.page, methods=["GET"], response_model=None)

    app.add_exception_handler(RlhfError, refused)

    @app.exception_handler(RequestValidationError)
    def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        """What is wrong and where. Not what was sent: that may be a password, or text that no JSON can hold."""
        faults = [
            {
                "loc": [_printable(part) for part in fault["loc"]],
                "msg": _printable(fault["msg"]),
                "type": fault["type"],
            }
            for fault in error.errors()
        ]
        return JSONResponse({"detail": faults}, 422)

    beside = sqlite_path(store.engine.url)
    folder = snapshots or (beside.parent / "snapshots" if beside is not None else None)
    app.mount(PREFIX, rest_application(store, folder))  # after the desk's and the leads' routes below /api/v1
    gr.mount_gradio_app(app, desk_blocks(), path=DESK, auth_dependency=_signed_in, **mount_options())
    gr.mount_gradio_app(app, lead_blocks(), path=LEAD, auth_dependency=lead_only, **lead_mount_options())
    app.add_middleware(
        Gate,
        store=store,
        hosts=(settings.host, *settings.public_hosts),
        listens_everywhere=settings.host in ("0.0.0.0", "::"),
        secure=settings.secure_cookies,
    )
    # outermost: it sees refusals too
    app.add_middleware(Watch, monitoring=monitoring, gradio_paths=(DESK, LEAD))
    return app


def run(settings: AppConfig, launch: Launch) -> None:
    """Serve until stopped; SIGINT and SIGTERM finish what is in flight first."""
    allow_connections()
    with Store.open(launch.db) as store:
        listener = listen(settings.host, settings.port)
        port = listener.getsockname()[1]
        host = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::") else settings.host
        print(f"rating desk over {shown_url(launch.db)}")
        first = first_admin_link(store)
        if first is not None:
            name, token = first
            print(f"no administrator has a password yet; for '{name}', once, within 72 hours:")
            print(f"  http://{host}:{port}/welcome/{token}")
        print(f"open http://{host}:{port}/ (Ctrl+C stops)")
        sys.stdout.flush()
        config = server_settings(
            build_app(store, settings, snapshots=Workspace(launch.workspace).snapshots),
            stop_s=STOP_S,
        )
        uvicorn.Server(config).run(sockets=[listener])


def refused(request: Request, error: Exception) -> JSONResponse:
    """An error that people can act on, as an answer of a route that is not the REST API's."""
    status = 422 if isinstance(error, DataError) else 503 if isinstance(error, BusyError) else 409
    return JSONResponse({"detail": str(error)}, status)


def _printable(part: str | int) -> str | int:
    return part.encode("utf-8", "replace").decode() if isinstance(part, str) else part


def _signed_in(request: Request) -> str | None:
    """Gradio's own check, behind the gate's: it must not be async (an async one failed open before 6.24)."""
    person = request.scope.get(PERSON)
    return person.annotator_id if isinstance(person, Person) else None
