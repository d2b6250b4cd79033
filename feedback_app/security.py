"""The gate in front of everything: host, origin, body size, session, Gradio's routes, response headers.

Gradio reflects any Origin with credentials and executes a foreign POST on a host that is not localhost
(measured), so the checks sit outside of it, on every request. A browser always names its Origin on a POST; a
request without one comes from a program, which holds no cookie it was not given.

Our Gradio pages are one HTML component each, which talks to /api/v1. Of Gradio's own routes (uploads, files of
the server, a proxy, event queues, ...) only those that deliver such a page exist behind the gate.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Collection, Iterable
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feedback_app.accounts import who_is
from feedback_app.store.engine import Store
from feedback_app.tokens import bearer_of

COOKIE = "rlhf_session"
PERSON = "rlhf.person"
BEARER = "rlhf.bearer"
MAX_BODY_BYTES = 1 << 20
MAX_UPLOAD_BYTES = 64 << 20
UPLOADS = "/api/v1/imports"
# Bearer tokens open these doors and no others: the desk and the dashboards are for people with a session.
TOKEN_PATHS = ("/api/v1/", "/metrics")
# A second lock in front of what checks the role itself.
LEAD_PATHS = ("/lead", "/api/v1/lead")
LEADS = ("lead", "admin")
SESSION_ONLY_PATHS = ("/api/v1/desk", "/api/v1/lead", "/api/v1/chat")
PUBLIC_PATHS = ("/login", "/welcome/", "/healthz", "/static/", "/favicon.ico")
METRICS = "/metrics"
GRADIO_PATHS = ("/desk", "/lead", "/chat")
GRADIO_PAGES = frozenset({"", "/", "/config", "/theme.css"})
GRADIO_FILES = ("/static/", "/assets/")
BODY_S = 20.0
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

# Gradio needs inline and evaluated scripts; nothing may come from or go to another origin.
GRADIO_CSP = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; font-src 'self' data:; frame-ancestors 'none'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
PLAIN_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


class Gate:
    """ASGI middleware. Puts the `Person` who is asking under scope['rlhf.person'] (None for nobody).

    With a token, scope['rlhf.bearer'] holds its `Bearer`; with a session it is None.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store,
        hosts: Iterable[str] = (),
        listens_everywhere: bool = False,
        secure: bool = False,
    ) -> None:
        self.app, self.store = app, store
        self.hosts = LOOPBACK_NAMES | {host_name(host) for host in hosts}
        self.listens_everywhere, self.secure = listens_everywhere, secure
        self.cookie = cookie_name(secure)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # nothing here uses one
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._with_headers(scope, send)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, answer)
            return
        path = scope["path"]
        scope[PERSON] = None
        scope[BEARER] = None
        if not path.startswith(PUBLIC_PATHS):
            await self._recognise(scope, headers)
            if scope[PERSON] is None and path != METRICS:  # which looks at the address itself
                await self._ask_to_log_in(scope, headers)(scope, receive, answer)
                return
        if not _is_served(scope):
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, answer)
            return
        if path.startswith(LEAD_PATHS) and scope[PERSON].role not in LEADS:
            await JSONResponse({"detail": "this is for leads and administrators"}, 403)(
                scope, receive, answer
            )
            return
        body = LimitedBody(receive, _max_body(path))
        try:
            await self.app(scope, body.receive, body.judged(answer))
        except Exception:
            # Starlette would answer without our headers; after this it only writes the fault to the log.
            await body.fail(scope, answer)
            raise

    async def _recognise(self, scope: Scope, headers: Headers) -> None:
        """Who is asking: by a token where tokens count, else by the cookie, never by both."""
        path, authorization = scope["path"], headers.get("authorization", "")
        takes_tokens = path.startswith(TOKEN_PATHS) and not path.startswith(SESSION_ONLY_PATHS)
        if authorization and takes_tokens:
            kind, _, token = authorization.partition(" ")
            if kind.lower() == "bearer":
                scope[BEARER] = await run_in_threadpool(bearer_of, self.store, token.strip())
            scope[PERSON] = scope[BEARER].person if scope[BEARER] is not None else None
            return
        cookie = cookie_parser(headers.get("cookie", "")).get(self.cookie)
        scope[PERSON] = await run_in_threadpool(who_is, self.store, cookie)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not is_our_host(host, self.hosts, everywhere=self.listens_everywhere):
            return 421, "this host name is not served here; see --public-hosts"
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin, host):
            return 403, "requests from other sites are refused"
        if origin is None and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            safe = scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
            if not safe:
                return 403, "requests from other sites are refused"
        length = headers.get("content-length", "0")
        max_bytes = _max_body(scope["path"])
        if not (length.isdecimal() and len(length) <= 12) or int(length) > max_bytes:
            return 413, f"a request may have at most {max_bytes} bytes"
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.netloc == host and parts.scheme in (("https",) if self.secure else ("http", "https"))

    def _ask_to_log_in(self, scope: Scope, headers: Headers) -> ASGIApp:
        wants_page = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
        if wants_page:
            return RedirectResponse(f"/login?next={quote(scope['path'], safe='/')}", 303)
        return JSONResponse({"detail": "log in first"}, 401)

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        path = scope["path"]
        is_gradio = _gradio_part(path) is not None
        keeps = path.startswith("/static/") or (_gradio_part(path) or "").startswith(GRADIO_FILES)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in [key for key in headers if key.lower().startswith("access-control-")]:
                    del headers[name]
                headers["content-security-policy"] = GRADIO_CSP if is_gradio else PLAIN_CSP
                headers["x-content-type-options"] = "nosniff"
                headers["x-frame-options"] = "DENY"
                # not 'no-referrer': it turns the Origin of a form into 'null'
                headers["referrer-policy"] = "same-origin"
                headers["cross-origin-opener-policy"] = "same-origin"
                headers["cross-origin-resource-policy"] = "same-origin"
                headers["permissions-policy"] = "camera=(), microphone=(), geolocation=()"
                # Chromium looks up the hosts of all links of a page, which tells them that it was opened.
                headers["x-dns-prefetch-control"] = "off"
                if not keeps:
                    headers["cache-control"] = "no-store"
                if self.secure:
                    headers["strict-transport-security"] = "max-age=31536000"
            await send(message)

        return answer


