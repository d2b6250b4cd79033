"""Two adapters on one tiny backbone, and an endpoint over them in this process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from feedback_app.listener import listen
from feedback_app.store.engine import Store
from rlhf.core.adapters import save_policy
from rlhf.core.backbone import Backbone
from rlhf.core.run import Launch
from rlhf.core.settings import LoraSettings, ModelSettings
from rlhf.serve.config import ServeConfig
from rlhf.serve.server import Server, Service, make_server


@pytest.fixture(scope="module")
def serving_launch(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Launch:
    """models/base (with a chat template), and adapters that write differently: runs/one, runs/two."""
    root = tmp_path_factory.mktemp("serving")
    shutil.copytree(tiny_model(chat_template=True), root / "models" / "base")
    backbone = Backbone.load(root / "models" / "base", ModelSettings(device="cpu"), name="models/base")
    for number, name in enumerate(("one", "two")):
        role = backbone.add_role(name, LoraSettings(r=4), seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in role.parameters():
                parameter.normal_(std=0.1, generator=generator)
        save_policy(role, root / "runs" / name, backbone)
    return Launch(workspace=root, db=f"sqlite:///{root}/feedback.db")


@dataclass(frozen=True)
class Named:
    """What the registry says of an artifact, as far as serving looks."""

    artifact_id: str
    path: Path


class Names(dict[str, Named]):
    """Names of a registry that a test moves."""

    def __init__(self, launch: Launch, **names: str) -> None:
        super().__init__()
        self.launch = launch
        for name, run in names.items():
            self.move(name, run)

    def move(self, name: str, run: str) -> None:
        self[name] = Named(f"ppo-{run}", self.launch.workspace / "runs" / run)


@pytest.fixture(scope="module")
def names_of(serving_launch: Launch) -> Callable[..., Names]:
    """names_of(champion="one") -> what a registry would say, to be moved."""
    return lambda **names: Names(serving_launch, **names)


class Running:
    """An endpoint that listens in a thread of this process."""

    def __init__(self, service: Service, server: Server, port: int) -> None:
        self.service, self.server = service, server
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def chat(self, text: str, **fields: Any) -> httpx.Response:
        body = {
            "model": "champion",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 8,
        } | fields
        return self.client.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="module")
def start(serving_launch: Launch) -> Iterator[Callable[..., Running]]:
    """start(names, **settings) -> an endpoint over the workspace whose registry says `names`."""
    running: list[tuple[Running, threading.Thread]] = []
    store = Store.open(serving_launch.db)

    def start(names: Names | None = None, *, key: str | None = None, **settings: Any) -> Running:
        config = ServeConfig(**{"port": 0, "model": {"device": "cpu"}, "poll_s": 0.05} | settings)
        service = Service(config, serving_launch, store)
        if names is not None:
            service.catalog._aliases = lambda: dict(names)
        server = make_server(service, key)
        from_thread = threading.Event()
        sockets = [listen("127.0.0.1", 0)]

        def serve() -> None:
            with service:
                service.load()
                from_thread.set()
                server.run(sockets=sockets)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert from_thread.wait(60)
        found = Running(service, server, sockets[0].getsockname()[1])
        running.append((found, thread))
        return found

    yield start
    for one, thread in running:
        one.client.close()
        one.server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
    store.close()
