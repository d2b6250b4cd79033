"""Each kind of task at the desk, in a real browser: by keyboard, by mouse, by finger; drafts; corrections."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from feedback_app.store.annotations import judgements
from feedback_app.store.gold import set_gold
from feedback_app.store.projects import change_settings
from feedback_app.store.tasks import set_rubric

WORDS = ("alpha", "beta", "gamma", "delta")
SMALL_TARGETS = """
[...document.querySelectorAll('#rating-desk :is(button, summary, select)')].filter(b => b.offsetParent)
.map(b => [b.textContent.trim(), b.getBoundingClientRect().height]).filter(([, height]) => height < 43.5)
"""
WIDER = """
[...document.querySelectorAll('#rating-desk *')].filter(e => e.offsetParent && !e.closest('.rd-sr')
&& !e.closest('.rt pre, .rt .rt-scroll') && e.getBoundingClientRect().right > innerWidth + 1)
.map(e => e.className + ' ' + e.id)
"""


LONG = "A line " + "x" * 200 + "\n\n```\n" + "code " * 60 + "\n```\n\n|a|b|\n|-|-|\n|1|" + "y" * 90 + "|"
SIZES = {"pairwise": 2, "ranking": 9, "scores": 3, "demonstration": 1, "thumbs": 1}
# project: (kind, number of tasks, the texts of each)
PROJECTS = {
    "ranking": ("ranking", 2, WORDS),
    "drag": ("ranking", 2, WORDS[:3]),
    "scores": ("scores", 1, WORDS[:2]),
    "stricter": ("scores", 1, WORDS[:1]),
    "nothing": ("demonstration", 1, ()),
    "given": ("demonstration", 1, ["A first try."]),
    "thumbs": ("thumbs", 2, ["Some **bold** words"]),
    "second thoughts": ("pairwise", 3, WORDS[:2]),
    "checked": ("thumbs", 2, ["The sun is cold."]),
    **{f"phone {kind}": (kind, 1, [f"{LONG} {i}" for i in range(size)]) for kind, size in SIZES.items()},
}


# kind: (texts, keys to press, what the page then shows)
HALFWAY = {
    "pairwise": (
        WORDS[:2],
        ["6"],
        "[...document.querySelectorAll('[aria-checked=true]')].map(e => e.innerText)",
    ),
    "ranking": (WORDS, ["c", "a"], "document.querySelector('.rd-steps').innerText"),
    "scores": (WORDS[:2], ["4", "2"], "document.querySelectorAll('[aria-checked=true]').length"),
    "demonstration": (WORDS[:1], [" and more"], "document.querySelector('#rd-written').value"),
    "thumbs": (WORDS[:1], ["0"], "document.querySelector('#rating-desk').dataset.thumb"),
}


@pytest.fixture(scope="module")
def store(served_store):
    return served_store


@pytest.fixture(scope="module")
def window(desks, store, fill_kind):
    """One window for all tests: a page takes longer to load than a test to run."""
    for project, (kind, number, texts) in PROJECTS.items():
        fill_kind(store, kind, number, texts, project=project)
    for kind, (texts, *_) in HALFWAY.items():
        fill_kind(store, kind, 1, texts, project=f"half {kind}")
    return desks.open("kim", "ranking")


@pytest.fixture
def desk(window):
    """desk(project) is the page with that project's first task."""

    def _at(project: str):
        window.select_option("#rd-project", project)
        window.wait_for_selector(f"#rating-desk[data-state=task][data-project='{project}']")
        return window

    return _at


def saved(page, number: int) -> None:
    """Wait until the page says that its nth answer is saved and the next task is there."""
    page.wait_for_selector(f"#rating-desk:not([data-busy]) #rd-count:has-text('{number} rated')")


def newest(store, project: str):
    """(newest answer of a project, completion id -> text)."""
    with store.read() as connection:
        query = "SELECT annotation_id FROM annotations WHERE project_id = :p ORDER BY created_at DESC LIMIT 1"
        last = connection.execute(text(query), {"p": project}).scalar_one()
        texts = dict(connection.execute(text("SELECT completion_id, text FROM completions")).tuples().all())
    return next(j for j in judgements(store, project) if j.judgement_id == last), texts


def letters(page) -> dict[str, str]:
    """text -> letter, as this task shows them."""
    cards = page.query_selector_all(".rd-side")
    return {
        card.query_selector(".rd-text").inner_text().strip(): card.get_attribute("data-side")
        for card in cards
    }


def ranked(store, project: str) -> list[list[str]]:
    judgement, texts = newest(store, project)
    return [sorted(texts[i] for i in tier) for tier in judgement.ranking]


def centre(page, selector: str) -> tuple[float, float]:
    page.locator(selector).first.scroll_into_view_if_needed()
    box = page.locator(selector).first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page, source: str, target: str) -> None:
    page.mouse.move(*centre(page, source))
    page.mouse.down()
    page.mouse.move(*centre(page, ".rd-ladder"), steps=3)
    page.mouse.move(*centre(page, target), steps=3)
    page.mouse.up()


