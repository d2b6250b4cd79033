"""Answers that a reward model contradicts come before a lead, once, with a reason that no annotator sees."""

from __future__ import annotations

import pytest
from argon2 import PasswordHasher
from desk_world import rate, rate_all, rows
from fastapi.testclient import TestClient

from feedback_app import accounts
from feedback_app.accounts import create_annotator
from feedback_app.app import build_app
from feedback_app.config import AppConfig
from feedback_app.store.adjudication import adjudicate, disputed, open_dispute
from feedback_app.store.annotations import answer, submit
from feedback_app.store.doubts import doubts_of, raise_doubts, rated_answers
from feedback_app.store.erasure import erase_ratings
from feedback_app.store.gold import set_gold
from feedback_app.store.leases import lease_next
from feedback_app.store.overlap import raise_overlap
from feedback_app.store.snapshots import export_snapshot
from rlhf.core.errors import DataError, StoreError

on_both = pytest.mark.databases("sqlite", "postgresql")
MODEL = "runs/reward@0123456789"
PASSWORD = "correct horse battery"


def ids_by_person(store):
    return dict(rows(store, "SELECT annotator_id, annotation_id FROM latest_annotations"))


def dispute_of(store, task_id):
    (found,) = rows(store, "SELECT dispute FROM tasks WHERE task_id = :t", t=task_id)
    return found[0]


def audited(store):
    return rows(store, "SELECT count(*) FROM audit_log WHERE action = 'dispute.doubt'")[0][0]


def counts(raised):
    return raised.num_opened, raised.num_noted, raised.num_known, raised.num_passed_over


@on_both
def test_doubted_answers_open_one_dispute_a_task_once(store, fill, people):
    (task,) = fill(store, 1, overlap=3)
    for person in people[:3]:
        rate(store, person, preference="first", strength=2)
    ids = ids_by_person(store)
    doubts = {ids[people[0]]: 0.04, ids[people[2]]: 0.0009}
    assert counts(raise_doubts(store, "p", MODEL, doubts)) == (1, 0, 0, 0)
    assert counts(raise_doubts(store, "p", MODEL, doubts)) == (0, 0, 1, 0)
    assert audited(store) == 1
    with store.read() as connection:
        (found,) = disputed(connection, "p")
        assert found.doubts.model == MODEL
        assert found.doubts.probabilities == doubts
        assert len(found.answers) == 3
    # Another model has another opinion: it is noted beside the open dispute, and is what the lead sees.
    assert counts(raise_doubts(store, "p", "runs/next@1", {ids[people[0]]: 0.02})) == (0, 1, 0, 0)
    with store.read() as connection:
        assert doubts_of(connection, task).probabilities == {ids[people[0]]: 0.02}


@on_both
def test_a_doubt_lasts_while_a_doubted_answer_stands(store, fill, people):
    (task,) = fill(store, 1, overlap=4)
    view, _ = rate(store, people[0], preference="first", strength=2)
    rate(store, people[1], preference="first", strength=1)
    ids = ids_by_person(store)
    raise_doubts(store, "p", MODEL, {ids[people[0]]: 0.04, ids[people[1]]: 0.04})
    # One more answer of the same kind is no reason to close it: a lead has not looked yet.
    rate(store, people[2], preference="first", strength=1)
    assert dispute_of(store, task) == "open"
    submit(store, answer(view, people[0], preference="tie"), lease_id=view.lease_id, client_key="corrected")
    assert dispute_of(store, task) == "open"
    with store.read() as connection:
        assert list(doubts_of(connection, task).probabilities) == [ids[people[1]]]
    erase_ratings(store, "rater 1", requested_by="system", reason="asked for it")
    assert dispute_of(store, task) is None
    with store.read() as connection:
        assert doubts_of(connection, task) is None


@on_both
def test_what_a_lead_decided_and_what_is_gone_is_passed_over(store, fill, people):
    tasks = fill(store, 5)
    lead = create_annotator(store, "lead", password=None, role="lead")
    made = {view.task_id: view for view, _ in rate_all(store, people[0], preference="first", strength=1)}
    ids = dict(rows(store, "SELECT task_id, annotation_id FROM latest_annotations"))
    decided, corrected, gold, retired, plain = tasks
    adjudicate(store, answer(made[decided], lead, preference="tie"), lead, client_key="decision")
    view = made[corrected]
    submit(store, answer(view, people[0], preference="tie"), lease_id=view.lease_id, client_key="corrected")
    set_gold(store, gold, {"preference": "second"})
    with store.write() as connection:
        connection.exec_driver_sql(f"UPDATE tasks SET retired_at = 1.0 WHERE task_id = '{retired}'")
    states = {decided: "decided", corrected: "replaced", gold: "not in the queue"}
    states |= {retired: "not in the queue", plain: "standing"}
    with store.read() as connection:
        found = rated_answers(connection, "p", [*ids.values(), "j-unknown"])
        assert {task: found[ids[task]].state for task in tasks} == states
        assert len(found) == 5
        assert rated_answers(connection, "another", list(ids.values())) == {}
    raised = raise_doubts(store, "p", MODEL, {**dict.fromkeys(ids.values(), 0.01), "j-unknown": 0.01})
    assert counts(raised) == (1, 0, 0, 4)
    assert [dispute_of(store, task) for task in tasks] == ["decided", None, None, None, "open"]
    # Decided by a lead, it is settled: the same doubt again does not open it.
    adjudicate(store, answer(made[plain], lead, preference="first", strength=1), lead, client_key="settled")
    assert counts(raise_doubts(store, "p", MODEL, {ids[plain]: 0.01})) == (0, 0, 0, 1)
    assert dispute_of(store, plain) == "decided"


