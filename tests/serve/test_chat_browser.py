"""The chat in a real browser: what a person does by keyboard, mouse and on a phone, and what the store then holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from feedback_app.listener import listen
from feedback_app.store.annotations import judgements
from feedback_app.store.engine import Store
from rlhf.serve.chat.app import build_chat
from rlhf.serve.chat.endpoint import Endpoint
from rlhf.serve.config import ChatConfig
from tests.feedback_app.conftest import chromium  # noqa: F401 - a fixture
from tests.serve.fake_endpoint import Fake

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)

HOSTILE = "<img src=x onerror=alert(1)> ![y](http://evil.example/z.png) [x](javascript:alert(3))"


class Chat:
    """A chat for guests over a fake endpoint, both listening in threads of this process."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(f"sqlite:///{folder}/feedback.db")
        self.fake = Fake("champion", "candidate")
        self.servers: list[tuple[uvicorn.Server, threading.Thread]] = []
        model = self._start(self.fake.app)
        config = ChatConfig(guests=True, compare_share=0, title="helper")
        self.url = self._start(build_chat(self.store, config, Endpoint(f"{model}/v1")))

    def _start(self, app: Any) -> str:
        listener = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        self.servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def close(self) -> None:
        for server, thread in self.servers:
            server.should_exit = True
            thread.join(10)
        self.store.close()

    def kinds(self) -> list[str]:
        return sorted(judgement.kind for judgement in judgements(self.store, "live"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    opened = Chat(tmp_path_factory.mktemp("chat"))
    yield opened
    opened.close()


def open_page(browser: Any, chat: Chat, **options: Any) -> tuple[Any, list[str]]:
    """The page, and a list of what must not happen on it."""
    page = browser.new_context(**options).new_page()
    wrong: list[str] = []
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(f"script error {error}"))
    page.on(
        "request",
        lambda r: wrong.append(r.url) if not r.url.startswith((chat.url, "data:", "blob:")) else None,
    )
    page.set_default_timeout(15_000)
    page.goto(f"{chat.url}/chat/")
    page.wait_for_selector("#chat-page[data-state=ready]")
    return page, wrong


def test_a_conversation_by_keyboard(chromium: Any, chat: Chat) -> None:  # noqa: F811
    page, wrong = open_page(chromium, chat, viewport={"width": 1280, "height": 900})
    page.keyboard.type(f"Hello {HOSTILE}")
    page.keyboard.press("Enter")
    page.wait_for_selector(".ct-answer .rt strong")  # the answer's Markdown, rendered
    assert page.query_selector(".ct-answer img") is None
    assert page.query_selector(".ct-answer a[href^=javascript]") is None
    assert HOSTILE in page.inner_text(".ct-mine")
    assert "artifact" not in page.content()
    assert "runs/" not in page.content()

    page.keyboard.press("Escape")  # leaves the field, so that letters rate
    page.keyboard.press("g")
    page.wait_for_selector(".ct-saved:has-text('Saved')")
    assert page.get_attribute("button.ct-act:has-text('Good')", "aria-pressed") == "true"
    page.keyboard.press("c")
    page.keyboard.press("Control+a")
    page.keyboard.type("It should have said *this*.")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".ct-saved:has-text('Correction saved')")
    assert page.inner_text(".ct-answer em") == "this"
    assert chat.kinds() == ["demonstration", "thumbs"]

    page.keyboard.press("/")
    page.click("#ct-two")
    page.fill("#ct-text", "And which of two?")
    page.click("#ct-send")
    page.wait_for_selector(".ct-choice")
    assert page.inner_text(".ct-answers[data-two] .ct-answer:nth-child(1)").startswith("A")
    found = axe.Axe().run(page).response["violations"]
    assert [(fault["id"], fault["impact"]) for fault in found] == []
    page.fill("#ct-text", "not yet")
    page.keyboard.press("Enter")
    assert "Choose one of the two answers first" in page.inner_text("#ct-status")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.wait_for_selector(".ct-answer[data-chosen=yes]:nth-child(2)")
    page.wait_for_selector(".ct-choice", state="detached")
    assert chat.kinds() == ["demonstration", "pairwise", "thumbs"]
    # The conversation went on with the correction.
    assert chat.fake.asked[-1]["messages"][1]["content"] == "It should have said *this*."
    assert wrong == []
    page.context.close()


def test_a_failure_keeps_the_question(chromium: Any, chat: Chat) -> None:  # noqa: F811
    page, wrong = open_page(chromium, chat, viewport={"width": 1280, "height": 900})
    chat.fake.fail = "break"
    page.fill("#ct-text", "Will it answer?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ct-status:has-text('the model fell over')")
    assert page.input_value("#ct-text") == "Will it answer?"
    chat.fake.fail = ""
    page.keyboard.press("Enter")
    page.wait_for_selector(".ct-act")
    page.click("#ct-new")
    assert page.is_visible("#ct-hello")
    assert page.query_selector(".ct-answer") is None
    assert wrong == []
    page.context.close()


def test_a_phone(chromium: Any, chat: Chat) -> None:  # noqa: F811
    page, wrong = open_page(
        chromium, chat, viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark"
    )
    page.check("#ct-two")
    page.fill("#ct-text", "Which one on a phone?")
    page.tap("#ct-send")
    page.wait_for_selector(".ct-choice")
    first, second = (page.query_selector_all(".ct-answer")[i].bounding_box() for i in range(2))
    assert second["y"] >= first["y"] + first["height"]  # one below the other
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.query_selector_all(".ct-choice button, #ct-send, .ct-two"):
        assert button.bounding_box()["height"] >= 44
    before = len(chat.kinds())
    page.tap(".ct-choice button:has-text('Equally good')")
    page.wait_for_selector(".ct-saved")
    deadline = time.monotonic() + 10
    while len(chat.kinds()) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert wrong == []
    page.context.close()