def test_a_ranking_by_keyboard(desk, store):
    page = desk("ranking")
    at = letters(page)
    for word in ("gamma", "alpha", "delta"):
        page.keyboard.press(at[word])
    assert page.is_disabled("#rd-save")
    page.keyboard.press(str("abcd".index(at["beta"]) + 1))  # a digit names an answer, too
    page.keyboard.press("ArrowLeft")  # into a tie with delta
    page.keyboard.press("Enter")
    saved(page, 1)
    assert ranked(store, "ranking") == [["gamma"], ["alpha"], ["beta", "delta"]]

    at = letters(page)
    for word in WORDS:
        page.keyboard.press(at[word])
    page.keyboard.press(at["alpha"])  # chosen again: it can be moved
    for _ in range(3):
        page.keyboard.press("ArrowRight")  # a tie with beta, behind it, a tie with gamma
    page.keyboard.press(at["delta"])
    page.keyboard.press("Backspace")
    assert page.is_disabled("#rd-save")
    page.keyboard.press(at["delta"])
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done here")
    assert ranked(store, "ranking") == [["beta"], ["alpha", "gamma"], ["delta"]]


def test_a_ranking_by_dragging_and_by_buttons(desk, store):
    page = desk("drag")
    at = letters(page)
    for word in ("alpha", "beta"):  # from the text itself to the open place
        drag(page, f"[data-side={at[word]}] .rd-letter", ".rd-hole")
    drag(page, f"[data-chip={at['gamma']}]", "[data-gap='0']")
    drag(page, f"[data-chip={at['beta']}]", f"[data-tier]:has([data-chip={at['alpha']}])")
    page.click("#rd-save")
    saved(page, 1)
    assert ranked(store, "drag") == [["gamma"], ["alpha", "beta"]]

    at = letters(page)
    for word in ("beta", "alpha", "gamma"):
        page.click(f"[data-side={at[word]}] .rd-text")
    page.click(f"[data-chip={at['gamma']}]")
    for _ in range(3):
        page.click("[data-tool=better]")
    page.keyboard.press("Enter")  # the mouse leaves the keyboard to the desk
    page.wait_for_selector("text=All done here")
    assert ranked(store, "drag") == [["beta", "gamma"], ["alpha"]]


def test_scores_by_keyboard_and_mouse(desk, store):
    page = desk("scores")
    at = letters(page)
    for digit in "152":
        page.keyboard.press(digit)
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    page.keyboard.press("3")
    assert page.is_disabled("#rd-save")
    page.click(".rd-attribute:nth-of-type(2) .rd-cell:nth-of-type(2) button:nth-of-type(4)")
    page.keyboard.press("4")  # the cell that was left out
    page.keyboard.press("ArrowUp")
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done here")
    judgement, texts = newest(store, "scores")
    by_letter = {
        name: {at[texts[i]]: score for i, score in values.items()}
        for name, values in judgement.scores.items()
    }
    assert by_letter == {"helpfulness": {"a": 5, "b": 3}, "truth": {"a": 4, "b": 4}}


def test_guidelines_that_change_under_a_task_keep_its_scores(desk, store):
    page = desk("stricter")
    page.keyboard.press("2")
    page.keyboard.press("4")
    attributes = [
        {"name": "truth", "definition": "Is it true?"},
        {"name": "tone", "definition": "Is it kind?"},
    ]
    set_rubric(store, "stricter", "Be **stricter**.", attributes=attributes)
    page.keyboard.press("Enter")
    page.wait_for_selector("#rd-status:has-text('Not saved: scores must name truth, tone')")
    assert page.inner_text("#rd-rubric-version") == "Version 3"
    page.keyboard.press("5")  # the one that is missing; truth is still 4
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done here")
    scores = newest(store, "stricter")[0].scores
    assert {name: list(values.values()) for name, values in scores.items()} == {"truth": [4], "tone": [5]}


def test_writing_from_nothing_and_from_a_given_answer(desk, store):
    page = desk("nothing")
    assert page.is_disabled("#rd-save")
    page.keyboard.type("Two lines,\nand Enter is only a line.")  # the text has the focus
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=All done here")
    assert newest(store, "nothing")[0].demonstration == "Two lines,\nand Enter is only a line."

    page = desk("given")
    assert page.input_value("#rd-written") == "A first try."
    page.keyboard.press("Control+End")
    page.keyboard.type(" Better.")
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    page.keyboard.type("it was short")
    page.click("#rd-save")
    page.wait_for_selector("text=All done here")
    judgement, _ = newest(store, "given")
    assert (judgement.demonstration, judgement.reason) == ("A first try. Better.", "it was short")


