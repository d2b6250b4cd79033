"""What is watched while models are served: figures for Prometheus, rows for the page, both without any text.

Each request leaves one row (when, which model, how long, how many tokens, the hash bins of its words) in
serving/requests.jsonl of the workspace, each score one in serving/scores.jsonl; thumbs and choices are read from the
feedback store.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from feedback_app.store.engine import Store
from rlhf.serve.answering import Reply, messages_of
from rlhf.serve.catalog import Catalog
from rlhf.serve.drift import PromptFeatures
from rlhf.serve.engine import Engine
from rlhf.serve.journal import Journal
from rlhf.serve.monitor_page import Figures, monitor_page
from rlhf.serve.thumbs import live_ratings

MAX_ROWS = 20_000
MAX_LOADS = 3600
REFERENCE_PROMPTS = 500
PAGE_S = 5.0
BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROUTES = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics", "/monitor")
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})


@dataclass(frozen=True)
class Loads:
    """When (seconds since the epoch), how many waited and how many were written."""

    at: float
    waiting: int
    writing: int


class _Prometheus:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "rlhf_serve_requests", "HTTP requests answered.", ("route", "method", "status"), registry=registry
        )
        self.seconds = Histogram(
            "rlhf_serve_request_seconds",
            "Until the last byte.",
            ("route",),
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.first_token = Histogram(
            "rlhf_serve_first_token_seconds",
            "From a request to its first token.",
            ("model",),
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.tokens = Counter(
            "rlhf_serve_tokens", "Tokens read and written.", ("model", "kind"), registry=registry
        )
        self.finishes = Counter(
            "rlhf_serve_completions", "Completions by how they ended.", ("model", "finish"), registry=registry
        )
        self.events = Counter(
            "rlhf_serve_events", "Switches, unloads and faults of models.", ("kind",), registry=registry
        )
        self.scores = Histogram(
            "rlhf_serve_scores",
            "Reward-model scores of a share of the answers.",
            ("model",),
            buckets=(-8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8),
            registry=registry,
        )
        self.waiting = Gauge("rlhf_serve_waiting", "Completions that wait for a place.", registry=registry)
        self.writing = Gauge("rlhf_serve_writing", "Completions being written.", registry=registry)
        self.ready = Gauge("rlhf_serve_ready", "1 when a model is loaded.", registry=registry)


class Monitor:
    """folder: of the journals; store: for thumbs and choices; reference: features of the training prompts."""

    def __init__(
        self,
        folder: Path,
        *,
        store: Store | None = None,
        project: str = "live",
        reference: Sequence[PromptFeatures] = (),
    ) -> None:
        self._prometheus = _Prometheus()
        self._requests, self._scored = Journal(folder / "requests.jsonl"), Journal(folder / "scores.jsonl")
        self.rows: deque[dict[str, Any]] = deque(self._requests.newest(MAX_ROWS), maxlen=MAX_ROWS)
        self.scores: deque[dict[str, Any]] = deque(self._scored.newest(MAX_ROWS), maxlen=MAX_ROWS)
        self.loads: deque[Loads] = deque(maxlen=MAX_LOADS)
        self.events: deque[tuple[float, str, str]] = deque(maxlen=200)
        self._reference, self._named_reference = list(reference), bool(reference)
        self._store, self._project = store, project
        self._catalog: Catalog | None = None
        self._engine: Engine | None = None
        self._page, self._page_at = "", -math.inf
        self._drawing = threading.Lock()
        self.on_reply: Callable[[Reply], None] = lambda reply: None

    def watch(self, catalog: Catalog, engine: Engine) -> None:
        """Whose load and models are shown."""
        self._catalog, self._engine = catalog, engine

    def close(self) -> None:
        self._requests.close()
        self._scored.close()

    # ---- what happens ------------------------------------------------------------------------------------

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request has ended."""
        route = next((known for known in ROUTES if path == known or path.startswith(f"{known}/")), "other")
        method = method if method in METHODS else "other"
        self._prometheus.requests.labels(route, method, str(status)).inc()
        self._prometheus.seconds.labels(route).observe(seconds)

    def replied(self, reply: Reply) -> None:
        """A request for completions has ended, whatever the reason."""
        model, figures = reply.choice.served.model_id, self._prometheus
        first = min((job.times.first_token for job in reply.jobs), default=math.nan)
        admitted = min((job.times.admitted for job in reply.jobs), default=math.nan)
        asked = min(job.times.asked for job in reply.jobs)
        features = PromptFeatures.of(
            "\n".join(m.content for m in messages_of(reply.body) if m.role == "user")
        )
        state = "failed" if reply.status == 500 else "gone" if reply.gone else "ok"
        row: dict[str, Any] = {
            "at": round(time.time(), 3),
            "model": model,
            "route": reply.choice.route,
            "state": state,
            "seconds": round(time.monotonic() - asked, 4),
            "first_token_s": _rounded(first - asked),
            "queue_s": _rounded(admitted - asked),
            "prompt_tokens": reply.num_prompt_tokens,
            "completion_tokens": reply.num_completion_tokens,
            "finishes": [finish or state for finish in reply.finishes],
            "stream": bool(reply.body.stream),
            "num_words": features.num_words,
            "bins": list(features.bins),
        }
        self.rows.append(row)
        self._requests.add(row)
        figures.tokens.labels(model, "prompt").inc(reply.num_prompt_tokens)
        figures.tokens.labels(model, "completion").inc(reply.num_completion_tokens)
        for finish in row["finishes"]:
            figures.finishes.labels(model, finish).inc()
        if math.isfinite(first):
            figures.first_token.labels(model).observe(first - asked)
        if state == "ok":
            self.on_reply(reply)

    def scored(self, model: str, route: str, score: float) -> None:
        """A reward model has scored an answer."""
        row = {"at": round(time.time(), 3), "model": model, "route": route, "score": score}
        self.scores.append(row)
        self._scored.add(row)
        self._prometheus.scores.labels(model).observe(score)

    def event(self, kind: str, text: str) -> None:
        """A model was switched, let go, or could not be loaded."""
        self.events.append((time.time(), kind, text))
        self._prometheus.events.labels(kind).inc()
        with contextlib.suppress(OSError):  # nobody may be reading any more, as after `| head`
            print(f"serve: {kind}: {text}", flush=True)

    def tick(self) -> None:
        """Note the load; called about once a second."""
        if self._engine is not None:
            load = self._engine.load
            self.loads.append(Loads(time.time(), load.waiting, load.writing))

    # ---- what is shown -----------------------------------------------------------------------------------

    def exposition(self) -> Response:
        """For Prometheus."""
        figures = self._prometheus
        if self._engine is not None and self._catalog is not None:
            load = self._engine.load
            figures.waiting.set(load.waiting)
            figures.writing.set(load.writing)
            figures.ready.set(float(self._catalog.ready))
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    def page(self) -> str:
        """The page with plots, drawn at most every PAGE_S seconds."""
        with self._drawing:
            if time.monotonic() - self._page_at > PAGE_S:
                self._page, self._page_at = monitor_page(self.figures()), time.monotonic()
            return self._page

    def figures(self) -> Figures:
        rows = list(self.rows)
        features = [PromptFeatures(row["num_words"], tuple(row["bins"])) for row in rows]
        reference, live = self._reference, features
        if not self._named_reference:
            reference, live = features[:REFERENCE_PROMPTS], features[REFERENCE_PROMPTS:]
        catalog = self._catalog
        return Figures(
            now=time.time(),
            rows=rows,
            scores=list(self.scores),
            loads=[(load.at, load.waiting, load.writing) for load in list(self.loads)],
            events=list(self.events),
            models={} if catalog is None else {n: one.model_id for n, one in catalog.routes().items()},
            fault="" if catalog is None else catalog.fault,
            canary_share=0.0 if catalog is None else catalog.canary_share,
            reference=reference,
            live=live,
            named_reference=self._named_reference,
            ratings=live_ratings(self._store, self._project),
        )


def _rounded(seconds: float) -> float | None:
    return round(seconds, 4) if math.isfinite(seconds) else None
