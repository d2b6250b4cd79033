"""Three hundred hostile texts in a real browser: as prompt, answer, reason, rubric and name of a person.

Whatever they try, no dialog opens, no script of theirs runs (it would set the global `CANARY`), the page asks for
nothing but its own files and calls, and everything on it stays where it was and can be used.
"""

from __future__ import annotations

import runpy
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sqlalchemy import select, update

from feedback_app.pages.account import _login_form, _page, _welcome_form
from feedback_app.rendering import TAGS
from feedback_app.rendering_math import TAGS as MATH_TAGS
from feedback_app.store.annotations import judgements
from feedback_app.store.schema import annotators
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, ensure_project, set_rubric
from rlhf.core.records import Completion, Prompt

HOSTILE: list[str] = runpy.run_path(str(Path(__file__).with_name("hostile.py")))["HOSTILE"]
PROJECT = "hostile"
SIDES = 9
MAX_REASON = 9_000

INSPECT = Path(__file__).with_name("hostile_page.js").read_text(encoding="utf-8")
DESK = {
    "root": "#rating-desk",
    "tags": [*TAGS, *MATH_TAGS],
    "attributes": [
        *(
            "class",
            "dir",
            "href",
            "target",
            "rel",
            "referrerpolicy",
            "tabindex",
            "role",
            "aria-label",
            "start",
            "title",
        ),
        *frozenset().union(*MATH_TAGS.values()),
    ],
    "controls": ["rd-save", "rd-skip", "rd-theme", "rd-reason"],
}
ANSWER = """async ([reason, letters]) => {
  const box = document.getElementById("rd-reason");
  box.value = reason;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  for (const key of [...letters, "Enter"]) press(key);
}"""
# A browser says when a policy kept it from something; with us nothing is even tried.
OURS = ("desk/", "lead/", "static/", "api/v1/desk", "api/v1/lead", "login", "welcome/")
POLICY = ("Content Security Policy", "Refused to", "Not allowed to load", "Mixed Content")


class Recorder:
    """Every request of a page, and what its console says about policies."""

    def __init__(self, page, url: str) -> None:
        self.foreign: list[str] = []
        ours = tuple(
            f"{url}/{part}"
            for part in ("desk/", "lead/", "static/", "api/v1/desk", "api/v1/lead", "login", "welcome/")
        )
        page.on("request", lambda r: None if r.url.startswith(ours) else self.foreign.append(r.url))
        page.on(
            "console",
            lambda m: self.foreign.append(m.text) if any(word in m.text for word in POLICY) else None,
        )


@pytest.fixture(scope="module")
def batches(served_store):
    """The texts of each task: nine answers, and as many turns of the prompt."""
    ensure_project(served_store, PROJECT, title=HOSTILE[0])
    rubric = "\n\n".join(text for text in HOSTILE if len(text) < 200)
    set_rubric(served_store, PROJECT, rubric[:20_000], title=HOSTILE[1])
    batches, prompts, answers, items = [], [], [], []
    for start in range(0, len(HOSTILE), SIDES):
        texts = HOSTILE[start : start + SIDES]
        texts += [f"plain {i}" for i in range(SIDES - len(texts))]
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        turns.append({"role": "user", "content": "Which is best?"})
        prompt = Prompt.model_validate({"prompt": turns, "context": texts[0]})
        sides = [Completion.model_validate({"prompt_id": prompt.prompt_id, "text": text}) for text in texts]
        batches.append(texts)
        prompts.append(prompt)
        answers += sides
        items.append((prompt.prompt_id, tuple(side.completion_id for side in sides)))
    add_prompts(served_store, prompts)
    add_completions(served_store, answers)
    create_tasks(served_store, project=PROJECT, kind="ranking", items=items)
    return batches


def test_hostile_prompts_answers_and_reasons_do_nothing_at_the_desk(open_desk, served_store, server, batches):
    assert len(set(HOSTILE)) >= 200
    page = open_desk("maria")
    seen = Recorder(page, server.url)
    page.reload()
    page.wait_for_selector("#rating-desk[data-state=task]")
    reasons = []
    for number in range(1, len(batches) + 1):
        assert page.evaluate(INSPECT, DESK) == []
        assert page.locator(".rd-side").count() == SIDES
        if number % 5 == 1:
            page.keyboard.press("v")  # the plain texts are as harmless
            assert page.evaluate(INSPECT, DESK) == []
            page.keyboard.press("v")
        reasons.append("\n".join(batches[number - 1])[:MAX_REASON])
        page.evaluate(ANSWER, [reasons[-1], "abcdefghi"])
        page.wait_for_selector(f"#rating-desk:not([data-busy]) #rd-count:has-text('{number} rated')")
    kept = [judgement.reason for judgement in judgements(served_store, PROJECT)]
    assert len(kept) == len(batches)
    assert sum(map(len, kept)) > 40_000
    page.click("#rd-history-list button")  # an answer with its reason, opened again
    page.wait_for_selector("#rating-desk[data-correcting]")
    assert page.evaluate(INSPECT, {**DESK, "controls": ["rd-save", "rd-back"]}) == []
    assert seen.foreign == []


def test_hostile_names_do_nothing(open_desk, served_store, server, batches):
    """Longer and stranger names than an account may have: all the texts at once."""
    page = open_desk("nameless")
    with served_store.read() as connection:
        query = select(annotators.c.annotator_id).where(annotators.c.name == "nameless")
        person = connection.execute(query).scalar_one()
    seen = Recorder(page, server.url)
    short = [text for text in HOSTILE if len(text) < 300]
    for part in range(3):
        name = " ".join(short[part::3])
        with served_store.write() as connection:
            connection.execute(
                update(annotators).where(annotators.c.annotator_id == person).values(name=name)
            )
        page.reload()
        page.wait_for_selector("#rating-desk:not([data-state=loading])")
        assert page.evaluate(INSPECT, {**DESK, "controls": ["rd-theme"]}) == []
        assert len(page.inner_text("#rd-name")) > 1000
    assert seen.foreign == []


def test_a_link_opens_only_by_a_click_in_a_tab_that_knows_nothing_of_us(
    open_desk, served_store, server, fill_kind
):
    fill_kind(
        served_store, "thumbs", 1, ["See [the page](http://evil.example/path) for more."], project="link"
    )
    page = open_desk("clara", "link")
    asked = []
    page.context.route(
        "http://evil.example/**", lambda route: (asked.append(route.request), route.fulfill(body="x"))
    )
    page.wait_for_selector(".rt a")
    assert asked == []
    with page.expect_popup() as opened:
        page.click(".rt a")
    opened.value.wait_for_load_state()
    assert opened.value.evaluate("window.opener") is None
    assert opened.value.evaluate("document.referrer") == ""
    assert [request.url for request in asked if "favicon" not in request.url] == ["http://evil.example/path"]
    assert "referer" not in asked[0].headers
    assert page.get_attribute("#rating-desk", "data-thumb") == ""  # and nothing was chosen by it


class Outline(HTMLParser):
    """The tags of a page with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]


@pytest.mark.parametrize(
    "form", [lambda text: _login_form(text, text, text), lambda text: _welcome_form(text, text)]
)
def test_hostile_names_change_nothing_in_the_account_pages(form):
    calm = Outline(_page("Log in", form("maria")).body.decode())
    for text in HOSTILE:
        shown = Outline(_page("Log in", form(text)).body.decode("utf-8"))
        assert shown.tags == calm.tags
        assert not [value for value in shown.values if value.startswith(("javascript:", "//", "data:"))]