def test_thumbs_with_flags_and_the_plain_text_switch(desk, store):
    page = desk("thumbs")
    assert page.inner_text("#rd-a strong") == "bold"
    page.keyboard.press("v")
    assert page.inner_text("#rd-a") == "Some **bold** words"
    page.keyboard.press("1")
    page.keyboard.press("u")
    page.keyboard.press("o")
    page.keyboard.press("o")  # pressed twice: taken off again
    page.keyboard.press("Enter")
    saved(page, 1)
    assert (newest(store, "thumbs")[0].thumb, newest(store, "thumbs")[0].flags) == ("up", ("unsafe",))
    assert page.inner_text("#rd-a") == "Some **bold** words"  # the switch is remembered
    page.reload()
    page.wait_for_selector("#rating-desk[data-state=task]")
    assert page.inner_text("#rd-a") == "Some **bold** words"
    assert page.query_selector(".rd-flag[aria-pressed=true]") is None
    page.click(".rd-flag[data-flag=off_topic]")
    page.click("button[data-thumb=down]")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done here")
    assert (newest(store, "thumbs")[0].thumb, newest(store, "thumbs")[0].flags) == ("down", ("off_topic",))
    page.keyboard.press("v")


def test_a_reload_keeps_the_draft_of_every_kind(desk, store):
    for kind, (_, keys, shown) in HALFWAY.items():
        page = desk(f"half {kind}")
        for key in keys:
            page.keyboard.type(key)
        page.keyboard.press("Escape")
        page.keyboard.press("p")
        page.keyboard.press("r")
        page.keyboard.type("half a thought")
        before = page.evaluate(shown)
        page.reload()  # at once: what was typed last is on its way, too
        page.wait_for_selector(f"#rating-desk[data-kind={kind}]")
        assert page.evaluate(shown) == before, kind
        assert page.input_value("#rd-reason") == "half a thought", kind
        assert page.get_attribute("[data-flag=personal_data]", "aria-pressed") == "true", kind
        assert before, kind


def test_my_last_answers_can_be_looked_at_and_corrected(desk, store):
    page = desk("second thoughts")
    for number, key in enumerate(("1", "4"), 1):
        page.keyboard.press(key)
        page.keyboard.press("Enter")
        saved(page, number)
    page.wait_for_selector(".rd-past >> nth=1")
    assert page.locator(".rd-said").all_inner_texts() == ["Tie", "A much better"]
    waiting = page.inner_text("#rd-prompt")
    page.keyboard.press("6")
    page.keyboard.press("r")
    page.keyboard.type("unfinished")
    page.keyboard.press("Escape")

    page.keyboard.press("l")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the older one
    page.wait_for_selector("#rd-banner:visible")
    assert page.inner_text("#rd-prompt") != waiting
    assert page.get_attribute("button[data-choice=a][data-strength='3']", "aria-checked") == "true"
    page.keyboard.press("7")
    page.keyboard.press("r")
    page.keyboard.type("I had read it wrong")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#rd-status:has-text('Correction saved')")
    page.wait_for_selector(".rd-said:has-text('B much better')")
    # the task that waited is there again, with what was chosen
    assert page.inner_text("#rd-prompt") == waiting
    assert page.input_value("#rd-reason") == "unfinished"
    assert page.get_attribute("button[data-choice=b][data-strength='2']", "aria-checked") == "true"
    assert sorted(
        (j.preference == "tie", j.version, j.reason) for j in judgements(store, "second thoughts")
    ) == [
        (False, 2, "I had read it wrong"),
        (True, 1, ""),
    ]
    # looking without changing leaves no version
    page.click(".rd-past >> nth=1")
    page.wait_for_selector("#rd-banner:visible")
    page.keyboard.press("Escape")
    page.wait_for_selector("#rd-banner", state="hidden")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done here")
    assert sorted(j.version for j in judgements(store, "second thoughts")) == [1, 1, 2]


def test_a_check_item_explains_itself_after_the_answer(desk, store):
    with store.read() as connection:
        query = "SELECT task_id FROM tasks WHERE project_id = 'checked' LIMIT 1"
        task_id = connection.execute(text(query)).scalar_one()
    set_gold(store, task_id, {"thumb": "down"}, explanation="The sun is <b>hot</b>.")
    change_settings(store, "checked", {"gold_rate": 1.0}, actor="system")
    page = desk("checked")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rd-gold:visible")
    assert "We expected Bad" in page.inner_text("#rd-gold")
    assert "The sun is <b>hot</b>." in page.inner_text("#rd-gold")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rd-gold", state="hidden")
    page.keyboard.press("0")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done here")
    with store.read() as connection:
        purposes = connection.execute(text("SELECT purpose FROM annotations WHERE project_id = 'checked'"))
        assert sorted(purposes.scalars()) == ["gold", "rate"]


def test_every_kind_fits_a_phone(desk, store, tmp_path):
    page = desk("phone pairwise")
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("#rd-theme")
    assert page.evaluate("document.body.classList.contains('dark')")
    for kind in SIZES:
        desk(f"phone {kind}")
        if kind == "ranking":
            for chip in page.query_selector_all(".rd-tray .rd-chip"):
                page.click(f"[data-chip={chip.get_attribute('data-chip')}]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, kind
        assert page.evaluate(SMALL_TARGETS) == [], kind
        assert page.evaluate(WIDER) == [], kind
        page.screenshot(path=tmp_path / f"{kind}.png", full_page=True)
    page.click("button[data-thumb=up]")
    page.click("#rd-save")
    page.wait_for_selector("text=All done here")
    assert newest(store, "phone thumbs")[0].thumb == "up"
