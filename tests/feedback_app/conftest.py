"""A store of its own for each test, small worlds to fill it, a running server and a browser."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# The parts of the proofs lie beside the scripts, not in a package that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))
# And what several test files share lies beside them.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from served.postgres import Missing, Postgres
from sqlalchemy import text

from feedback_app.accounts import create_annotator, log_in
from feedback_app.security import COOKIE
from feedback_app.store.engine import Store
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, ensure_project, set_rubric
from rlhf.core.records import Completion, Prompt

PASSWORD = "correct horse battery"

TEMPLATE = "template_of_stores"
_COUNTER = itertools.count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`@pytest.mark.databases("sqlite", "postgresql")` on a test or module runs it on each; else SQLite alone.

    long: those of them that are left to the long proofs.
    """
    marker = metafunc.definition.get_closest_marker("databases")
    if marker is not None and "db_url" in metafunc.fixturenames:
        long = marker.kwargs.get("long", ())
        urls = [pytest.param(n, marks=[pytest.mark.long] if n in long else []) for n in marker.args]
        metafunc.parametrize("db_url", urls, indirect=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A private server with one migrated database to copy; skipped by name where there can be none."""
    try:
        server = Postgres()
    except Missing as error:
        pytest.skip(str(error))
    with server:
        Store.open(server.create(TEMPLATE)).close()
        yield server


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store in a file, to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "feedback.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def db_url(request: pytest.FixtureRequest, tmp_path: Path, migrated_file: Path) -> Iterator[str]:
    """The URL of a store of the test's own, a copy of an empty one."""
    if getattr(request, "param", "sqlite") == "sqlite":
        shutil.copyfile(migrated_file, tmp_path / "feedback.db")
        yield f"sqlite:///{tmp_path}/feedback.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = f"test_{next(_COUNTER)}"
    yield server.create(name, TEMPLATE)
    server.drop(name)


@pytest.fixture
def store(db_url: str) -> Iterator[Store]:
    with Store.open(db_url) as opened:
        yield opened


@pytest.fixture
def fill():
    """fill(store, n, overlap=1) adds n pairwise tasks to project 'p' and returns their ids."""

    def _fill(
        store: Store, num_tasks: int, *, overlap: int = 1, project: str = "p", simulated: bool = False
    ) -> list[str]:
        prompts = [Prompt.model_validate({"prompt": f"Question {i}?"}) for i in range(num_tasks)]
        pairs = [
            tuple(
                Completion.model_validate(
                    {"prompt_id": p.prompt_id, "text": f"{text} answer {i}", "model_id": "secret-model-7b"}
                )
                for text in ("first", "second")
            )
            for i, p in enumerate(prompts)
        ]
        add_prompts(store, prompts)
        add_completions(store, [c for pair in pairs for c in pair])
        items = [
            (p.prompt_id, tuple(c.completion_id for c in pair))
            for p, pair in zip(prompts, pairs, strict=True)
        ]
        return create_tasks(
            store, project=project, kind="pairwise", items=items, overlap=overlap, simulated=simulated
        )

    return _fill


@pytest.fixture
def people(store: Store) -> list[str]:
    return [create_annotator(store, f"rater {i}", password=None) for i in range(4)]


CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def _install_chromium() -> str | None:
    """Debian's package, where we may install one."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 600}
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update"], env=environment, check=False, **quiet)
    subprocess.run(["apt-get", "install", "-y", "chromium"], env=environment, check=False, **quiet)
    return shutil.which("chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium; skipped by name where there is none (in CI a skip counts as a failure).

    For one file at a time: while its driver runs, the thread has an event loop, and `asyncio.run` refuses to make one.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    path = path or _install_chromium()
    if path is None:
        pytest.skip("no chromium on this machine, and not root with apt to install it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@dataclass
class Server:
    """A running `rlhf app`. `lines` is what it printed when it started."""

    url: str
    db_url: str
    lines: list[str]
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`rlhf app` as people start it, in a process of its own on a free port, over a new store."""
    url = f"sqlite:///{tmp_path_factory.mktemp('served')}/feedback.db"
    command = [sys.executable, "-m", "rlhf.cli", "app", "--port", "0", "--db", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith("open http"):
            break
    assert lines, "the server ended before it said anything"
    assert lines[-1].startswith("open http"), f"the server ended early: {lines}"
    yield Server(lines[-1].split()[1].rstrip("/"), url, lines, process)
    process.terminate()
    assert process.wait(20) in (-signal.SIGTERM, 128 + signal.SIGTERM)


class Watch:
    """Everything on a page that must not happen: dialogs, script errors, requests to other origins."""

    def __init__(self, page: Any, url: str) -> None:
        self.wrong: list[str] = []
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: self.wrong.append(f"script error {error}"))
        page.on(
            "request",
            lambda r: None if r.url.startswith((url, "data:", "blob:")) else self.wrong.append(r.url),
        )


@pytest.fixture(scope="module")
def served_store(server: Server) -> Iterator[Store]:
    """The store of the running server. Each test has a project of its own; the newest one is shown first."""
    with Store.open(server.db_url) as opened:
        yield opened


class Desks:
    """Opens the desk in browser windows; `close` fails if a page did what none may do."""

    def __init__(self, chromium: Any, server: Server, store: Store) -> None:
        self.chromium, self.server, self.store = chromium, server, store
        self.contexts: list[Any] = []
        self.watches: list[Watch] = []

    def open(
        self,
        name: str,
        project: str = "",
        *,
        width: int = 1280,
        height: int = 900,
        scheme: str = "light",
        again: Any = None,
    ) -> Any:
        """The desk of somebody who is logged in; `again=page` is a second tab beside an open one."""
        with self.store.read() as connection:
            query = text("SELECT 1 FROM annotators WHERE name = :name")
            known = connection.execute(query, {"name": name}).first()
        if known is None:
            create_annotator(self.store, name, password=PASSWORD)
        if again is None:
            viewport = {"width": width, "height": height}
            context = self.chromium.new_context(viewport=viewport, color_scheme=scheme)
            self.contexts.append(context)
            token = log_in(self.store, name, PASSWORD, address="127.0.0.1")
            context.add_cookies([{"name": COOKIE, "value": token, "url": self.server.url, "httpOnly": True}])
        else:
            context = again.context
        page = context.new_page()
        page.set_default_timeout(15_000)
        self.watches.append(Watch(page, self.server.url))
        page.goto(f"{self.server.url}/desk/#{project}")
        page.wait_for_selector("#rating-desk:not([data-state=loading])")
        return page

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        assert [wrong for watch in self.watches for wrong in watch.wrong] == []


@pytest.fixture
def open_desk(chromium: Any, server: Server, served_store: Store) -> Iterator[Any]:
    """`Desks.open`, for one test."""
    desks = Desks(chromium, server, served_store)
    yield desks.open
    desks.close()


@pytest.fixture(scope="module")
def desks(chromium: Any, server: Server, served_store: Store) -> Iterator[Desks]:
    """Windows that the tests of a module share."""
    opened = Desks(chromium, server, served_store)
    yield opened
    opened.close()


ATTRIBUTES = [
    {"name": "helpfulness", "definition": "Does it help?", "anchors": {"1": "no", "5": "entirely"}},
    {"name": "truth", "definition": "Is it true?", "anchors": {"1": "no", "5": "yes"}},
]


@pytest.fixture(scope="module")
def fill_kind() -> Any:
    """fill_kind(store, kind, num_tasks, texts, project=kind) adds tasks of any kind; every task has these texts."""

    def _fill(
        store: Store, kind: Any, num_tasks: int, texts: Any = (), *, project: str = "", overlap: int = 1
    ) -> list[str]:
        project = project or kind
        ensure_project(store, project)
        if kind == "scores":
            set_rubric(store, project, "Score each answer by itself.", attributes=ATTRIBUTES)
        items = []
        for i in range(num_tasks):
            prompt = Prompt.model_validate({"prompt": f"Question {i} of {project}?"})
            made = [
                Completion.model_validate(
                    {"prompt_id": prompt.prompt_id, "text": words, "model_id": "secret-model-7b"}
                )
                for words in texts
            ]
            add_prompts(store, [prompt])
            add_completions(store, made)
            items.append((prompt.prompt_id, tuple(c.completion_id for c in made)))
        return create_tasks(store, project=project, kind=kind, items=items, overlap=overlap)

    return _fill
