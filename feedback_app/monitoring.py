"""Prometheus metrics at /metrics and the health check at /healthz: what the server does, in a registry of its own.

    rlhf_requests_total{method,route,status}     requests by route template, never by the path that was sent
    rlhf_request_seconds{method,route}           their latency, up to the last byte
    rlhf_open_tasks, rlhf_leases_held, rlhf_answers, rlhf_sessions, rlhf_db_pool_in_use, rlhf_db_pool_size

Labels come from this program alone (route templates, known methods), so that nobody can fill the memory of
whoever collects them. The figures of the store are read at most every 5 s. The page is open to a collector
on this machine and to tokens of scope `metrics`; behind a reverse proxy every client seems to be on this
machine, so a forwarded request, a public host name or --trusted-proxy always needs the token.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feedback_app.security import BEARER, LOOPBACK_NAMES
from feedback_app.store.engine import Store
from rlhf.core.errors import BusyError

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")
STORE_FIGURES_S = 5.0
HEALTH_S = 2.0
# Takes the writer's lock and looks at a table, and changes nothing: a read-only or locked store fails here.
_CHECK_WRITE = text("UPDATE alembic_version SET version_num = version_num WHERE 1 = 0")

_FIGURES = {
    "rlhf_open_tasks": ("Tasks with a free place.", "SELECT count(*) FROM tasks WHERE is_open"),
    "rlhf_leases_held": (
        "Places held by somebody now.",
        "SELECT count(*) FROM leases WHERE state = 'active' AND expires_at >= :now",
    ),
    "rlhf_answers": ("Answers in the store, corrections included.", "SELECT count(*) FROM annotations"),
    "rlhf_sessions": (
        "Sessions that are open.",
        "SELECT count(*) FROM sessions WHERE revoked_at IS NULL AND expires_at > :now",
    ),
}


class Monitoring:
    """The figures of one server over one store."""

    def __init__(self, store: Store, *, trusted_proxy: bool = False) -> None:
        self.trusted_proxy = trusted_proxy
        self.registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "rlhf_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "rlhf_request_seconds",
            "Time until the last byte of the answer.",
            ("method", "route"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.registry.register(_StoreFigures(store))

    def page(self, request: Request) -> Response:
        """The exposition for Prometheus, for those who may read it."""
        bearer = request.scope.get(BEARER)
        if bearer is None and not self._is_local(request):
            return JSONResponse({"detail": "expected a token of scope 'metrics'"}, 401)
        if bearer is not None and "metrics" not in bearer.scopes:
            return JSONResponse({"detail": "this token has no scope 'metrics'"}, 403)
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def _is_local(self, request: Request) -> bool:
        if self.trusted_proxy or any(name in request.headers for name in FORWARDED):
            return False
        if (request.url.hostname or "") not in LOOPBACK_NAMES or "authorization" in request.headers:
            return False
        try:
            return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
        except ValueError:
            return False


class Health:
    """/healthz: the store can be read and written. Anyone may ask, so it looks at most every 2 s."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._looked_at, self._fault = float("-inf"), ""

    def page(self) -> Response:
        """200 {"status": "ok"}, or 503 with what does not work."""
        with self._lock:
            if time.monotonic() - self._looked_at > HEALTH_S:
                self._fault = self._look()
                self._looked_at = time.monotonic()
            fault = self._fault
        return (
            JSONResponse({"status": "failing", "detail": fault}, 503)
            if fault
            else JSONResponse({"status": "ok"})
        )

    def _look(self) -> str:
        try:
            with self.store.write() as connection:
                connection.execute(_CHECK_WRITE)
        except (DBAPIError, BusyError) as error:
            return f"the store takes no write ({type(error).__name__})"
        return ""


class Watch:
    """ASGI middleware, outermost: counts and times every request, refused ones too."""

    def __init__(self, app: ASGIApp, *, monitoring: Monitoring, gradio_paths: tuple[str, ...]) -> None:
        self.app, self.monitoring, self.gradio_paths = app, monitoring, gradio_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = route_of(scope, self.gradio_paths)
            self.monitoring.requests.labels(method, route, str(status)).inc()
            self.monitoring.seconds.labels(method, route).observe(time.perf_counter() - began)


def route_of(scope: Scope, gradio_paths: tuple[str, ...]) -> str:
    """The template that answered, such as /api/v1/projects/{project}; never what the client sent."""
    path = scope["path"]
    for prefix in (*gradio_paths, "/static"):
        if path == prefix or path.startswith(prefix + "/"):
            return f"{prefix}/*"
    template = getattr(scope.get("route"), "path", None)
    if not isinstance(template, str) or not template:
        return "other"
    mounted = scope.get("root_path", "")
    return template if template.startswith(mounted) else mounted + template


class _StoreFigures(Collector):
    """Gauges that are read from the store when somebody asks, at most every few seconds."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._values: dict[str, int] = {}
        self._read_at = float("-inf")

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at > STORE_FIGURES_S:
                self._values = self._read()
                self._read_at = time.monotonic()
            values = dict(self._values)
        for name, (meaning, _) in _FIGURES.items():
            yield GaugeMetricFamily(name, meaning, value=values[name])
        pool = self.store.engine.pool
        for name, meaning, read in (
            ("rlhf_db_pool_in_use", "Database connections in use.", "checkedout"),
            ("rlhf_db_pool_size", "Database connections kept open.", "size"),
        ):
            yield GaugeMetricFamily(name, meaning, value=float(getattr(pool, read)()))

    def _read(self) -> dict[str, int]:
        now = time.time()
        with self.store.read() as connection:
            return {
                name: int(
                    connection.execute(text(query), {"now": now} if ":now" in query else {}).scalar_one()
                )
                for name, (_, query) in _FIGURES.items()
            }
