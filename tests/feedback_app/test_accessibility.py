"""axe-core in a real browser: no serious or critical fault on any page, light and dark."""

from __future__ import annotations

import pytest

from feedback_app.accounts import create_annotator, create_link
from feedback_app.store.schema import annotators

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)

TEXT = """# Title\n\nSome *words*, `code`, a [link](https://example.org) and $x^2$.

| a | b |
|---|---|
| 1 | 2 |

```python
def f(x):  # why
    return "a very long line " + str(x) + "a very long line a very long line a very long line a very long line"
```

zero\u200bwidth"""
KINDS = {"pairwise": 2, "ranking": 3, "scores": 2, "demonstration": 1, "thumbs": 1}
SCHEMES = ("light", "dark")


def faults(page) -> list[tuple[str, str, list[str]]]:
    """(rule, impact, where) of what is serious or critical."""
    found = axe.Axe().run(page).response["violations"]
    return [
        (fault["id"], fault["impact"], [str(node["target"]) for node in fault["nodes"]][:5])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="module")
def projects(served_store, fill_kind):
    for kind, number in KINDS.items():
        fill_kind(served_store, kind, 6, [f"{TEXT}\n\n{i}" for i in range(number)])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_desk_has_no_serious_fault(open_desk, projects, scheme):
    page = open_desk(f"kim {scheme}", "pairwise", scheme=scheme)
    found = {}
    for kind in KINDS:
        page.select_option("#rd-project", kind)
        page.wait_for_selector(f"#rating-desk[data-project='{kind}'][data-state=task]")
        found[kind] = faults(page)
        if kind == "pairwise":
            page.click("#rd-skip")
            found["skip box"] = faults(page)
    assert {place: wrong for place, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_account_pages_have_no_serious_fault(chromium, server, served_store, scheme):
    person = create_annotator(served_store, f"new {scheme}", password=None)
    link = create_link(served_store, person)
    context = chromium.new_context(color_scheme=scheme)
    page = context.new_page()
    found = {}
    for path in ("/login", f"/welcome/{link}", "/welcome/ended"):
        page.goto(server.url + path)
        found[path] = faults(page)
    page.goto(server.url + "/login")
    page.fill("#name", "nobody")
    page.fill("#password", "not the password")
    page.click("button[type=submit]")
    page.wait_for_selector("[role=alert]")
    found["refused"] = faults(page)
    context.close()
    assert [fault for fault in found.items() if fault[1]] == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_leads_pages_have_no_serious_fault(open_desk, served_store, server, projects, scheme):
    page = open_desk(f"lea {scheme}", scheme=scheme)
    with served_store.write() as connection:
        who = annotators.c.name == f"lea {scheme}"
        connection.execute(annotators.update().where(who).values(role="lead"))
    page.goto(server.url + "/lead/#overview")
    found = {}
    for tab in (
        "overview",
        "annotators",
        "queue",
        "models",
        "drift",
        "disputes",
        "gold",
        "settings",
        "members",
    ):
        page.click(f"#ld-tabs a[href='#{tab}']")
        page.wait_for_selector(f"#ld-tabs a[href='#{tab}'][aria-current]")
        page.wait_for_selector("#lead-desk:not([data-state=loading]) #ld-main > *")
        found[tab] = faults(page)
    assert {place: wrong for place, wrong in found.items() if wrong} == {}
