"""A person's ratings are erased on request: their words are gone, their answers no longer count."""

from __future__ import annotations

import time

import pytest
from desk_world import make, rate, rate_all, rows
from sqlalchemy import insert

from feedback_app.accounts import create_annotator, log_in
from feedback_app.store.adjudication import adjudicate
from feedback_app.store.annotations import answer, judgements, submit
from feedback_app.store.erasure import erase_account, erase_ratings
from feedback_app.store.history import my_answers
from feedback_app.store.leases import lease_next, skip
from feedback_app.store.registry_schema import artifact_parents, artifacts
from feedback_app.store.schema import drafts
from feedback_app.store.snapshots import export_snapshot
from rlhf.core.errors import StoreError

pytestmark = pytest.mark.databases("sqlite", "postgresql")


def add_artifact(store, name, *, snapshot_id=None, parent=None):
    row = {
        "artifact_id": name,
        "stage": "reward",
        "path": f"runs/{name}",
        "sha256": name,
        "manifest": {},
        "snapshot_id": snapshot_id,
        "simulated": False,
        "created_at": time.time(),
    }
    with store.write() as connection:
        connection.execute(insert(artifacts), row)
        if parent is not None:
            link = {"artifact_id": name, "parent_id": parent, "role": "reward"}
            connection.execute(insert(artifact_parents), link)


def test_words_are_gone_answers_leave_and_places_are_free_again(store, fill, people):
    fill(store, 3, overlap=2)
    (demonstration,) = make(store, "demonstration", 0, overlap=2)
    rate_all(store, people[1])
    pairs = 0
    while (view := lease_next(store, people[0], "p")) is not None:
        fields = {"preference": "first", "strength": 1, "reason": "my private reason"}
        if view.kind == "demonstration":
            fields = {"demonstration": "my private words"}
        elif (pairs := pairs + 1) == 3:
            skip(store, view.lease_id, people[0], reason="my private excuse", client_key="s")
            continue
        submit(store, answer(view, people[0], **fields), lease_id=view.lease_id, client_key=view.lease_id)
    with store.write() as connection:
        draft = {
            "task_id": demonstration,
            "annotator_id": people[0],
            "content": {"reason": "my private draft"},
        }
        connection.execute(insert(drafts), {**draft, "updated_at": 1.0})
    erasure = erase_ratings(store, "rater 0", requested_by="rater 0", reason="asked by mail")
    # Two reasons, the demonstration, the draft and the reason for the skip.
    assert (erasure.num_answers, erasure.num_texts) == (3, 5)
    for table in ("annotation_texts", "skips", "drafts", "annotations"):
        assert "private" not in str(rows(store, f"SELECT * FROM {table}"))
    assert {j.annotator_id for j in judgements(store, "p")} == {people[1]}
    assert rows(store, "SELECT sum(num_done) FROM tasks") == [(4,)]
    assert rows(store, "SELECT count(*) FROM tasks WHERE num_done < overlap AND NOT is_open") == [(0,)]
    with store.read() as connection:
        assert my_answers(connection, people[0], "p") == []
    assert len(rate_all(store, people[2])) == 4


def test_erasing_again_erases_nothing_more(store, fill, people):
    fill(store, 2)
    rate(store, people[0], preference="tie", reason="words")
    assert erase_ratings(store, "rater 0", requested_by="system").num_answers == 1
    again = erase_ratings(store, "rater 0", requested_by="system")
    assert (again.num_answers, again.num_texts) == (0, 0)
    assert rows(store, "SELECT count(*) FROM audit_log WHERE action = 'erase.ratings'") == [(1,)]
    assert rows(store, "SELECT num_done FROM tasks ORDER BY num_done") == [(0,), (0,)]


def test_snapshots_and_what_learned_from_them_are_listed(store, fill, people, tmp_path):
    fill(store, 4, overlap=2)
    rate_all(store, people[1])
    before = export_snapshot(store, tmp_path / "before", project="p", seed=0)
    rate_all(store, people[0])
    held = export_snapshot(store, tmp_path / "held", project="p", seed=0)
    add_artifact(store, "untouched", snapshot_id=before.snapshot_id)
    add_artifact(store, "reward", snapshot_id=held.snapshot_id)
    add_artifact(store, "policy", parent="reward")
    add_artifact(store, "policy-2", parent="policy")
    for _ in range(2):
        erasure = erase_ratings(store, "rater 0", requested_by="system")
        assert [(s.snapshot_id, s.path, s.project, s.num_members) for s in erasure.snapshots] == [
            (held.snapshot_id, str(tmp_path / "held"), "p", 4)
        ]
        assert [a.artifact_id for a in erasure.artifacts] == ["reward", "policy", "policy-2"]
    (details,) = rows(store, "SELECT details FROM audit_log WHERE action = 'erase.ratings'")
    assert held.snapshot_id in str(details)
    assert "rater 0" not in str(details)


def test_a_dispute_and_a_decision_go_with_the_person(store, fill, people):
    lead = create_annotator(store, "lead", password=None, role="lead")
    fill(store, 2, overlap=2)
    views = [rate(store, people[0], preference="first", strength=1)[0] for _ in range(2)]
    rate_all(store, people[1], preference="second", strength=1)
    adjudicate(store, answer(views[0], lead, preference="tie"), lead, client_key="k")
    assert len(list(judgements(store, "p"))) == 3
    erase_ratings(store, "lead", requested_by="system")
    assert rows(store, "SELECT DISTINCT dispute FROM tasks") == [("open",)]
    assert len(list(judgements(store, "p"))) == 4
    erase_ratings(store, "rater 0", requested_by="system")
    assert rows(store, "SELECT DISTINCT dispute FROM tasks") == [(None,)]


def test_an_erased_account_has_no_name_and_no_door(store, fill, people):
    fill(store, 2)
    rater = create_annotator(store, "Ada", password="correct horse battery")
    assert log_in(store, "Ada", "correct horse battery", address="10.0.0.1")
    lease_next(store, rater, "p")
    rate(store, rater)
    lease_next(store, rater, "p")
    erase_account(store, "Ada", requested_by="system")
    for table in ("annotators", "sessions", "login_attempts", "api_tokens", "one_time_links"):
        assert "Ada" not in str(rows(store, f"SELECT * FROM {table}"))
    assert rows(store, "SELECT count(*) FROM sessions") == [(0,)]
    assert log_in(store, "Ada", "correct horse battery", address="10.0.0.1") is None
    assert rows(store, "SELECT sum(num_held), sum(num_done) FROM tasks") == [(0, 0)]
    with pytest.raises(StoreError, match="disabled"):
        lease_next(store, rater, "p")
    with pytest.raises(StoreError, match="no account 'Ada'"):
        erase_account(store, "Ada", requested_by="system")
    assert create_annotator(store, "Ada", password=None) != rater


@pytest.mark.databases("sqlite")
def test_unknown_people_and_the_last_administrator_are_not_erased(store, people):
    with pytest.raises(StoreError, match="no account 'nobody'"):
        erase_ratings(store, "nobody", requested_by="system")
    with pytest.raises(StoreError, match="could ask for an erasure"):
        erase_ratings(store, "rater 0", requested_by="nobody")
    create_annotator(store, "root", password="correct horse battery", role="admin")
    with pytest.raises(StoreError, match="last administrator"):
        erase_account(store, "root", requested_by="system")
    assert rows(store, "SELECT count(*) FROM annotators WHERE erased_at IS NOT NULL") == [(0,)]
