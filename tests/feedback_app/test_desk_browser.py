"""The rating desk in a real browser, served by `rlhf app`: what a person does, and what the store then holds."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from feedback_app.accounts import create_annotator
from feedback_app.store.annotations import judgements
from feedback_app.store.engine import Store
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks
from rlhf.core.records import Completion, Prompt

PASSWORD = "correct horse battery"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> [x](javascript:alert(3)) ![y](http://evil.example/z.png)"


class Watch:
    """Everything on a page that must not happen: dialogs, script errors, requests to other origins."""

    def __init__(self, page, url: str) -> None:
        self.wrong: list[str] = []
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: self.wrong.append(f"script error {error}"))
        page.on(
            "request",
            lambda r: None if r.url.startswith((url, "data:", "blob:")) else self.wrong.append(r.url),
        )


@pytest.fixture(scope="module")
def store(server):
    """The store of the running server; each test has a project of its own, the newest one is shown first."""
    with Store.open(server.db_url) as opened:
        yield opened


@pytest.fixture
def open_desk(chromium, server, store):
    """open_desk(name, width=1280, scheme="light") logs somebody in and waits for the desk."""
    contexts, watches = [], []

    def _open(name: str, *, width: int = 1280, height: int = 900, scheme: str = "light"):
        with store.read() as connection:
            known = connection.execute(
                text("SELECT 1 FROM annotators WHERE name = :name"), {"name": name}
            ).first()
        if known is None:
            create_annotator(store, name, password=PASSWORD)
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        watches.append(Watch(page, server.url))
        page.goto(server.url + "/")
        page.fill("#name", name)
        page.fill("#password", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_selector("#rating-desk:not([data-state=loading])")
        return page

    yield _open
    assert [wrong for watch in watches for wrong in watch.wrong] == []
    for context in contexts:
        context.close()


def saved(page, number: int) -> None:
    """Wait until the page says that its nth answer is saved and the next task is there."""
    page.wait_for_selector(f"#rating-desk:not([data-busy]) #rd-count:has-text('{number} rated')")


def side_texts(page) -> tuple[str, str]:
    return page.inner_text("#rd-a"), page.inner_text("#rd-b")


def answers(store, project: str) -> list[str | None]:
    return [judgement.preference for judgement in judgements(store, project)]


def last_answer(store):
    """(preference translated to the text that won, judgement) of the newest answer."""
    with store.read() as connection:
        newest = connection.execute(
            text("SELECT annotation_id FROM annotations ORDER BY created_at DESC LIMIT 1")
        ).scalar_one()
        texts = dict(connection.execute(text("SELECT completion_id, text FROM completions")).tuples().all())
    judgement = next(j for j in judgements(store, "session") if j.judgement_id == newest)
    index = {"first": 0, "second": 1}.get(judgement.preference)
    return (None if index is None else texts[judgement.completion_ids[index]]), judgement


def test_the_first_administrator_comes_in_by_the_printed_link(chromium, server):
    link = next(line for line in server.lines if "/welcome/" in line)
    page = chromium.new_page()
    page.goto(link.replace("localhost", "127.0.0.1"))
    page.fill("#password", PASSWORD)
    page.fill("#again", PASSWORD)
    page.click("button[type=submit]")
    page.fill("#password", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_selector("text=Nothing to rate yet")
    page.close()


def test_a_session_at_the_desk(open_desk, store, fill, tmp_path):
    fill(store, 6, project="session", simulated=True)
    page = open_desk("maria")
    assert page.is_visible("#rd-simulated")

    # keyboard: B clearly better, Enter
    _, b = side_texts(page)
    page.keyboard.press("6")
    assert page.is_visible(".rd[data-choice=b]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rd-status:has-text('Saved')")
    saved(page, 1)
    won, judgement = last_answer(store)
    assert (won, judgement.strength) == (b, 2)

    # mouse: card A, then the strength, a reason, the button
    a, _ = side_texts(page)
    page.click("article[data-side=a]")
    page.click("button[data-choice=a][data-strength='1']")
    page.fill("#rd-reason", "a little <b>clearer</b>")
    page.click("#rd-save")
    saved(page, 2)
    won, judgement = last_answer(store)
    assert (won, judgement.strength, judgement.reason) == (a, 1, "a little <b>clearer</b>")

    # arrows and tie
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("button[data-choice=tie]", "aria-checked") == "true"
    page.keyboard.press("Enter")
    saved(page, 3)
    assert last_answer(store)[1].preference == "tie"

    # reload: the same task, and what was typed is still there
    before = side_texts(page)
    page.keyboard.press("7")
    page.keyboard.press("r")
    with page.expect_response("**/draft"):
        page.keyboard.type("unfinished thought")
    page.reload()
    page.wait_for_selector("#rating-desk[data-state=task]")
    assert side_texts(page) == before
    assert page.input_value("#rd-reason") == "unfinished thought"
    assert page.get_attribute("button[data-choice=b][data-strength='3']", "aria-checked") == "true"
    page.screenshot(path=tmp_path / "desk.png")
    page.keyboard.press("Enter")
    saved(page, 4)

    # both bad, then skip the last one
    page.keyboard.press("0")
    page.keyboard.press("Enter")
    saved(page, 5)
    assert last_answer(store)[1].preference == "both_bad"
    page.keyboard.press("s")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done here")
    with store.read() as connection:
        assert connection.execute(text("SELECT count(*), max(version) FROM annotations")).one() == (5, 1)
        assert connection.execute(text("SELECT reason FROM skips")).scalars().all() == ["I cannot judge this"]
        assert connection.execute(text("SELECT count(*) FROM drafts")).scalar() == 0
    assert (tmp_path / "desk.png").stat().st_size > 20_000


def test_a_lost_connection_loses_nothing(open_desk, store, fill):
    fill(store, 3, project="offline")
    page = open_desk("olga")
    page.context.set_offline(True)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rd-status:has-text('trying again')")
    page.context.set_offline(False)
    saved(page, 1)
    assert len(answers(store, "offline")) == 1


def test_two_people_never_see_the_same_single_place(open_desk, store, fill):
    fill(store, 8, project="two people")
    pages = [open_desk("ann"), open_desk("bob")]
    seen: list[str] = []
    for _ in range(4):
        for page in pages:
            seen.append(page.inner_text("#rd-prompt"))
        for page in pages:
            count = int(page.inner_text("#rd-count").split()[0])
            page.keyboard.press("4")
            page.keyboard.press("Enter")
            saved(page, count + 1)
    assert len(set(seen)) == 8


def test_hostile_text_is_only_text(open_desk, store):
    prompt = Prompt.model_validate({"prompt": f"Please {HOSTILE}"})
    pair = [
        Completion.model_validate({"prompt_id": prompt.prompt_id, "text": f"{HOSTILE} {i}"}) for i in range(2)
    ]
    add_prompts(store, [prompt])
    add_completions(store, pair)
    ids = tuple(c.completion_id for c in pair)
    create_tasks(store, project=HOSTILE[:100], kind="pairwise", items=[(prompt.prompt_id, ids)])
    page = open_desk("<script>alert(4)</script>")
    page.keyboard.press("v")  # as it was written
    assert HOSTILE in page.inner_text("#rd-a")
    assert HOSTILE in page.inner_text("#rd-prompt")
    assert page.query_selector(".rd-main img, .rd-main script, .rd-main a") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(open_desk, store, fill, scheme):
    fill(store, 2, project=f"phone {scheme}")
    page = open_desk(f"paula {scheme}", width=390, height=844, scheme=scheme)
    page.wait_for_selector("#rating-desk[data-state=task]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")
    small = page.evaluate(
        "[...document.querySelectorAll('#rating-desk button')].filter(b => b.offsetParent)"
        ".map(b => [b.textContent.trim(), b.offsetHeight]).filter(([, height]) => height < 44)"
    )
    assert small == []
    page.click("button[data-choice=tie]")
    page.click("#rd-save")
    saved(page, 1)
    assert answers(store, f"phone {scheme}") == ["tie"]
