"""The endpoint: /v1/models, /v1/chat/completions, /v1/completions, /health, /metrics, /monitor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from rlhf.serve.answering import Answering, Reply, answer, events, gather
from rlhf.serve.catalog import Catalog
from rlhf.serve.door import TRUSTED, Door
from rlhf.serve.monitor import Monitor
from rlhf.serve.protocol import ApiError, ChatBody, CompletionBody, read_body


class State:
    """draining: a stop was asked for, and no new request is taken."""

    def __init__(self) -> None:
        self.draining = False


def build_api(
    answering: Answering,
    monitor: Monitor,
    state: State,
    *,
    api_key: str | None = None,
    hosts: tuple[str, ...] = (),
    listens_everywhere: bool = False,
) -> FastAPI:
    """The application over a running engine."""
    app = FastAPI(title="rlhf serve", docs_url=None, redoc_url=None, openapi_url=None)
    catalog = answering.catalog

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        _require_ready(catalog, state)
        return {
            "object": "list",
            "data": [_listed(name, one) for name, one in sorted(catalog.names().items())],
        }

    @app.get("/v1/models/{name}")
    def model(name: str) -> dict[str, Any]:
        _require_ready(catalog, state)
        found = catalog.names().get(name)
        if found is None:
            raise ApiError(404, f"there is no model '{name}'", param="model", code="model_not_found")
        return _listed(name, found)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answered(request, ChatBody, answering, monitor, state)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answered(request, CompletionBody, answering, monitor, state)

    @app.get("/health")
    def health(request: Request) -> JSONResponse:
        return _health(catalog, answering, state, tells_all=request.scope[TRUSTED])

    @app.get("/metrics")
    def metrics() -> Response:
        return monitor.exposition()

    @app.get("/monitor")
    def page() -> HTMLResponse:
        return HTMLResponse(monitor.page())

    @app.exception_handler(ApiError)
    def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return _error(error)

    @app.exception_handler(HTTPException)
    def no_route(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = {404: "there is no such address", 405: "this address takes no"}.get(
            error.status_code, "refused:"
        )
        status = error.status_code if error.status_code in (404, 405) else 400
        return _error(ApiError(status, f"{what} {request.method} {request.url.path}", code="unknown_url"))

    app.add_middleware(
        Door, api_key=api_key, hosts=hosts, listens_everywhere=listens_everywhere, on_request=monitor.answered
    )
    return app


def _require_ready(catalog: Catalog, state: State) -> None:
    if state.draining:
        raise ApiError(503, "the server is stopping", code="draining", retry_after_s=5)
    if not catalog.ready:
        raise ApiError(503, "the model is still loading", code="loading", retry_after_s=2)


def _listed(name: str, served: Any) -> dict[str, Any]:
    """artifact and multi_turn are ours: the model's own name, and False where each question stands alone, since the
    model has no chat template."""
    return {
        "id": name,
        "object": "model",
        "created": int(served.loaded_at),
        "owned_by": "rlhf",
        "artifact": served.key,
        "multi_turn": served.writer.codec.tokenizer.chat_template is not None,
        "max_model_len": served.writer.codec.max_tokens,
    }


def _health(catalog: Catalog, answering: Answering, state: State, *, tells_all: bool) -> JSONResponse:
    engine = answering.engine
    status = "draining" if state.draining else "ok" if catalog.ready else "loading"
    if status == "ok" and catalog.fault:
        status = "degraded"  # it answers, but not with the model that the registry names
    if engine.fault:
        status = "failed"
    body: dict[str, Any] = {"status": status}
    if tells_all:
        load = engine.load
        body |= {
            "models": {route: one.model_id for route, one in catalog.routes().items()},
            "waiting": load.waiting,
            "writing": load.writing,
            "fault": engine.fault or catalog.fault,
        }
    return JSONResponse(body, 200 if status in ("ok", "degraded") else 503)


async def _answered(
    request: Request,
    kind: type[ChatBody] | type[CompletionBody],
    answering: Answering,
    monitor: Monitor,
    state: State,
) -> Response:
    _require_ready(answering.catalog, state)
    body = read_body(kind, await _json(request))
    reply = await run_in_threadpool(answering.open, body, asyncio.get_running_loop())

    def close() -> None:
        answering.close(reply)
        monitor.replied(reply)

    if body.stream:
        return _Events(events(reply), close)
    try:
        await _unless_gone(request, reply)
        return JSONResponse(answer(reply), headers={"x-request-id": reply.id})
    finally:
        close()


async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except ClientDisconnect as error:  # or the door has cut the body off, and says why itself
        raise ApiError(408, "the caller has gone") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is not JSON") from error


async def _unless_gone(request: Request, reply: Reply) -> None:
    """Wait for all choices, but no longer than the caller does."""
    waiting = asyncio.ensure_future(gather(reply))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ApiError(408, "the caller has gone")
        await waiting
    finally:
        for task in (waiting, leaving):
            task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Events(StreamingResponse):
    """Server-sent events. `close` is called however the stream ends: at its end, by a stop, or by a caller who left."""

    def __init__(self, content: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def _error(error: ApiError) -> JSONResponse:
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    return JSONResponse(error.body, error.status, headers=headers)
