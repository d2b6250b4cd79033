"""What the page calls: answers of every kind, drafts, my last answers, and how far I am."""

from __future__ import annotations

import itertools

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from sqlalchemy import insert, text

from feedback_app import accounts
from feedback_app.accounts import create_annotator
from feedback_app.answers import as_shown
from feedback_app.app import build_app
from feedback_app.config import AppConfig
from feedback_app.progress import days_in_a_row, open_tasks, progress_of
from feedback_app.store.annotations import judgements
from feedback_app.store.engine import Store
from feedback_app.store.gold import set_gold
from feedback_app.store.projects import change_settings
from feedback_app.store.schema import annotations_table

ORIGIN = "http://localhost"
PASSWORD = "correct horse battery"
WORDS = ("alpha", "beta", "gamma")
DAY = 86_400.0
COUNTER = itertools.count()
# kind: (number of texts, an answer in the page's words)
ANSWERS = {
    "pairwise": (2, {"choice": "b", "strength": 2}),
    "ranking": (3, {"ranking": [["c"], ["a", "b"]]}),
    "scores": (2, {"scores": {"helpfulness": {"a": 1, "b": 2}, "truth": {"a": 3, "b": 4}}}),
    "demonstration": (1, {"text": "An ideal answer."}),
    "thumbs": (1, {"thumb": "down"}),
}


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch):
    """Full-strength argon2id is tested in test_accounts; here it would only take time."""
    monkeypatch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all of these tests; each has a project and people of its own."""
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('desk')}/feedback.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def app(store):
    return build_app(store, AppConfig())


@pytest.fixture
def project():
    return f"project {next(COUNTER)}"


@pytest.fixture
def somebody(store):
    return create_annotator(store, f"somebody {next(COUNTER)}", password=None)


@pytest.fixture
def enter(app, store):
    """enter() is a client of a new person who has logged in."""

    def _enter() -> TestClient:
        name = f"rater {next(COUNTER)}"
        create_annotator(store, name, password=PASSWORD)
        client = TestClient(app, base_url=ORIGIN, follow_redirects=False, headers={"origin": ORIGIN})
        assert client.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
        return client

    return _enter


def next_task(client, project):
    reply = client.post("/api/v1/desk/next", json={"project": project})
    assert reply.status_code == 200
    return reply.json()["task"]


def say(client, lease, **given):
    key = f"key-number-{next(COUNTER)}"
    return client.post("/api/v1/desk/answer", json={"lease": lease, "key": key, **given})


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_of_every_kind_comes_back_as_it_was_given(enter, store, fill_kind, project, kind):
    size, given = ANSWERS[kind]
    fill_kind(store, kind, 1, WORDS[:size], project=project)
    client = enter()
    task = next_task(client, project)
    assert (task["kind"], len(task["sides"]), len(task["trees"])) == (kind, size, size)
    given = {**given, "reason": "because", "flags": ["unsafe"]}
    assert say(client, task["lease"], **given).json()["version"] == 1
    (mine,) = client.get("/api/v1/desk/history", params={"project": project}).json()["answers"]
    assert mine["given"] == given
    opened = client.get(f"/api/v1/desk/history/{mine['id']}").json()
    assert (opened["task"]["sides"], opened["task"]["given"]) == (task["sides"], given)
    # and the store holds it about the completions that stood there
    (judgement,) = judgements(store, project)
    fields = judgement.model_dump(
        include={"preference", "strength", "ranking", "scores", "demonstration", "thumb"}
    )
    assert as_shown(judgement.completion_ids, judgement.shown_order, fields) == {
        key: value for key, value in given.items() if key not in ("reason", "flags")
    }


@pytest.mark.parametrize(
    ("kind", "given", "found"),
    [
        ("pairwise", {"thumb": "up"}, "answered with 'choice'; found thumb"),
        ("pairwise", {"choice": "a", "strength": 1, "thumb": "up"}, "found choice, thumb"),
        ("pairwise", {}, "found nothing"),
        ("ranking", {"ranking": [["a"], ["b"]]}, "expected a, b, c once each; found a, b"),
        ("ranking", {"ranking": [["a"], ["b", "a"], ["c"]]}, "once each"),
        ("ranking", {"ranking": [["a"], ["b"], ["d"]]}, "once each"),
        ("ranking", {"ranking": [["a", "b", "c"]], "strength": 1}, "answered with 'ranking'"),
        ("scores", {"scores": {"helpfulness": {"a": 1, "b": 2}}}, "scores must name"),
        ("scores", {"scores": {"helpfulness": {"a": 1}, "truth": {"a": 1, "b": 1}}}, "once each; found a"),
        ("demonstration", {"text": "  \n"}, "at least one word"),
        ("thumbs", {"thumb": "up", "flags": ["nonsense"]}, "flag 'nonsense' is not one of"),
    ],
)
def test_half_answers_and_answers_of_another_kind_are_refused(
    enter, store, fill_kind, project, kind, given, found
):
    fill_kind(store, kind, 1, WORDS[: ANSWERS[kind][0]], project=project)
    client = enter()
    reply = say(client, next_task(client, project)["lease"], **given)
    assert reply.status_code == 422
    assert found in reply.json()["detail"]
    assert list(judgements(store, project)) == []


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_draft_of_every_kind_comes_back(enter, store, fill_kind, project, kind):
    size, given = ANSWERS[kind]
    fill_kind(store, kind, 1, WORDS[:size], project=project)
    client = enter()
    content = {**given, "reason": "half", "flags": ["unsafe"], "spent": 12.5}
    body = {"lease": next_task(client, project)["lease"], **content}
    assert client.post("/api/v1/desk/draft", json=body).json() == {"kept": True}
    assert next_task(client, project)["draft"] == content


def test_a_correction_has_a_draft_of_its_own(enter, store, fill_kind, project):
    fill_kind(store, "thumbs", 1, WORDS[:1], project=project)
    client = enter()
    lease = next_task(client, project)["lease"]
    first = client.get("/api/v1/desk/history", params={"project": project}).json()
    assert first == {"answers": [], "more": False}
    say(client, lease, thumb="up")
    late = {"lease": lease, "thumb": "up"}  # a draft that was on its way while the answer was saved
    assert client.post("/api/v1/desk/draft", json=late).json() == {"kept": False}
    (mine,) = client.get("/api/v1/desk/history", params={"project": project}).json()["answers"]
    assert client.post("/api/v1/desk/draft", json={**late, "thumb": "down", "corrects": 1}).json() == {
        "kept": True
    }
    opened = client.get(f"/api/v1/desk/history/{mine['id']}").json()["task"]
    assert (opened["given"], opened["draft"]["thumb"]) == ({"thumb": "up"}, "down")
    assert say(client, opened["lease"], thumb="down").json()["version"] == 2
    assert client.post("/api/v1/desk/draft", json={**late, "corrects": 1}).json() == {"kept": False}
    again = client.get(f"/api/v1/desk/history/{mine['id']}").json()  # an old id leads to the newest version
    assert (again["version"], again["task"]["given"], again["task"]["draft"]) == (2, {"thumb": "down"}, None)


def test_nobody_sees_or_corrects_the_answers_of_others(enter, store, fill_kind, project):
    fill_kind(store, "thumbs", 1, WORDS[:1], overlap=2, project=project)
    maria, bob = enter(), enter()
    say(maria, next_task(maria, project)["lease"], thumb="up")
    (mine,) = maria.get("/api/v1/desk/history", params={"project": project}).json()["answers"]
    assert bob.get("/api/v1/desk/history", params={"project": project}).json()["answers"] == []
    assert bob.get(f"/api/v1/desk/history/{mine['id']}").status_code == 409


def test_a_project_without_markdown_sends_no_trees(enter, store, fill_kind, project):
    fill_kind(store, "thumbs", 1, ["**bold**"], project=project)
    change_settings(store, project, {"markdown": False, "flags": ["rude"]}, actor="system")
    client = enter()
    task = next_task(client, project)
    assert "trees" not in task
    assert "tree" not in task["messages"][0]
    settings = next(p for p in client.get("/api/v1/desk").json()["projects"] if p["id"] == project)[
        "settings"
    ]
    assert settings == {"markdown": False, "flags": ["rude"]}


@pytest.mark.parametrize(
    ("kind", "expected", "shown"),
    [
        ("ranking", lambda ids: {"best": ids[1]}, "best"),
        ("ranking", lambda ids: {"ranking": [[ids[1]], [ids[0], ids[2]]]}, "ranking"),
        ("pairwise", lambda ids: {"preference": "second", "strength": 3}, "choice"),
    ],
)
def test_what_a_check_item_expects_is_told_in_the_page_s_letters(
    enter, store, fill_kind, project, kind, expected, shown
):
    size, given = ANSWERS[kind]
    (task_id,) = fill_kind(store, kind, 1, WORDS[:size], project=project)
    with store.read() as connection:
        query = "SELECT completion_id FROM task_completions WHERE task_id = :id ORDER BY position"
        ids = connection.execute(text(query), {"id": task_id}).scalars().all()
    set_gold(store, task_id, expected(ids), explanation="It is the second.")
    change_settings(store, project, {"gold_rate": 1.0}, actor="system")
    client = enter()
    task = next_task(client, project)
    reply = say(client, task["lease"], **given).json()["gold"]
    side = "abc"[task["sides"].index(WORDS[1])]
    assert reply["explanation"] == "It is the second."
    told = reply["expected"][shown]
    assert (told[0] if shown == "ranking" else told) == ([side] if shown == "ranking" else side)
    assert ids[1] not in str(reply)


def answered(store, person, project, at, seconds=10.0):
    """An answer at a given time."""
    with store.write() as connection:
        task = connection.execute(
            text(
                "SELECT task_id FROM tasks WHERE project_id = :p AND task_id NOT IN "
                "(SELECT task_id FROM annotations) LIMIT 1"
            ),
            {"p": project},
        ).scalar_one()
        row = {
            "annotation_id": f"j-{task}",
            "task_id": task,
            "project_id": project,
            "annotator_id": person,
            "client_key": f"key-{task}",
            "version": 1,
            "kind": "pairwise",
            "preference": "tie",
            "flags": [],
            "shown_order": [],
            "seconds": seconds,
            "created_at": at,
        }
        connection.execute(insert(annotations_table), row)


def test_progress_looks_at_this_sitting_and_the_median_time(store, fill, project, somebody):
    fill(store, 8, project=project)
    now = 1_800_000_000.0
    for at, seconds in ((-9000, 100.0), (-8990, 90.0), (-1500, 10.0), (-1000, 20.0), (-60, 30.0)):
        answered(store, somebody, project, now + at, seconds)
    with store.read() as connection:
        figures = progress_of(connection, somebody, project, now=now)
        assert (figures["sitting"], figures["seconds"]) == (3, 30.0)
        assert progress_of(connection, somebody, project, now=now + 3600)["sitting"] == 0
        assert progress_of(connection, "nobody", project, now=now) == {
            "mine": 0,
            "sitting": 0,
            "seconds": None,
        }
        assert open_tasks(connection, somebody, project) == {"open": 8, "more": False}


def test_days_in_a_row_are_days_of_the_person_s_own_time(store, fill, project, somebody):
    fill(store, 8, project=project)
    midnight = 20_000 * DAY
    for at in (-3 * DAY + 60, -DAY + 60, 60, 7200):  # a day is missing, then yesterday and today in UTC
        answered(store, somebody, project, midnight + at)
    with store.read() as connection:
        assert days_in_a_row(connection, somebody, shift_s=0, now=midnight + 3 * 3600) == 2
        assert days_in_a_row(connection, somebody, shift_s=0, now=midnight + DAY + 60) == 2  # not over yet
        assert days_in_a_row(connection, somebody, shift_s=0, now=midnight + 2 * DAY + 60) == 0
        # an hour to the west the first answers of a day belong to the day before: three days in a row
        assert days_in_a_row(connection, somebody, shift_s=-3600, now=midnight + 7300) == 3
        assert days_in_a_row(connection, "nobody", shift_s=0, now=midnight) == 0