@on_both
def test_more_people_are_asked(store, fill, people):
    tasks = fill(store, 4)
    fill(store, 1, project="other")
    for _ in range(3):
        rate(store, people[0], preference="first", strength=1)
    answered = [t for (t,) in rows(store, "SELECT task_id FROM tasks WHERE num_done = 1 ORDER BY task_id")]
    lead = create_annotator(store, "lead", password=None, role="lead")
    with store.read() as connection:
        decided = open_dispute(connection, answered[0]).task
    adjudicate(store, answer(decided, lead, preference="tie"), lead, client_key="decision")
    assert raise_overlap(store, "p", tasks, 2, reason=MODEL) == 3
    assert raise_overlap(store, "p", tasks, 2, reason=MODEL) == 0
    assert rows(store, "SELECT count(*) FROM audit_log WHERE action = 'tasks.overlap'") == [(1,)]
    assert rows(store, "SELECT overlap, is_open = true FROM tasks WHERE task_id = :t", t=answered[0]) == [
        (1, False)
    ]
    # Nobody is asked twice; the next person gets all that is open.
    assert len(rate_all(store, people[0])) == 1
    assert {view.task_id for view, _ in rate_all(store, people[1])} == set(tasks) - {answered[0]}
    assert lease_next(store, people[2], "p") is None
    (foreign,) = [t for (t,) in rows(store, "SELECT task_id FROM tasks WHERE project_id = 'other'")]
    with pytest.raises(StoreError, match=f"project 'p' has no task '{foreign}'"):
        raise_overlap(store, "p", [foreign], 2)
    with pytest.raises(DataError, match="1 to 1000; found 0"):
        raise_overlap(store, "p", tasks, 0)


# ---- who sees it -----------------------------------------------------------------------------------------


@pytest.fixture
def client_of(store, monkeypatch):
    """client_of(name, role): somebody who has logged in, without the Gradio pages, which take long to build."""
    monkeypatch.setattr("feedback_app.app.gr.mount_gradio_app", lambda *_, **__: None)
    monkeypatch.setattr("feedback_app.app.desk_blocks", lambda: None)
    monkeypatch.setattr("feedback_app.app.lead_blocks", lambda: None)
    monkeypatch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    origin = {"origin": "http://localhost"}

    def make(name, role):
        create_annotator(store, name, password=PASSWORD, role=role)
        client = TestClient(
            build_app(store, AppConfig()), base_url=origin["origin"], follow_redirects=False, headers=origin
        )
        assert client.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
        return client

    return make


def test_the_lead_sees_why_and_annotators_never_do(store, fill, client_of, people, tmp_path):
    (task,) = fill(store, 1, overlap=3)
    anna = client_of("anna", "annotator")
    api = "/api/v1/desk"
    given = anna.post(f"{api}/next", json={"project": "p"}).json()["task"]
    body = {"lease": given["lease"], "key": "answer-of-anna", "choice": "a", "strength": 3}
    assert anna.post(f"{api}/answer", json=body).status_code == 200
    rate(store, people[0], preference="tie")
    ids = dict(rows(store, "SELECT annotator_id, annotation_id FROM latest_annotations"))
    (own,) = [ids[person] for person in ids if person != people[0]]
    raise_doubts(store, "p", MODEL, {own: 0.04})

    lead = client_of("lena", "lead")
    (case,) = lead.get("/api/v1/lead/disputes?project=p").json()["cases"]
    doubts = {entry["name"]: entry["doubt"] for entry in case["answers"]}
    assert doubts == {"anna": f"the reward model {MODEL} gives this answer 4\u00a0%", "rater 0": ""}
    assert lead.get(f"/api/v1/lead/case?task={task}").json()["answers"][0]["doubt"] != ""

    # Whatever an annotator can reach, on the task itself and about it: the person doubted, and a new one.
    ben = client_of("ben", "annotator")
    seen = [ben.post(f"{api}/next", json={"project": "p"}), anna.post(f"{api}/next", json={"project": "p"})]
    seen += [anna.get(api), anna.get(f"{api}/history?project=p"), anna.get(f"{api}/history/{own}")]
    assert [reply.status_code for reply in seen] == [200] * 5
    assert seen[0].json()["task"]["lease"]
    seen += [anna.get(f"/api/v1/lead{path}") for path in (f"/case?task={task}", "/disputes?project=p")]
    seen += [anna.get("/api/v1/projects/p/tasks?state=disputed"), anna.get(f"/api/v1/tasks/{task}")]
    assert {reply.status_code for reply in seen[5:]} <= {401, 403, 404}
    for reply in seen:
        for secret in (MODEL, "reward model", "doubt", "0.04", "4\u00a0%", "dispute"):
            assert secret not in reply.text, (reply.url, secret)
    # Nor does it leave with the ratings.
    export_snapshot(store, tmp_path / "s", project="p", seed=0)
    for file in (tmp_path / "s").rglob("*.json*"):
        assert "runs/reward" not in file.read_text(), file
