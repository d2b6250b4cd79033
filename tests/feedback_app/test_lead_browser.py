"""The leads' pages in a real browser: every dashboard draws its plots, and what a lead decides is in the store."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from feedback_app.accounts import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.doubts import raise_doubts
from feedback_app.store.gold import set_gold
from feedback_app.store.leases import lease_next
from tests.feedback_app.rated_world import MODELS, SKILLS, rated_world

PASSWORD = "correct horse battery"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
# page -> the plots that must be there, as selectors, with how many there are at least
PLOTS = {
    "overview": {"[data-panel=throughput_days] .ld-bar": 20, "[data-panel=agreement] .ld-dot": 4, ".ld-part": 5},
    "annotators": {".ld-dot": 3 * len(SKILLS), ".ld-whisker": 3 * len(SKILLS), "tbody tr": len(SKILLS)},
    "queue": {"[data-panel=queue] .ld-part": 2, "[data-panel=leases] tbody tr": 1},
    "models": {"[data-panel=win_rates] .ld-whisker": len(MODELS), ".ld-matrix td[data-side]": 12},
    "drift": {"[data-panel=agreement_by_week] .ld-line": 3, ".ld-band": 3, "[data-panel=changes] .ld-dot": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(served_store):
    """A project rated for weeks, somebody holding a task of it, one gold item; a lead and a hostile name."""
    people = rated_world(served_store, num_tasks=160).people
    set_gold(served_store, "t-support-0", {"preference": "first"}, explanation="It helps.")
    with served_store.write() as connection:
        connection.execute(text("UPDATE tasks SET overlap = 4, is_open = true WHERE task_id > 't-support-9'"))
        connection.execute(
            text("UPDATE completions SET text = :hostile WHERE completion_id LIKE 'c-support-%-1'"),
            {"hostile": HOSTILE},
        )
    assert lease_next(served_store, people["Amara"], "support") is not None
    create_annotator(served_store, "Lena", password=PASSWORD, role="lead")
    create_annotator(served_store, "Anna", password=PASSWORD)
    return served_store


@pytest.fixture
def enter(chromium, server, world):
    """enter(name, width, scheme) opens a page of somebody who has logged in; nothing may go wrong on it."""
    contexts, wrong = [], []

    def _enter(name: str = "Lena", width: int = 1280, scheme: str = "light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: wrong.append(f"script error {error}"))
        page.on(
            "request",
            lambda r: None if r.url.startswith((server.url, "data:", "blob:")) else wrong.append(r.url),
        )
        page.goto(f"{server.url}/login?next=/desk/")
        page.fill("#name", name)
        page.fill("#password", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url("**/desk/**", wait_until="commit")
        return page

    yield _enter
    for context in contexts:
        context.close()
    assert wrong == []


def show(page, server, name: str) -> None:
    page.goto(f"{server.url}/lead/#{name}")
    page.wait_for_selector(f"#lead-desk[data-state=ready][data-page={name}]")


def test_every_dashboard_draws_its_plots(enter, server, tmp_path):
    page = enter()
    for name, plots in PLOTS.items():
        show(page, server, name)
        for selector, at_least in plots.items():
            assert page.locator(selector).count() >= at_least, (name, selector)
        assert page.is_hidden("#ld-alert")
        assert page.locator(".toast-wrap .error").count() == 0
        page.screenshot(path=tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
    # a table is sorted by a click on its head, and leaves as CSV
    show(page, server, "annotators")
    names = page.locator("tbody tr td:first-child")
    page.click("th button:text-is('reliability')")
    assert names.last.inner_text() == "Greta"
    page.click("th button:text-is('reliability')")
    assert names.first.inner_text() == "Greta"
    with page.expect_download() as download:
        page.click(".ld-csv")
    assert download.value.suggested_filename == "annotators.csv"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_dashboards_fit_a_phone(enter, server, scheme):
    page = enter(width=390, scheme=scheme)
    for name in [*PLOTS, "disputes", "gold", "settings", "members"]:
        show(page, server, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")


def test_a_lead_works_through_the_pages(enter, server, world):
    page = enter()
    show(page, server, "disputes")
    assert page.locator(".rd-side img, .rd-side script").count() == 0
    assert HOSTILE in page.locator(".rd-pair").inner_text()
    before = int(page.inner_text("#ld-disputes"))
    page.fill(".ld-case textarea", "because it is true")
    page.click("button:text-is('A clearly')")
    page.wait_for_selector(f"#ld-disputes:text-is('{before - 1}')")
    page.click(".ld-answer button >> nth=0")
    page.wait_for_selector(f"#ld-disputes:text-is('{before - 2}')")
    with world.read() as connection:
        rows = connection.execute(text("SELECT purpose FROM annotations WHERE purpose = 'adjudicate'")).all()
        words = connection.execute(
            text("SELECT reason FROM annotation_texts WHERE reason LIKE 'because%'")
        ).scalars()
        assert (len(rows), list(words)) == (2, ["because it is true"])

    show(page, server, "gold")
    assert page.locator("tbody tr").count() == 1
    page.click("button:text-is('B is better')")
    page.wait_for_selector("tbody tr:nth-child(2)")

    show(page, server, "queue")
    page.click("button:text-is('Release')")
    page.wait_for_selector("text=Nobody holds a task.")

    show(page, server, "settings")
    page.fill("label:has-text('Too fast below') input", "3.5")
    page.click("button:text-is('Save settings')")
    page.wait_for_selector(".ld-saved:text-is('Saved')", state="attached")
    page.fill("label:has-text('Gold items') input", "2")
    page.click("button:text-is('Save settings')")
    page.wait_for_selector("#ld-alert:has-text('gold_rate')")
    page.fill("label:has-text('Title') input", "Which one helps?")
    page.click("button:text-is('Save as a new version')")
    page.wait_for_selector("h2:text-is('Rubric, version 2')")
    with world.read() as connection:
        query = text("SELECT settings FROM projects WHERE project_id = 'support'")
        assert "3.5" in str(connection.execute(query).scalar())

    show(page, server, "members")
    page.check("input[aria-label='Anna is a member']")
    page.reload()
    page.wait_for_selector("#lead-desk[data-state=ready][data-page=members]")
    assert page.is_checked("input[aria-label='Anna is a member']")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_lead_sees_what_a_reward_model_doubts(enter, server, world, fill, tmp_path, width, scheme):
    """Below the answer that it doubts, and below no other; the words are text, whatever the run is called."""
    project = f"doubted-{scheme}"
    (task,) = fill(world, 1, overlap=2, project=project)
    receipts = {}
    for name, said in (("Doro", {"preference": "first", "strength": 2}), ("Emil", {"preference": "tie"})):
        person = create_annotator(world, f"{name} {scheme}", password=None)
        view = lease_next(world, person, project)
        receipts[name] = submit(
            world, answer(view, person, **said), lease_id=view.lease_id, client_key=view.lease_id
        )
    raise_doubts(world, project, "runs/<b>reward</b>@0c1d2e3f4a", {receipts["Doro"].annotation_id: 0.0372})
    page = enter(width=width, scheme=scheme)
    page.evaluate(f"localStorage.setItem('rd-lead-project', '{project}')")
    show(page, server, "disputes")
    assert page.inner_text("#ld-disputes") == "1"
    assert page.locator(".ld-answer").count() == 2
    (hint,) = page.locator(".ld-doubt").all()
    assert (
        hint.inner_text().strip()
        == "the reward model runs/<b>reward</b>@0c1d2e3f4a gives this answer 4\u00a0%"
    )
    assert "clearly better" in page.locator(".ld-answer:has(.ld-doubt)").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "doubt.png", full_page=True)
    page.click("button:text-is('B slightly')")
    page.wait_for_selector("text=Nobody contradicts anybody.")
    with world.read() as connection:
        query = text("SELECT dispute FROM tasks WHERE task_id = :task")
        assert connection.execute(query, {"task": task}).scalar() == "decided"


def test_an_annotator_does_not_get_in(enter, server):
    page = enter("Anna")
    reply = page.goto(f"{server.url}/lead/")
    assert reply.status == 403
    assert page.evaluate("fetch('/api/v1/lead/view/models?project=support').then(r => r.status)") == 403
