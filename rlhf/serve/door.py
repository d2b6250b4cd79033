"""In front of the endpoint: host, origin, key, size of the body; every request is counted and timed.

There is no CORS: a page of another site cannot call this, and one that has taken over a host name (DNS rebinding)
meets a name that is not served. A key, where one is set, opens everything but /health,
which tells its status only to those who have none.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feedback_app.security import LOOPBACK_NAMES, PLAIN_CSP, LimitedBody, host_name, is_our_host
from rlhf.serve.protocol import ApiError

MAX_BODY_BYTES = 4 << 20
# The page of plots holds its style and its pictures itself.
PAGE_CSP = PLAIN_CSP.replace("style-src 'self'", "style-src 'unsafe-inline'")
OPEN_PATHS = ("/health",)
TRUSTED = "rlhf.trusted"  # in the scope: whether the caller has the key, or needs none


class Door:
    """ASGI middleware. on_request: called with path, method, status and seconds of each request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None = None,
        hosts: Iterable[str] = (),
        listens_everywhere: bool = False,
        on_request: Callable[[str, str, int, float], None] = lambda path, method, status, seconds: None,
    ) -> None:
        self.app, self.api_key, self.on_request = app, api_key, on_request
        self.hosts = LOOPBACK_NAMES | {host_name(host) for host in hosts}
        self.listens_everywhere = listens_everywhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # nothing here uses one
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _guard(MutableHeaders(scope=message), scope["path"])
            await send(message)

        try:
            await self._let_in(scope, receive, answered)
        finally:
            self.on_request(scope["path"], scope["method"], status, time.perf_counter() - began)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            extra = {}
            if refusal.status == 401:
                # A browser asks for a password, which is how a person opens /monitor.
                extra = {"www-authenticate": 'Basic realm="key as the password", charset="UTF-8"'}
            await JSONResponse(refusal.body, refusal.status, headers=extra)(scope, receive, send)
            return
        body = LimitedBody(receive, MAX_BODY_BYTES)
        begun = False

        async def judged(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
            await send(message)

        try:
            await self.app(scope, body.receive, body.judged(judged, _broken_off))
        except Exception:
            if not begun:  # the fault goes to the log; the caller gets an answer of the usual shape
                fault = ApiError(500, "the server failed at this request; its log says why")
                await JSONResponse(fault.body, 500)(scope, receive, send)
            raise

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if not is_our_host(host, self.hosts, everywhere=self.listens_everywhere):
            return ApiError(421, "this host name is not served here; see --public-hosts")
        origin = headers.get("origin")
        if origin is not None and _site(origin) != host:
            return ApiError(403, "pages of other sites may not call this")
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return ApiError(403, "pages of other sites may not call this")
        length = headers.get("content-length", "0")
        if not (length.isdecimal() and len(length) <= 12) or int(length) > MAX_BODY_BYTES:
            return ApiError(413, f"a request may have at most {MAX_BODY_BYTES} bytes")
        scope[TRUSTED] = self.api_key is None or secrets.compare_digest(
            _key_of(headers).encode(), self.api_key.encode()
        )
        if not scope[TRUSTED] and scope["path"] not in OPEN_PATHS:
            return ApiError(
                401, "expected the server's key: Authorization: Bearer KEY", code="invalid_api_key"
            )
        return None


def _site(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _key_of(headers: Headers) -> str:
    """The key of a request: a bearer's token, or the password that a browser sends."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _broken_off(detail: str, status: int) -> JSONResponse:
    return JSONResponse(ApiError(status, detail).body, status)


def _guard(headers: MutableHeaders, path: str) -> None:
    headers["content-security-policy"] = PAGE_CSP if path == "/monitor" else PLAIN_CSP
    headers["x-content-type-options"] = "nosniff"
    headers["x-frame-options"] = "DENY"
    headers["referrer-policy"] = "same-origin"
    if "cache-control" not in headers:
        headers["cache-control"] = "no-store"