def cookie_name(secure: bool) -> str:
    """Behind TLS the name itself forbids that a neighbouring host sets the cookie (and so chooses the session)."""
    return f"__Host-{COOKIE}" if secure else COOKIE


def host_name(host: str) -> str:
    """The host without its port, lower case; brackets of an IPv6 address are removed."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "").lower() if parts.netloc == host and "@" not in host else ""
    except ValueError:
        return ""


def is_our_host(host: str, names: Collection[str], *, everywhere: bool) -> bool:
    """Names must be ours (a rebound DNS name is not); where we listen everywhere a bare address cannot be rebound."""
    name = host_name(host)
    if name in names:
        return True
    if not everywhere:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _gradio_part(path: str) -> str | None:
    """What follows the mount of a Gradio page, None elsewhere."""
    for mount in GRADIO_PATHS:
        if path == mount or path.startswith(f"{mount}/"):
            return path[len(mount) :]
    return None


def _is_served(scope: Scope) -> bool:
    part = _gradio_part(scope["path"])
    if part is None:
        return True
    return scope["method"] in ("GET", "HEAD") and (part in GRADIO_PAGES or part.startswith(GRADIO_FILES))


def _max_body(path: str) -> int:
    return MAX_UPLOAD_BYTES if path == UPLOADS else MAX_BODY_BYTES


class LimitedBody:
    """A request's body with a limit on its bytes (it may not say how many come) and on the pauses within it."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self.max_bytes = receive, max_bytes
        self.num_bytes, self.has_ended, self.has_begun_reply = 0, False, False
        self.refusal: tuple[int, str] | None = None

    async def receive(self) -> Message:
        """The next piece; a disconnect once a limit is passed."""
        if self.has_ended:  # what comes now is the end of the connection, which may take as long as the reply
            return await self._receive()
        try:
            async with asyncio.timeout(BODY_S):
                message = await self._receive()
        except TimeoutError:
            self.refusal = 408, f"nothing of the request came for {BODY_S:g} s"
        else:
            self.num_bytes += len(message.get("body", b""))
            self.has_ended = not message.get("more_body", False)
            if self.num_bytes <= self.max_bytes:
                return message
            self.refusal = 413, f"a request may have at most {self.max_bytes} bytes"
        self.has_ended = True
        return {"type": "http.disconnect"}

    def judged(self, send: Send, refused: Callable[[str, int], Response] = PlainTextResponse) -> Send:
        """`send` that replaces whatever a handler makes of a broken-off body by the reason."""
        is_replaced = False

        async def judged(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start":
                self.has_begun_reply = True
                if self.refusal is not None:
                    is_replaced = True
                    status, detail = self.refusal
                    await refused(detail, status)({"type": "http"}, self._receive, send)
            if not is_replaced:
                await send(message)

        return judged

    async def fail(self, scope: Scope, send: Send) -> None:
        """The answer to a request whose handler failed."""
        if not self.has_begun_reply:
            status, detail = self.refusal or (500, "the server failed at this request; its log says why")
            await JSONResponse({"detail": detail}, status)(scope, self._receive, send)
