"""Disputes are noticed as answers come, a lead decides, and the decision stands alone in exports."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from desk_world import make, rate, rows

from feedback_app.accounts import create_annotator
from feedback_app.quality.agreement import pairwise_agreement
from feedback_app.store.adjudication import adjudicate, disputed, num_disputed, open_dispute
from feedback_app.store.annotations import answer, judgements, submit
from feedback_app.store.disputes import contradict
from feedback_app.store.gold import set_gold
from feedback_app.store.snapshots import export_snapshot
from rlhf.core.errors import StoreError

pytestmark = pytest.mark.databases("sqlite", "postgresql")


@pytest.fixture
def lead(store):
    return create_annotator(store, "lead", password=None, role="lead")


@pytest.fixture
def dispute(store, fill, people):
    """One disputed pair: 'first' by the first person, 'second' by the next."""
    fill(store, 1, overlap=3)
    rate(store, people[0], preference="first", strength=3, reason="kinder")
    rate(store, people[1], preference="second", strength=1)
    with store.read() as connection:
        (found,) = disputed(connection, "p")
    return found


def said(**fields):
    return SimpleNamespace(**{"preference": None, "ranking": None, "scores": None, "thumb": None, **fields})


@pytest.mark.parametrize(
    ("kind", "answers", "expected"),
    [
        ("pairwise", [said(preference="first"), said(preference="second")], True),
        ("pairwise", [said(preference="first"), said(preference="tie")], False),
        ("pairwise", [said(preference="tie"), said(preference="both_bad")], False),
        ("thumbs", [said(thumb="up"), said(thumb="up"), said(thumb="down")], True),
        ("thumbs", [said(thumb="up")], False),
        ("ranking", [said(ranking=[["a"], ["b"], ["c"]]), said(ranking=[["b"], ["a"], ["c"]])], False),
        ("ranking", [said(ranking=[["a"], ["b"], ["c"]]), said(ranking=[["c"], ["a"], ["b"]])], True),
        ("scores", [said(scores={"help": {"c": 5}}), said(scores={"help": {"c": 2}})], True),
        ("scores", [said(scores={"help": {"c": 4}}), said(scores={"help": {"c": 2}})], False),
        ("demonstration", [said(), said()], False),
    ],
)
@pytest.mark.databases("sqlite")
def test_what_a_contradiction_is(kind, answers, expected):
    assert contradict(kind, answers) is expected


def test_a_dispute_shows_who_said_what_and_not_which_model(store, dispute, people):
    assert dispute.differs == "1 first, 1 second"
    assert [(o.name, o.preference, o.strength, o.reason) for o in dispute.answers] == [
        ("rater 0", "first", 3, "kinder"),
        ("rater 1", "second", 1, ""),
    ]
    assert "secret" not in dispute.task.model_dump_json()


def test_a_correction_can_end_a_dispute(store, fill, people):
    fill(store, 1, overlap=2)
    view, _ = rate(store, people[0], preference="first", strength=1)
    rate(store, people[1], preference="second", strength=1)
    assert rows(store, "SELECT dispute FROM tasks") == [("open",)]
    changed = answer(view, people[0], preference="tie")
    submit(store, changed, lease_id=view.lease_id, client_key="I see")
    assert rows(store, "SELECT dispute FROM tasks") == [(None,)]


def test_a_decision_stands_for_all_answers_in_exports_and_changes_no_opinion(
    store, dispute, lead, people, tmp_path
):
    places = rows(store, "SELECT num_done, num_held, is_open = true FROM tasks")
    decision = answer(dispute.task, lead, preference="second", strength=2, reason="the first one invents")
    receipt = adjudicate(store, decision, lead, client_key="decision")
    assert (receipt.version, receipt.surplus) == (1, False)
    assert adjudicate(store, decision, lead, client_key="decision").repeated
    (exported,) = judgements(store, "p")
    assert (exported.annotator_id, exported.preference) == (lead, "second")
    manifest = export_snapshot(store, tmp_path / "s", project="p", seed=0)
    assert (manifest.num_judgements, manifest.num_adjudicated) == (1, 1)
    assert manifest.left_out == {"overruled": 2}
    assert pairwise_agreement(store, "p", num_resamples=10).n_annotators == 2
    assert rows(store, "SELECT num_done, num_held, is_open = true FROM tasks") == places
    with store.read() as connection:
        assert num_disputed(connection, "p") == 0
        assert len(open_dispute(connection, dispute.task.task_id).answers) == 2
    assert rows(store, "SELECT actor, subject FROM audit_log WHERE action = 'adjudicate'") == [
        (lead, dispute.task.task_id)
    ]
    # A third opinion does not reopen what was decided.
    rate(store, people[2], preference="first", strength=3)
    assert rows(store, "SELECT dispute FROM tasks") == [("decided",)]
    assert len(list(judgements(store, "p"))) == 1


def test_the_newest_decision_stands_whoever_made_it(store, dispute, lead):
    admin = create_annotator(store, "admin", password=None, role="admin")
    adjudicate(store, answer(dispute.task, lead, preference="first", strength=1), lead, client_key="1")
    adjudicate(store, answer(dispute.task, admin, preference="both_bad"), admin, client_key="2")
    assert [j.preference for j in judgements(store, "p")] == ["both_bad"]
    again = adjudicate(store, answer(dispute.task, lead, preference="tie"), lead, client_key="3")
    assert again.version == 2
    assert [j.preference for j in judgements(store, "p")] == ["tie"]


def test_a_lead_who_rates_and_decides_has_said_two_things(store, fill, people, lead):
    fill(store, 1, overlap=2)
    view, _ = rate(store, lead, preference="first", strength=1)
    rate(store, people[0], preference="second", strength=1)
    adjudicate(store, answer(view, lead, preference="tie"), lead, client_key="decision")
    found = rows(store, "SELECT purpose, preference FROM latest_annotations ORDER BY purpose, preference")
    assert found == [("adjudicate", "tie"), ("rate", "first"), ("rate", "second")]
    # Correcting the rating corrects the rating.
    submit(store, answer(view, lead, preference="tie"), lease_id=view.lease_id, client_key="correction")
    assert rows(store, "SELECT count(*) FROM current_annotations WHERE preference = 'tie'") == [(1,)]
    assert [j.annotator_id for j in judgements(store, "p")] == [lead]


def test_only_leads_decide_and_only_about_work(store, dispute, lead, people):
    decision = answer(dispute.task, people[2], preference="tie")
    with pytest.raises(StoreError, match="only a lead or an administrator"):
        adjudicate(store, decision, people[2], client_key="k")
    make(store, "thumbs", 1)
    (gold,) = [r[0] for r in rows(store, "SELECT task_id FROM tasks WHERE kind = 'thumbs'")]
    set_gold(store, gold, {"thumb": "up"})
    with store.read() as connection:
        view = open_dispute(connection, gold).task
    with pytest.raises(StoreError, match="gold task; there is nothing to decide"):
        adjudicate(store, answer(view, lead, thumb="up"), lead, client_key="k")
    assert rows(store, "SELECT count(*) FROM annotations WHERE purpose = 'adjudicate'") == [(0,)]
    # A disputed pair whose answer is known now is no longer to be decided.
    set_gold(store, dispute.task.task_id, {"preference": "first"})
    with store.read() as connection:
        assert disputed(connection, "p") == []
        assert num_disputed(connection, "p") == 0
