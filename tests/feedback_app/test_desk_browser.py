"""The rating desk in a real browser, served by `rlhf app`: what a person does, and what the store then holds."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text

from feedback_app.store.annotations import judgements
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks
from rlhf.core.records import Completion, Prompt

PASSWORD = "correct horse battery"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> [x](javascript:alert(3)) ![y](http://evil.example/z.png)"
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture(scope="module")
def store(served_store):
    return served_store


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
    page.fill("#password", PASSWORD)  # logs in by the form
    page.click("button[type=submit]")
    page.wait_for_selector("text=Nothing to rate yet")
    page.close()


def test_a_session_at_the_desk(open_desk, store, fill, tmp_path):
    fill(store, 6, project="session", simulated=True)
    page = open_desk("maria", "session")
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
    page = open_desk("olga", "offline")
    page.context.set_offline(True)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rd-status:has-text('trying again')")
    page.context.set_offline(False)
    saved(page, 1)
    assert len(answers(store, "offline")) == 1


def test_two_people_never_see_the_same_single_place(open_desk, store, fill):
    fill(store, 6, project="two people")
    pages = [open_desk("ann", "two people"), open_desk("bob", "two people")]
    seen: list[str] = []
    for _ in range(3):
        for page in pages:
            seen.append(page.inner_text("#rd-prompt"))
        for page in pages:
            count = int(page.inner_text("#rd-count").split()[0])
            page.keyboard.press("4")
            page.keyboard.press("Enter")
            saved(page, count + 1)
    assert len(set(seen)) == 6


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


def test_an_answer_that_the_server_could_not_take_is_sent_again_with_the_same_key(open_desk, store, fill):
    fill(store, 1, project="restart")
    page = open_desk("rosa", "restart")
    keys: list[str] = []

    def flaky(route):
        keys.append(route.request.post_data_json["key"])
        if len(keys) == 1:
            route.fulfill(status=503, json={"detail": "busy"})
        elif len(keys) == 2:
            route.fetch()  # stored, but the reply is lost
            route.abort()
        else:
            route.continue_()

    page.route("**/api/v1/desk/answer", flaky)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done here")
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert [j.version for j in judgements(store, "restart")] == [1]


def test_a_lost_session_ends_well(open_desk, store, fill):
    fill(store, 1, project="logged out")
    page = open_desk("lou", "logged out")
    with store.write() as connection:
        connection.execute(text("UPDATE sessions SET revoked_at = 1"))
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rd-status:has-text('Logged out')")
    with page.context.expect_page() as opened:
        page.click("#rd-status a")
    login = opened.value
    login.fill("#name", "lou")
    login.fill("#password", PASSWORD)
    login.click("button[type=submit]")
    page.wait_for_selector("text=All done here")
    assert len(answers(store, "logged out")) == 1


def test_an_answer_after_the_lease_ran_out_is_kept_and_said(open_desk, store, fill):
    fill(store, 2, project="late")
    page = open_desk("lars", "late")
    expire = text("UPDATE leases SET expires_at = 1 WHERE state = 'active'")
    with store.write() as connection:
        connection.execute(expire)
    other = open_desk("lena", "late")
    assert other.inner_text("#rd-prompt") == page.inner_text("#rd-prompt")
    other.keyboard.press("4")
    other.keyboard.press("Enter")
    saved(other, 1)
    other.keyboard.press("4")
    other.keyboard.press("Enter")
    other.wait_for_selector("text=All done here")
    with page.expect_response("**/answer") as reply:
        page.keyboard.press("1")
        page.keyboard.press("Enter")
    assert reply.value.json()["surplus"] is True
    assert sorted(answers(store, "late")) == ["tie", "tie"]
    assert len(list(judgements(store, "late", include_surplus=True))) == 3


def test_two_tabs_of_one_person_show_tasks_of_their_own(open_desk, store, fill):
    fill(store, 4, project="two tabs")
    first = open_desk("tom", "two tabs")
    second = open_desk("tom", "two tabs", again=first)
    assert first.inner_text("#rd-prompt") != second.inner_text("#rd-prompt")
    for page, count in ((second, 1), (first, 2), (second, 3), (first, 4)):
        page.bring_to_front()
        page.keyboard.press("4")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#rd-count:has-text('{count} rated')")
        page.wait_for_selector("#rating-desk:not([data-busy])")
    with store.read() as connection:
        query = "SELECT count(*), count(DISTINCT task_id), max(version) FROM annotations WHERE project_id = 'two tabs'"
        assert connection.execute(text(query)).one() == (4, 4, 1)


def test_the_same_task_on_two_devices_is_one_answer(open_desk, store, fill):
    fill(store, 1, project="two devices")
    laptop, phone = open_desk("dan", "two devices"), open_desk("dan", "two devices", width=390)
    assert laptop.inner_text("#rd-prompt") == phone.inner_text("#rd-prompt")
    for page, key in ((laptop, "1"), (phone, "7")):
        page.keyboard.press(key)
        page.keyboard.press("Enter")
        page.wait_for_selector("text=All done here")
    (judgement,) = judgements(store, "two devices")
    assert (judgement.version, judgement.strength) == (2, 3)


def test_only_time_in_sight_counts(open_desk, store, fill):
    fill(store, 1, project="in sight")
    began = time.monotonic()
    page = open_desk("ida", "in sight")
    page.evaluate(HIDE, True)
    page.wait_for_timeout(1500)
    page.evaluate(HIDE, False)
    page.keyboard.press("4")
    with page.expect_response("**/draft"):
        page.wait_for_timeout(600)
    page.reload()  # what was spent before it still counts
    page.wait_for_selector("#rating-desk[data-state=task]")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done here")
    with store.read() as connection:
        query = "SELECT seconds FROM annotations WHERE project_id = 'in sight'"
        seconds = connection.execute(text(query)).scalar_one()
    assert 0.5 < seconds < time.monotonic() - began - 1.5
