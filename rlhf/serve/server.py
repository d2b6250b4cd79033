"""`rlhf serve`: the endpoint as a process.

It listens at once and answers 503 until the model is loaded. SIGTERM and SIGINT drain: nobody new is let in, requests
in flight are answered (for at most --drain-s), then the process ends with 143 or 130.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn

from feedback_app.listener import allow_connections, listen, server_settings
from feedback_app.security import LOOPBACK_NAMES
from feedback_app.store.engine import Store
from rlhf.core.errors import ConfigError, Stopped
from rlhf.core.files import read_jsonl
from rlhf.core.inputs import find_path
from rlhf.core.records import Prompt
from rlhf.core.run import Launch, Workspace
from rlhf.loop.models import ModelPool
from rlhf.loop.registry import Registry
from rlhf.serve.answering import Answering
from rlhf.serve.api import State, build_api
from rlhf.serve.catalog import Catalog
from rlhf.serve.config import ServeConfig
from rlhf.serve.drift import PromptFeatures
from rlhf.serve.engine import Engine
from rlhf.serve.key import KEY_VARIABLE, read_key
from rlhf.serve.monitor import Monitor
from rlhf.serve.scoring import Scoring

MAX_REFERENCE = 20_000
TICK_S = 1.0


class Service:
    """Everything that works behind the endpoint. `with` starts its threads and ends them."""

    def __init__(self, config: ServeConfig, launch: Launch, store: Store) -> None:
        self.config, self.state = config, State()
        self.fault: BaseException | None = None
        self._pool = ModelPool(config.model, launch)
        self.monitor = Monitor(
            launch.workspace / "serving",
            store=store,
            project=config.live_project,
            reference=_reference(config, launch),
        )
        registry = Registry(store, Workspace(launch.workspace))
        self.catalog = Catalog(
            self._pool,
            aliases=registry.aliases if config.model_path is None else None,
            fixed=config.model_path,
            canary_share=config.canary_share,
            on_event=self.monitor.event,
        )
        self.engine = Engine(
            max_rows=config.max_batch_rows, max_tokens=config.max_batch_tokens, max_waiting=config.max_waiting
        )
        self.monitor.watch(self.catalog, self.engine)
        self.answering = Answering(self.catalog, self.engine, default_limit=config.default_max_tokens)
        self._scoring: Scoring | None = None
        self._ended, self._loaded = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def load(self) -> None:
        """The first look at the names, and the reward model. Raises what keeps anything from being served."""
        self.catalog.look()
        if self.config.score_with is not None:
            scorer = self._pool.scorer(self.config.score_with)
            self._scoring = Scoring(scorer, self.config.score_share, self.monitor.scored)
            self._scoring.start()
            self.monitor.on_reply = self._scoring.offer
        self._loaded.set()

    def __enter__(self) -> Service:
        self.engine.start()
        for name, period_s, work in (
            ("names", self.config.poll_s, self._follow),
            ("load", TICK_S, self.monitor.tick),
        ):
            thread = threading.Thread(target=self._every, args=(period_s, work), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(5.0)
        self.engine.stop()
        if self._scoring is not None:
            self._scoring.stop()
        self.monitor.close()

    def _every(self, period_s: float, work: Any) -> None:
        told = ""
        while not self._ended.wait(period_s):
            try:
                work()
            except Exception as error:  # it must not be the last look
                if told != (told := repr(error)):
                    traceback.print_exc(file=sys.stderr)

    def _follow(self) -> None:
        if self._loaded.is_set():
            self.catalog.look()


class Server(uvicorn.Server):
    """uvicorn that leaves signals to us: the first drains, a second one ends at once."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self.state, self.received = state, 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.received = self.received or sig
        self.state.draining = self.should_exit = True


def run(config: ServeConfig, launch: Launch) -> None:
    """Serve until stopped. Raises Stopped after a signal, and what kept the first model from being loaded."""
    key = read_key(config.api_key_file)
    check_exposure(config.host, key)
    allow_connections()
    with Store.open(launch.db) as store, Service(config, launch, store) as service:
        listener = listen(config.host, config.port)
        server = make_server(service, key)
        _say_where(config, listener)
        loader = threading.Thread(target=_load, args=(service, server), name="loading", daemon=True)
        loader.start()
        server.run(sockets=[listener])
        if service.fault is not None:
            raise service.fault
    if server.received:
        raise Stopped(
            f"stopped by {signal.Signals(server.received).name} after requests in flight were answered",
            server.received,
        )


def make_server(service: Service, key: str | None) -> Server:
    """The endpoint of a service, not yet listening."""
    config = service.config
    app = build_api(
        service.answering,
        service.monitor,
        service.state,
        api_key=key,
        hosts=(config.host, *config.public_hosts),
        listens_everywhere=config.host in ("0.0.0.0", "::"),
    )
    return Server(server_settings(app, stop_s=int(config.drain_s)), service.state)


def _load(service: Service, server: Server) -> None:
    try:
        service.load()
    except BaseException as error:
        service.fault = error
        server.should_exit = True
        return
    models = ", ".join(f"{name} = {one.model_id}" for name, one in service.catalog.routes().items())
    print(f"serve: ready: {models}", flush=True)


def check_exposure(host: str, key: str | None) -> None:
    """Raises ConfigError for an endpoint that everybody in the network could use."""
    if host not in LOOPBACK_NAMES and key is None:
        raise ConfigError(
            f"--host {host} is open to the network and needs a key: --api-key-file or {KEY_VARIABLE}"
        )


def _say_where(config: ServeConfig, listener: socket.socket) -> None:
    host = "localhost" if config.host in (*LOOPBACK_NAMES, "0.0.0.0", "::") else config.host
    base = f"http://{host}:{listener.getsockname()[1]}"
    print(f"endpoint {base}/v1, figures {base}/monitor (Ctrl+C stops)")
    sys.stdout.flush()


def _reference(config: ServeConfig, launch: Launch) -> list[PromptFeatures]:
    if config.reference_prompts is None:
        return []
    path = find_path(config.reference_prompts, launch)
    features = []
    for prompt in read_jsonl(path, Prompt):
        features.append(PromptFeatures.of("\n".join(m.content for m in prompt.messages if m.role == "user")))
        if len(features) == MAX_REFERENCE:
            break
    return features
