"""Several servers over one store, and what happens to what is in flight when one of them ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served.client import PROJECT, Browser, Lost, Page
from served.killable import Mortal
from served.server import free_port
from served.world import faults, log_in_all, make_people, make_tasks
from sqlalchemy import text

from feedback_app.store.engine import Store

PROVE = Path(__file__).resolve().parents[2] / "scripts" / "prove"
pytestmark = pytest.mark.databases("sqlite", "postgresql")


@pytest.fixture
def start(db_url: str) -> Iterator:
    """start() is one more server over the test's store."""
    started: list[Mortal] = []

    def _start() -> Mortal:
        started.append(Mortal(db_url, free_port()))
        return started[-1]

    yield _start
    for server in started:
        server.kill()


async def enter(url: str, cookie: str) -> Page:
    page = Page(Browser(url, cookie=cookie))
    await page.open()
    return page


async def rate_all(page: Page, acknowledged: dict[str, str]) -> None:
    while page.task is not None:
        body = page.answer_body("a", "", 1.0)
        reply = await page.browser.post("/answer", body)
        assert reply["saved"]
        acknowledged[body["key"]] = body["lease"]
        await page.advance()


@pytest.mark.databases("sqlite", "postgresql", long=("sqlite",))
def test_two_servers_share_a_store(store: Store, start) -> None:
    make_tasks(store, 25, overlap=2)
    cookies = log_in_all(store, make_people(store, 6))
    urls = [start().url, start().url]

    async def work() -> dict[str, str]:
        acknowledged: dict[str, str] = {}
        pages = await asyncio.gather(*(enter(urls[i % 2], cookie) for i, cookie in enumerate(cookies)))
        await asyncio.gather(*(rate_all(page, acknowledged) for page in pages))
        elsewhere = Browser(urls[1], cookie=pages[0].browser.cookie)
        assert (await elsewhere.get(""))["me"]["name"] == "rater 0"  # a session is good at both
        return acknowledged

    acknowledged = asyncio.run(work())
    assert len(acknowledged) == 50
    assert faults(store, acknowledged) == []


def test_sigterm_finishes_the_answers_in_flight(store: Store, start) -> None:
    """Somebody else holds the store for a second; the answers that wait for it are still stored and acknowledged."""
    make_tasks(store, 10, overlap=1)
    cookies = log_in_all(store, make_people(store, 3))
    server = start()

    async def work() -> dict[str, str]:
        pages = [await enter(server.url, cookie) for cookie in cookies]
        bodies = [page.answer_body("b", "to the point", 1.0) for page in pages]
        with store.write() as connection:
            if store.dialect == "postgresql":
                connection.execute(text("LOCK TABLE annotations IN EXCLUSIVE MODE"))
            calls = [
                asyncio.create_task(page.browser.post("/answer", body))
                for page, body in zip(pages, bodies, strict=True)
            ]
            await asyncio.sleep(0.4)
            server.process.terminate()
            await asyncio.sleep(0.6)
            assert not any(call.done() for call in calls)
            with pytest.raises(Lost):  # nobody new is let in
                await Browser(server.url).get("")
        replies = await asyncio.gather(*calls)
        assert all(reply["saved"] and not reply["repeated"] for reply in replies)
        return {body["key"]: body["lease"] for body in bodies}

    acknowledged = asyncio.run(work())
    server.process.join(10)
    assert server.process.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert faults(store, acknowledged) == []


@pytest.mark.databases("sqlite", "postgresql", long=("postgresql",))
def test_an_answer_that_was_stored_and_not_acknowledged_is_found_again(
    store: Store, start, db_url: str
) -> None:
    """The server ends by SIGKILL between commit and reply; the page sends the answer again to the next one."""
    make_tasks(store, 3, overlap=1)
    (cookie,) = log_in_all(store, make_people(store, 1))
    mortal = Mortal(db_url, free_port(), die_at=1)

    async def first() -> dict:
        page = await enter(mortal.url, cookie)
        body = page.answer_body("a", "", 1.0)
        with pytest.raises(Lost):
            await page.browser.post("/answer", body)
        return body

    body = asyncio.run(first())
    mortal.process.join(10)
    assert mortal.process.exitcode == -signal.SIGKILL
    reply = asyncio.run(Browser(start().url, cookie=cookie).post("/answer", body))
    assert reply["repeated"] is True
    assert faults(store, {body["key"]: body["lease"]}) == []


@pytest.mark.long
@pytest.mark.databases("sqlite")
def test_two_kills_lose_nothing() -> None:
    command = [
        sys.executable,
        str(PROVE / "kills_app.py"),
        "--kills",
        "2",
        "--databases",
        "sqlite",
        "--raters",
        "4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills, 1 of them between commit and reply" in done.stdout
    assert "0 faults" in done.stdout


@pytest.mark.databases("postgresql")
def test_a_private_postgresql_ends_with_its_owner(db_url: str) -> None:
    """However the owner ends: nothing of it may stay behind on the machine."""
    script = "import served.postgres as p, time; kept = p.Postgres(); print(kept.folder, flush=True); time.sleep(60)"
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROVE)},
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert (folder / "data").is_dir()
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 30
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()


@pytest.mark.parametrize("wrong", ["lost", "doubled", "over quota", "held"])
def test_the_proofs_check_sees_what_is_wrong(store: Store, people, wrong: str) -> None:
    """`faults` is what the proofs rest on: each kind of damage must show."""
    make_tasks(store, 3, overlap=2)
    assert faults(store, {}) == []
    if wrong == "lost":
        assert "acknowledged answers are not there" in faults(store, {"key": "lease"})[0]
        return
    statements = {
        "doubled": "INSERT INTO annotations (annotation_id, task_id, project_id, annotator_id, client_key, version, "
        f"kind, shown_order, created_at) VALUES ('x', 't-1', '{PROJECT}', '{people[0]}', 'k', 1, 'pairwise', '[]', 1)",
        "over quota": "UPDATE tasks SET num_done = 2, overlap = 2 WHERE task_id = 't-1'",
        "held": "UPDATE tasks SET num_held = 1 WHERE task_id = 't-1'",
    }
    with store.write() as connection:
        connection.execute(text(statements[wrong]))
    found = " ".join(faults(store, {}))
    expected = {"doubled": "nobody was told about", "over quota": "num_done", "held": "num_held"}
    assert expected[wrong] in found
