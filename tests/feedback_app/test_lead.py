"""The leads' side: who gets in, what the dashboards say about people of known skill, and what leads can do."""

from __future__ import annotations

import csv
import io
import time

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from sqlalchemy import text

from feedback_app import accounts
from feedback_app.accounts import Person, create_annotator
from feedback_app.app import build_app
from feedback_app.config import AppConfig
from feedback_app.lead.dashboards import VIEWS, Dashboards
from feedback_app.lead.office import ArchiveBody, GoldBody, NotALead, Office
from feedback_app.quality.answers import load_answers
from feedback_app.store.annotations import answer, judgements, submit
from feedback_app.store.engine import Store
from feedback_app.store.leases import lease_next
from feedback_app.store.projects import change_settings
from feedback_app.store.tasks import create_tasks, set_rubric
from tests.feedback_app.rated_world import MODELS, SKILLS, rated_world

PASSWORD = "correct horse battery"
ORIGIN = "http://localhost"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch):
    """Full-strength argon2id is tested in test_accounts; here it would only take time."""
    monkeypatch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A store with a project that was rated for six weeks; the tests here do not change it."""
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('rated')}/feedback.db") as opened:
        rated_world(opened)
        yield opened


def client_of(store, name, role):
    create_annotator(store, name, password=PASSWORD, role=role)
    client = TestClient(
        build_app(store, AppConfig()), base_url=ORIGIN, follow_redirects=False, headers={"origin": ORIGIN}
    )
    assert client.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
    return client


@pytest.fixture
def lead(store, monkeypatch):
    """A lead who has logged in to the application without its Gradio pages, which take long to build."""
    monkeypatch.setattr("feedback_app.app.gr.mount_gradio_app", lambda *_, **__: None)
    monkeypatch.setattr("feedback_app.app.desk_blocks", lambda: None)
    monkeypatch.setattr("feedback_app.app.lead_blocks", lambda: None)
    return client_of(store, "lena", "lead")


def panels(store, view, project="support"):
    return {panel.name: panel for panel in Dashboards(store).view(project, view).panels}


def rate(store, person, preference, project="p", **fields):
    view = lease_next(store, person, project)
    return submit(
        store,
        answer(view, person, preference=preference, **fields),
        lease_id=view.lease_id,
        client_key=f"key-{view.lease_id}",
        seconds=12.0,
    )


def dispute(store, fill, people):
    """One task about which two people contradict each other: its id."""
    (task,) = fill(store, 1, overlap=2)
    rate(store, people[0], "first", strength=2, reason="more precise")
    rate(store, people[1], "second", strength=1)
    return task


# --- who gets in ----------------------------------------------------------------------------------------

READS = ["", "/view/overview?project=p", "/disputes?project=p", "/gold?project=p", "/case?task=t"]
READS += ["/settings?project=p", "/members?project=p", "/p/agreement.csv"]
WRITES = ["release", "decide", "gold", "gold/retire", "settings", "rubric", "archive", "member"]


def test_annotators_are_refused_everywhere(store, fill):
    fill(store, 1)
    client = client_of(store, "anna", "annotator")
    refused = [client.get(f"/api/v1/lead{path}").status_code for path in READS]
    refused += [client.post(f"/api/v1/lead/{path}", json={}).status_code for path in WRITES]
    refused += [client.get("/lead/").status_code, client.get("/lead/config").status_code]
    assert set(refused) == {403}


def test_every_method_checks_the_role_itself(store):
    """Also when a route forgot to: methods of the office refuse an annotator before anything else."""
    office, anna = Office(store), Person("a-1", "anna", "annotator")
    calls = {
        "overview": (), "view": ("p", "overview"), "csv": ("p", "agreement"), "release": (None,),
        "disputes": ("p",), "decide": (None,), "gold": ("p",), "case": ("t",), "make_gold": (None,),
        "retire_gold": (None,), "settings": ("p",), "change_settings": (None,), "add_rubric": (None,),
        "archive": (None,), "members": ("p",), "set_member": (None,),
    }  # fmt: skip
    public = {name for name in vars(Office) if not name.startswith("_")}
    assert public == set(calls)
    for name, arguments in calls.items():
        with pytest.raises(NotALead):
            getattr(office, name)(anna, *arguments)


@pytest.mark.parametrize("role", ["lead", "admin"])
def test_leads_and_administrators_get_in(store, fill, role):
    fill(store, 2)
    client = client_of(store, "lena", role)
    assert client.get("/api/v1/lead").json()["projects"][0]["id"] == "p"
    for path in ("/lead/", "/lead/config"):
        page = client.get(path)
        assert page.status_code == 200
        # the page itself holds no data
        assert "secret-model-7b" not in page.text
        assert "answer 1" not in page.text


# --- what the dashboards say ----------------------------------------------------------------------------


def test_people_of_known_skill_are_told_apart(rated):
    rows = {row["name"]: row for row in panels(rated, "annotators")["annotators"].rows}
    assert set(rows) == set(SKILLS)
    good = ("Amara", "Bruno", "Chiara", "Deniz")
    for measure in ("reliability", "agreement", "weight"):
        assert rows["Greta"][measure] < rows["Farid"][measure] < min(rows[name][measure] for name in good)
    assert "answers the reverse of others" in rows["Greta"]["note"]
    assert all(not rows[name]["note"] for name in good)
    for row in rows.values():
        assert row["reliability_low"] <= row["reliability"] <= row["reliability_high"]
        assert 0 < row["left_low"] < row["left"] < row["left_high"] < 1
        assert "side" not in row["note"]  # sides were shuffled for them


def test_answers_below_the_projects_limit_are_counted(store):
    rated_world(store, num_tasks=120)
    change_settings(store, "support", {"min_seconds": 1.0}, actor="lena")
    rows = {row["name"]: row for row in panels(store, "annotators")["annotators"].rows}
    assert rows["Farid"]["too_fast"] > 0.2 * rows["Farid"]["answers"]
    assert "often too fast" in rows["Farid"]["note"]
    assert rows["Amara"]["too_fast"] == 0


def test_win_rates_order_the_models(rated):
    found = panels(rated, "models")
    assert [row["model"] for row in found["win_rates"].rows] == list(MODELS)
    assert all(row["rate_low"] < row["rate"] < row["rate_high"] for row in found["win_rates"].rows)
    cells = {(row["model"], row["against"]): row for row in found["win_matrix"].rows}
    assert len(cells) == 12
    for (one, other), row in cells.items():
        assert row["score"] + cells[other, one]["score"] == pytest.approx(1, abs=2e-4)
        assert row["games"] == cells[other, one]["games"]


def test_drift_shows_every_week_and_no_change_where_there_is_none(rated):
    found = panels(rated, "drift")
    weeks = found["agreement_by_week"].rows
    assert 6 <= len(weeks) <= 7
    assert sum(row["answers"] for row in weeks) == 720
    for week in weeks:
        shares = [row["share"] for row in found["labels_by_week"].rows if row["week"] == week["week"]]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert "do not differ" in found["labels_by_week"].note
    assert {row["what"] for row in found["changes"].rows} >= {"agreement", "tie"}


def test_the_longer_and_the_left_answer_are_counted(rated):
    """Against a count of the same rows by hand."""
    with rated.read() as connection:
        found = connection.execute(text("SELECT completion_id, length(text) FROM completions"))
        lengths = dict(found.tuples().all())
    longer, left = [], []
    for judgement in judgements(rated, "support"):
        if judgement.preference in ("first", "second"):
            chosen = judgement.completion_ids[judgement.preference == "second"]
            other = judgement.completion_ids[judgement.preference == "first"]
            left.append(judgement.shown_order[0] == chosen)
            if lengths[chosen] != lengths[other]:
                longer.append(lengths[chosen] > lengths[other])
    panel = panels(rated, "overview")["biases"]
    for row, counted in zip(panel.rows, (left, longer), strict=True):
        assert row["n"] == len(counted)
        assert row["share"] == pytest.approx(sum(counted) / len(counted), abs=1e-4)
        assert row["share_low"] < row["share"] < row["share_high"]
    assert "Twice the length multiplies the odds" in panel.note


def test_every_figure_of_the_overview_and_the_queue_adds_up(store, fill, people):
    fill(store, 5, overlap=2)
    for person in people[:2]:
        rate(store, person, "first", strength=3)
    lease_next(store, people[2], "p")
    view = Dashboards(store).view("p", "overview")
    tiles = {tile["label"]: tile["value"] for tile in view.tiles}
    assert (tiles["answers"], tiles["answers today"], tiles["people this week"]) == (2, 2, 2)
    assert (tiles["done"], tiles["open tasks"], tiles["held now"]) == (0.2, 4, 1)
    (queue,) = view.panel("queue").rows
    assert (queue["done"], queue["held"], queue["free"]) == (2, 1, 7)
    assert sum(row["answers"] for row in view.panel("throughput_days").rows) == 2
    assert [row["share"] for row in view.panel("labels").rows] == [1.0]
    (held,) = Dashboards(store).view("p", "queue").panel("leases").rows
    assert (held["name"], held["state"]) == ("rater 2", "held")


def test_an_empty_project_says_so_everywhere(store, fill):
    fill(store, 1)
    for name in VIEWS:
        view = Dashboards(store).view("p", name)
        assert view.panels
        assert all(panel.rows or panel.empty for panel in view.panels)


def test_scores_rankings_and_thumbs_are_measured_too(store, fill, people):
    fill(store, 4, overlap=2)
    set_rubric(store, "p", "Score it.", attributes=[{"name": "helpful", "definition": "1 to 5"}])
    with store.read() as connection:
        pairs = connection.execute(text("SELECT prompt_id, completion_id FROM completions ORDER BY 1")).all()
    by_prompt = {}
    for prompt_id, completion_id in pairs:
        by_prompt.setdefault(prompt_id, []).append(completion_id)
    for kind, count in (("scores", 2), ("thumbs", 1)):
        items = [(prompt, tuple(ids[:count])) for prompt, ids in by_prompt.items()]
        create_tasks(store, project=kind, kind=kind, items=items, overlap=2)
    set_rubric(store, "scores", "Score it.", attributes=[{"name": "helpful", "definition": "1 to 5"}])
    for person, shift in zip(people, (0, 1), strict=False):
        for number in range(4):
            view = lease_next(store, person, "scores")
            level = int(view.task_id[-1], 16) % 4 + 1
            given = {c.completion_id: min(5, level + i + shift) for i, c in enumerate(view.completions)}
            judgement = answer(view, person, scores={"helpful": given})
            submit(store, judgement, lease_id=view.lease_id, client_key=f"s-{person}-{number}")
            view = lease_next(store, person, "thumbs")
            judgement = answer(view, person, thumb="up")
            submit(store, judgement, lease_id=view.lease_id, client_key=f"t-{person}-{number}")
    rows = {row["measure"]: row for row in panels(store, "overview", "scores")["agreement"].rows}
    assert rows["kappa, quadratic"]["items"] == 8
    people_rows = panels(store, "annotators", "scores")["annotators"].rows
    assert [row["agreement"] for row in people_rows] == [1.0, 1.0]  # never more than a point apart
    labels = panels(store, "overview", "thumbs")["labels"].rows
    assert [(row["label"], row["count"]) for row in labels] == [("up", 8)]


def test_gold_and_repeats_count_for_people_and_not_for_agreement(store, fill, people):
    tasks = fill(store, 6, overlap=1)
    office, lena = (
        Office(store),
        Person(create_annotator(store, "lena", password=None, role="lead"), "lena", "lead"),
    )
    rate(store, people[0], "first", strength=1)
    first = load_project(store)
    office.make_gold(lena, GoldBody(task=untouched(store, tasks), choice="tie"))
    change_settings(store, "p", {"gold_rate": 1.0}, actor="lena")
    rate(store, people[1], "tie")
    rate(store, people[2], "both_bad")
    assert len(load_project(store)) == len(first) == 1
    rows = {row["name"]: row for row in panels(store, "annotators", "p")["annotators"].rows}
    assert set(rows) == {"rater 0"}  # the others answered gold only
    found = office.gold(lena, "p")["items"][0]
    assert (found["answers"], found["correct"]) == (2, 1)


def load_project(store, project="p"):
    with store.read() as connection:
        return load_answers(connection, project)


def untouched(store, tasks):
    """A task that nobody has answered."""
    with store.read() as connection:
        done = connection.execute(text("SELECT task_id FROM annotations")).scalars().all()
    return next(task for task in tasks if task not in done)


def test_results_are_kept_until_something_changes(store, fill, people):
    fill(store, 3)
    dashboards = Dashboards(store)
    rate(store, people[0], "first", strength=1)
    before = dashboards.view("p", "overview").panel("agreement")
    assert dashboards.view("p", "overview").panel("agreement") is before
    rate(store, people[0], "first", strength=1)
    after = dashboards.view("p", "overview")
    assert after.panel("agreement") is not before
    assert after.tiles[0]["value"] == 2


def test_ten_thousand_answers_take_a_second(tmp_path):
    """The goal is 50,000 in 3 s; a fifth of them in a third of the time, in processor time, to be quick and stable."""
    with Store.open(f"sqlite:///{tmp_path}/large.db") as store:
        assert rated_world(store, num_tasks=3400, num_weeks=12).num_answers > 10_000
        began = time.process_time()
        Dashboards(store).view("support", "overview")
        assert time.process_time() - began < 1.0


# --- CSV ------------------------------------------------------------------------------------------------


def test_each_table_leaves_as_csv(store, lead, fill):
    rated_world(store, num_tasks=60, project="a/b")
    for view in VIEWS:
        for panel in lead.get(f"/api/v1/lead/view/{view}", params={"project": "a/b"}).json()["panels"]:
            reply = lead.get(f"/api/v1/lead/a%2Fb/{panel['name']}.csv")
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("text/csv")
            rows = list(csv.DictReader(io.StringIO(reply.text)))
            assert len(rows) == len(panel["rows"])
            for column in panel["columns"]:
                keys = [column["key"]] + [f"{column['key']}_{end}" for end in ("low", "high")] * column[
                    "ranged"
                ]
                assert set(keys) <= set(reply.text.splitlines()[0].split(","))
    assert lead.get("/api/v1/lead/a%2Fb/nothing.csv").status_code == 404


def test_a_formula_in_a_name_stays_text(store, lead, fill):
    fill(store, 1)
    person = create_annotator(store, '=HYPERLINK("http://evil.example")', password=None)
    rate(store, person, "first", strength=1)
    (row,) = csv.DictReader(io.StringIO(lead.get("/api/v1/lead/p/annotators.csv").text))
    assert row["name"].startswith("'=")


# --- what leads do --------------------------------------------------------------------------------------


def test_a_lead_decides_a_dispute(store, lead, fill, people):
    task = dispute(store, fill, people)
    found = lead.get("/api/v1/lead/disputes?project=p")
    assert "secret-model-7b" not in found.text
    (case,) = found.json()["cases"]
    assert case["task"] == task
    said = {entry["name"]: entry["said"] for entry in case["answers"]}
    letters = {side["text"].split()[0]: side["letter"] for side in case["sides"]}
    assert said == {
        "rater 0": f"{letters['first']} clearly better",
        "rater 1": f"{letters['second']} slightly better",
    }
    choice = letters["second"].lower()
    body = {"task": task, "key": "decision-1", "choice": choice, "strength": 2, "reason": "kinder"}
    assert lead.post("/api/v1/lead/decide", json=body).json()["decided"] is True
    assert lead.post("/api/v1/lead/decide", json=body).json()["repeated"] is True
    assert lead.get("/api/v1/lead/disputes?project=p").json()["number"] == 0
    (final,) = judgements(store, "p")
    assert (final.preference, final.reason) == ("second", "kinder")


def test_a_lead_takes_over_somebodys_answer(store, lead, fill, people):
    task = dispute(store, fill, people)
    (case,) = lead.get("/api/v1/lead/disputes?project=p").json()["cases"]
    chosen = next(entry for entry in case["answers"] if entry["name"] == "rater 0")
    body = {"task": task, "key": "decision-1", "annotation": chosen["annotation"]}
    assert lead.post("/api/v1/lead/decide", json=body).status_code == 200
    (final,) = judgements(store, "p")
    assert (final.preference, final.strength) == ("first", 2)


def test_a_disputed_task_that_became_gold_is_no_dispute_any_more(store, lead, fill, people):
    task = dispute(store, fill, people)
    assert lead.post("/api/v1/lead/gold", json={"task": task, "choice": "tie"}).status_code == 200
    assert lead.get("/api/v1/lead/disputes?project=p").json() == {"number": 0, "cases": []}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choice": "a", "annotation": "j-1"},
        {"annotation": "j-of-another-task"},
        {"choice": "tie", "strength": 2},
        {"choice": "c"},
    ],
)
def test_decisions_that_make_no_sense_are_refused(store, lead, fill, people, body):
    task = dispute(store, fill, people)
    reply = lead.post("/api/v1/lead/decide", json={"task": task, "key": "decision-1", **body})
    assert reply.status_code == 422
    assert lead.get("/api/v1/lead/disputes?project=p").json()["number"] == 1


def test_a_lead_releases_a_lease(store, lead, fill, people):
    fill(store, 1)
    lease = lease_next(store, people[0], "p").lease_id
    assert lease_next(store, people[1], "p") is None
    assert lead.post("/api/v1/lead/release", json={"lease": lease}).json() == {"released": True}
    assert lead.post("/api/v1/lead/release", json={"lease": lease}).json() == {"released": False}
    assert lease_next(store, people[1], "p") is not None
    with store.read() as connection:
        query = text("SELECT count(*) FROM audit_log WHERE action = 'lease.release'")
        assert connection.execute(query).scalar() == 1


def test_a_candidate_becomes_gold_and_is_retired(store, lead, fill, people):
    (task,) = fill(store, 1, overlap=2)
    for person in people[:2]:
        rate(store, person, "first", strength=1)
    (candidate,) = lead.get("/api/v1/lead/gold?project=p").json()["candidates"]
    answer_id = candidate["answers"][0]["annotation"]
    body = {"task": task, "annotation": answer_id, "explanation": "It is true."}
    assert lead.post("/api/v1/lead/gold", json=body).json() == {"gold": True}
    found = lead.get("/api/v1/lead/gold?project=p").json()
    assert [item["explanation"] for item in found["items"]] == ["It is true."]
    assert found["candidates"] == []
    assert lead.post("/api/v1/lead/gold/retire", json={"task": task}).json() == {"retired": True}
    assert lead.get("/api/v1/lead/gold?project=p").json()["items"][0]["retired"] is True


def test_settings_rubric_and_members_are_changed(store, lead, fill, people):
    fill(store, 1)
    changes = {"project": "p", "changes": {"min_seconds": 2.5, "members_only": True}}
    assert lead.post("/api/v1/lead/settings", json=changes).json()["settings"]["min_seconds"] == 2.5
    wrong = lead.post("/api/v1/lead/settings", json={"project": "p", "changes": {"min_second": 1}})
    assert (wrong.status_code, "min_seconds" in wrong.json()["detail"]) == (422, True)
    attributes = [{"name": "truth", "definition": "5: all of it is true"}]
    rubric = {"project": "p", "title": "How true?", "text": "Look it up.", "attributes": attributes}
    assert lead.post("/api/v1/lead/rubric", json=rubric).json() == {"version": 2}
    found = lead.get("/api/v1/lead/settings?project=p").json()["rubrics"]
    assert (found[0]["version"], found[0]["title"], found[0]["by"]) == (2, "How true?", "lena")
    assert found[0]["attributes"][0]["name"] == "truth"
    twice = lead.post("/api/v1/lead/rubric", json={**rubric, "attributes": attributes * 2})
    assert twice.status_code == 422
    body = {"project": "p", "person": people[0], "member": True}
    assert lead.post("/api/v1/lead/member", json=body).json() == {"member": True}
    members = {p["id"]: p["member"] for p in lead.get("/api/v1/lead/members?project=p").json()["people"]}
    assert (members[people[0]], members[people[1]]) == (True, False)


def test_an_archived_project_leaves_the_desk_and_comes_back(store, fill, people):
    fill(store, 1)
    office, lena = (
        Office(store),
        Person(create_annotator(store, "lena", password=None, role="lead"), "lena", "lead"),
    )
    office.archive(lena, ArchiveBody(project="p", archived=True))
    assert lease_next(store, people[0], "p") is None
    assert office.overview(lena)["projects"][0]["archived"] is True
    office.archive(lena, ArchiveBody(project="p", archived=False))
    assert lease_next(store, people[0], "p") is not None


def test_unknown_projects_are_named(lead):
    for path in ("view/overview", "disputes", "gold", "settings", "members"):
        reply = lead.get(f"/api/v1/lead/{path}?project=nowhere")
        assert (reply.status_code, "nowhere" in reply.json()["detail"]) == (409, True)
