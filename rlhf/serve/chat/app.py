"""`rlhf chat`: the web server of the chat, with the desk's accounts, its gate and its look."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any

# Read by gradio when it is imported: no telemetry, no version check, from this program.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Scope

from feedback_app.accounts import Person, create_annotator, first_admin_link, list_accounts
from feedback_app.addresses import client_address
from feedback_app.api import current_person
from feedback_app.app import STATIC, refused
from feedback_app.listener import listen, server_settings
from feedback_app.pages.account import account_router
from feedback_app.security import PERSON, Gate
from feedback_app.store.engine import Store, shown_url
from feedback_app.store.live import prepare_project
from rlhf.core.errors import RlhfError
from rlhf.core.run import Launch
from rlhf.serve.chat.endpoint import Endpoint
from rlhf.serve.chat.page import chat_blocks, chat_mount_options
from rlhf.serve.chat.talks import AskBody, ChooseBody, CorrectBody, Talks, ThumbBody
from rlhf.serve.config import ChatConfig
from rlhf.serve.key import read_key

CHAT = "/chat"
GUEST = "chat-guest"
STOP_S = 20
Me = Annotated[Person, Depends(current_person)]


class GuestGate(Gate):
    """The gate, where whoever has no session is the guest. Host, origin and size are checked all the same."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        guest: Person,
        store: Store,
        hosts: Iterable[str] = (),
        listens_everywhere: bool = False,
        secure: bool = False,
    ) -> None:
        super().__init__(app, store=store, hosts=hosts, listens_everywhere=listens_everywhere, secure=secure)
        self.guest = guest

    async def _recognise(self, scope: Scope, headers: Headers) -> None:
        await super()._recognise(scope, headers)
        path = scope["path"]
        if scope[PERSON] is None and (path == "/" or path.startswith((CHAT, "/api/v1/chat", "/desk"))):
            scope[PERSON] = self.guest


def build_chat(store: Store, config: ChatConfig, endpoint: Endpoint) -> FastAPI:
    """The application over an open store. It closes the endpoint's client, not the store."""
    prepare_project(store, config.project, simulated=config.simulated)
    guest = _guest(store, config) if config.guests else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await endpoint.close()

    app = FastAPI(title="chat", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.include_router(
        account_router(store, secure=config.secure_cookies, trusted_proxy=config.trusted_proxy)
    )
    app.include_router(_router(Talks(store, endpoint, config), guest))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    @app.get("/desk/", include_in_schema=False)  # where the log-in form leads without another address
    def front() -> Response:
        return RedirectResponse(f"{CHAT}/", 303)

    @app.get("/favicon.ico", include_in_schema=False)
    def favicon() -> Response:
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")

    @app.get("/healthz", include_in_schema=False)
    def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    app.add_exception_handler(RlhfError, refused)

    @app.exception_handler(RequestValidationError)
    def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        # Where and what; not what was sent, which may be text that no JSON can hold.
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()
        ]
        return JSONResponse({"detail": "; ".join(faults).encode("utf-8", "replace").decode()}, 422)

    gr.mount_gradio_app(
        app, chat_blocks(config.title), path=CHAT, auth_dependency=_signed_in, **chat_mount_options()
    )
    options: dict[str, Any] = {
        "store": store,
        "hosts": (config.host, *config.public_hosts),
        "listens_everywhere": config.host in ("0.0.0.0", "::"),
        "secure": config.secure_cookies,
    }
    if guest is None:
        app.add_middleware(Gate, **options)
    else:
        app.add_middleware(GuestGate, guest=guest, **options)
    return app


def _router(talks: Talks, guest: Person | None) -> APIRouter:
    router = APIRouter(prefix="/api/v1/chat")

    @router.get("")
    async def overview(me: Me) -> dict[str, Any]:
        is_guest = guest is not None and me.annotator_id == guest.annotator_id
        return await talks.overview(me, is_guest=is_guest)

    @router.post("/ask")
    async def ask(request: Request, me: Me, body: AskBody) -> Response:
        is_guest = guest is not None and me.annotator_id == guest.annotator_id
        # Guests are one account: one of them must not keep all others waiting.
        caller = f"guest at {client_address(request, talks.config.trusted_proxy)}" if is_guest else None
        events = talks.ask(me, body, caller=caller)
        # The first event is asked for here, so that a refusal is an answer and not a broken stream.
        first = await anext(events)

        async def lines() -> AsyncIterator[bytes]:
            async with aclosing(events) as rest:
                yield _line(first)
                async for event in rest:
                    yield _line(event)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @router.post("/thumb")
    def thumb(me: Me, body: ThumbBody) -> dict[str, Any]:
        return talks.thumb(me, body)

    @router.post("/choose")
    def choose(me: Me, body: ChooseBody) -> dict[str, Any]:
        return talks.choose(me, body)

    @router.post("/correct")
    def correct(me: Me, body: CorrectBody) -> dict[str, Any]:
        return talks.correct(me, body)

    return router


def run(config: ChatConfig, launch: Launch) -> None:
    """Serve the chat until stopped; SIGINT and SIGTERM finish what is in flight first."""
    endpoint = Endpoint(
        config.endpoint,
        key=read_key(config.api_key_file),
        model=config.model_name,
        timeout_s=config.timeout_s,
    )
    with Store.open(launch.db) as store:
        app = build_chat(store, config, endpoint)
        listener = listen(config.host, config.port)
        host = "localhost" if config.host in ("127.0.0.1", "0.0.0.0", "::") else config.host
        base = f"http://{host}:{listener.getsockname()[1]}"
        print(
            f"chat with {config.endpoint}; ratings go into project {config.project} of {shown_url(launch.db)}"
        )
        first = None if config.guests else first_admin_link(store)
        if first is not None:
            name, token = first
            print(f"no administrator has a password yet; for '{name}', once, within 72 hours:")
            print(f"  {base}/welcome/{token}")
        print(f"open {base}/ (Ctrl+C stops)")
        sys.stdout.flush()
        uvicorn.Server(server_settings(app, stop_s=STOP_S)).run(sockets=[listener])


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _guest(store: Store, config: ChatConfig) -> Person:
    """The account that guests' ratings are booked on; nobody can log in to it."""
    known = next((account for account in list_accounts(store) if account.name == GUEST), None)
    if known is not None:
        return Person(known.annotator_id, GUEST, "annotator", known.simulated)
    annotator_id = create_annotator(store, GUEST, password=None, simulated=config.simulated)
    return Person(annotator_id, GUEST, "annotator", config.simulated)


def _signed_in(request: Request) -> str | None:
    """Gradio's own check, behind the gate's; not async, as on the desk."""
    person = request.scope.get(PERSON)
    return person.annotator_id if isinstance(person, Person) else None
