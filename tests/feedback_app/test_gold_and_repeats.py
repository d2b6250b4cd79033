"""Gold items and repeats: mixed in at their rates, unmarked, outside quotas, exports and agreement."""

from __future__ import annotations

import pytest
from desk_world import make, rate, rate_all, rows

from feedback_app.quality.agreement import pairwise_agreement
from feedback_app.store.annotations import answer, judgements, submit
from feedback_app.store.gold import retire_gold, set_gold, tally, tau
from feedback_app.store.leases import TaskView, lease_next, release, skip
from feedback_app.store.projects import change_settings
from feedback_app.store.repeats import repeat_pairs
from feedback_app.store.tasks import set_rubric
from rlhf.core.errors import DataError, StoreError

on_both = pytest.mark.databases("sqlite", "postgresql")


def turn_on(store, **settings):
    change_settings(store, "p", settings, actor="test")


@on_both
def test_gold_comes_at_its_rate_once_to_each_person_and_takes_no_place(store, fill, people):
    ids = fill(store, 130)
    for task_id in ids[:50]:
        set_gold(store, task_id, {"preference": "first"})
    turn_on(store, gold_rate=0.3)
    given = [view.task_id for view, _ in rate_all(store, people[0])]
    gold = [task_id for task_id in given if task_id in ids[:50]]
    assert sorted(set(given) - set(gold)) == sorted(ids[50:])
    assert len(set(gold)) == len(gold)
    # Until 80 ordinary tasks are done, about 80 * 0.3 / 0.7 = 34 draws say gold; 4 deviations are 28.
    assert 6 <= len(gold) <= 50
    assert rows(store, "SELECT DISTINCT num_done, num_held FROM tasks WHERE pool = 'gold'") == [(0, 0)]
    assert rows(store, "SELECT purpose, count(*) FROM annotations GROUP BY 1 ORDER BY 1") == [
        ("gold", len(gold)),
        ("rate", 80),
    ]
    # The other person meets gold too: items are not used up, but in an order of their own.
    turn_on(store, gold_rate=1.0)
    others = [view.task_id for view, _ in rate_all(store, people[1])]
    assert sorted(others) == sorted(ids[:50])
    assert others[: len(gold)] != gold


@on_both
def test_a_reload_does_not_wish_the_gold_item_away(store, fill, people):
    ids = fill(store, 40)
    for task_id in ids[:20]:
        set_gold(store, task_id, {"preference": "first"})
    turn_on(store, gold_rate=0.5)
    for _ in range(12):
        view = lease_next(store, people[0], "p")
        release(store, view.lease_id, people[0])
        assert lease_next(store, people[0], "p").task_id == view.task_id
        rate(store, people[0])
    first = lease_next(store, people[0], "p")
    second = lease_next(store, people[0], "p", holding=[first.lease_id])
    assert second.task_id != first.task_id


def test_nothing_in_a_task_tells_gold_or_a_repeat(store, fill, people):
    ids = fill(store, 30)
    set_gold(store, ids[0], {"preference": "second"}, explanation="the truth")
    turn_on(store, gold_rate=1.0)
    gold = lease_next(store, people[0], "p")
    rate(store, people[0])
    turn_on(store, gold_rate=0.0)
    for _ in range(3):
        plain, _ = rate(store, people[0])
    turn_on(store, repeat_rate=1.0, repeat_after=1)
    again = lease_next(store, people[0], "p")
    assert rows(store, "SELECT purpose FROM leases WHERE lease_id = :id", id=again.lease_id) == [("repeat",)]
    for view in (gold, again):
        dumped = view.model_dump()
        assert set(dumped) == set(plain.model_dump()) == set(TaskView.model_fields)
        assert "truth" not in view.model_dump_json()
        assert dumped["task_id"].startswith("t-")
        assert len(dumped["task_id"]) == len(plain.task_id)


@pytest.mark.parametrize(
    ("kind", "num", "expected", "right", "wrong"),
    [
        (
            "pairwise",
            2,
            {"preference": "first"},
            {"preference": "first", "strength": 1},
            {"preference": "tie"},
        ),
        (
            "pairwise",
            2,
            {"preference": "second", "strength": 3, "strength_tolerance": 1},
            {"preference": "second", "strength": 2},
            {"preference": "second", "strength": 1},
        ),
        ("pairwise", 2, {"preference": "both_bad"}, {"preference": "both_bad"}, {"preference": "tie"}),
        (
            "ranking",
            3,
            {"best": "ranking0-2"},
            {"ranking": (("ranking0-2", "ranking0-0"), ("ranking0-1",))},
            {"ranking": (("ranking0-0",), ("ranking0-2",), ("ranking0-1",))},
        ),
        (
            # One swap of neighbours among 3 leaves 2 pairs of 3 alike: tau is 1/3.
            "ranking",
            3,
            {"ranking": [["ranking0-0"], ["ranking0-1"], ["ranking0-2"]], "min_tau": 0.3},
            {"ranking": (("ranking0-1",), ("ranking0-0",), ("ranking0-2",))},
            {"ranking": (("ranking0-2",), ("ranking0-0",), ("ranking0-1",))},
        ),
        (
            "scores",
            1,
            {"scores": {"help": {"scores0-0": 5}}, "tolerance": 1},
            {"scores": {"help": {"scores0-0": 4}}},
            {"scores": {"help": {"scores0-0": 3}}},
        ),
        ("thumbs", 1, {"thumb": "down"}, {"thumb": "down"}, {"thumb": "up"}),
    ],
)
def test_a_gold_answer_is_judged_and_the_person_is_told(store, people, kind, num, expected, right, wrong):
    (task_id,) = make(store, kind, num)
    set_rubric(store, "p", "Score it.", attributes=[{"name": "help"}])
    set_gold(store, task_id, expected, explanation="because")
    turn_on(store, gold_rate=1.0)
    _, good = rate(store, people[0], **right)
    _, bad = rate(store, people[1], **wrong)
    assert (good.gold.correct, bad.gold.correct) == (True, False)
    assert good.gold.explanation == "because"
    assert good.gold.expected.items() >= {k: v for k, v in expected.items() if k != "ranking"}.items()
    with store.read() as connection:
        found = {row.annotator_id: (row.num_answers, row.num_correct) for row in tally(connection, "p")}
    assert found == {people[0]: (1, 1), people[1]: (1, 0)}


def test_what_cannot_be_gold_is_refused(store, people):
    (pair,) = make(store, "pairwise", 2)
    (ranking,) = make(store, "ranking", 3)
    (scores,) = make(store, "scores", 1)
    (text,) = make(store, "demonstration", 0)
    for task_id, expected, message in (
        (text, {"demonstration": "x"}, "no right answer"),
        (pair, {"preference": "left"}, "'preference' expected"),
        (pair, {"preference": "tie", "strength": 2}, "has no strength"),
        (pair, {"preference": "first", "winner": "x"}, "'winner' is not a known name"),
        (ranking, {}, "needs 'best' or 'ranking'"),
        (ranking, {"best": "elsewhere"}, "'elsewhere' is not a completion"),
        (ranking, {"ranking": [["ranking0-0"]]}, "every completion of the task exactly once"),
        (scores, {"scores": {}}, "at least one score"),
        (scores, {"scores": {"help": {"scores0-0": 9}}}, "1 to 5; found 9"),
    ):
        with pytest.raises(DataError, match=message):
            set_gold(store, task_id, expected)
    with pytest.raises(StoreError, match="there is no task 'x'"):
        set_gold(store, "x", {"preference": "first"})
    with pytest.raises(StoreError, match="not a gold item"):
        retire_gold(store, pair)
    assert rows(store, "SELECT count(*) FROM gold_items") == [(0,)]


def test_only_the_first_answer_to_a_gold_item_counts(store, fill, people):
    (task_id,) = fill(store, 1)
    set_gold(store, task_id, {"preference": "first"})
    turn_on(store, gold_rate=1.0)
    view, told = rate(store, people[0], preference="second", strength=1)
    better = answer(view, people[0], preference="first", strength=1)
    again = submit(store, better, lease_id=view.lease_id, client_key="now I know")
    assert (told.gold.correct, again.gold.correct, again.version) == (False, True, 2)
    with store.read() as connection:
        assert [(t.num_answers, t.num_correct) for t in tally(connection, "p")] == [(1, 0)]


def test_a_project_can_keep_the_verdict_to_itself(store, fill, people):
    (task_id,) = fill(store, 1)
    set_gold(store, task_id, {"preference": "first"})
    turn_on(store, gold_rate=1.0, gold_feedback=False)
    _, receipt = rate(store, people[0], preference="second", strength=1)
    assert receipt.gold is None
    with store.read() as connection:
        assert [(t.num_answers, t.num_correct) for t in tally(connection, "p")] == [(1, 0)]


def test_a_retry_is_told_the_same_verdict(store, fill, people):
    (task_id,) = fill(store, 1)
    set_gold(store, task_id, {"preference": "first"})
    turn_on(store, gold_rate=1.0)
    view = lease_next(store, people[0], "p")
    judgement = answer(view, people[0], preference="first", strength=1)
    first = submit(store, judgement, lease_id=view.lease_id, client_key="k")
    retry = submit(store, judgement, lease_id=view.lease_id, client_key="k")
    assert retry.repeated
    assert retry.gold == first.gold


@on_both
def test_gold_and_repeats_are_neither_exported_nor_agreed_upon(store, fill, people):
    ids = fill(store, 20, overlap=2)
    for task_id in ids[:10]:
        set_gold(store, task_id, {"preference": "first"})
    turn_on(store, gold_rate=0.4, repeat_rate=0.4, repeat_after=2)
    for person, preference in zip(people[:2], ("first", "second"), strict=True):
        rate_all(store, person, preference=preference, strength=1)
    given = dict(rows(store, "SELECT purpose, count(*) FROM annotations GROUP BY 1"))
    assert given["gold"] > 2
    assert given["repeat"] > 2
    exported = list(judgements(store, "p"))
    assert {judgement.task_id for judgement in exported} == set(ids[10:])
    assert len(exported) == 20
    assert rows(store, "SELECT count(*) FROM current_annotations") == [(20,)]
    agreement = pairwise_agreement(store, "p", num_resamples=10)
    assert (agreement.n_items, agreement.raw) == (10, 0.0)


def test_a_place_that_was_held_before_the_task_became_gold_is_still_counted(store, fill, people):
    (task_id,) = fill(store, 1)
    view = lease_next(store, people[0], "p")
    set_gold(store, task_id, {"preference": "first"})
    receipt = submit(store, answer(view, people[0], preference="tie"), lease_id=view.lease_id, client_key="k")
    assert receipt.gold is None
    assert rows(store, "SELECT num_done, num_held, is_open = true FROM tasks") == [(1, 0, False)]
    assert len(list(judgements(store, "p"))) == 1


@on_both
def test_retired_gold_is_not_handed_out_or_is_work_again(store, fill, people):
    ids = fill(store, 2)
    for task_id in ids:
        set_gold(store, task_id, {"preference": "first"})
    turn_on(store, gold_rate=1.0)
    retire_gold(store, ids[0])
    assert rate(store, people[0])[0].task_id == ids[1]
    assert lease_next(store, people[0], "p") is None
    retire_gold(store, ids[1], reopen=True)
    assert lease_next(store, people[0], "p") is None  # they answered it already
    view, receipt = rate(store, people[1])
    assert (view.task_id, receipt.gold) == (ids[1], None)
    assert rows(store, "SELECT action FROM audit_log WHERE action LIKE 'gold%' ORDER BY seq") == [
        ("gold.set",),
        ("gold.set",),
        ("gold.retire",),
        ("gold.retire",),
    ]


@on_both
def test_a_repeat_is_an_own_answer_from_a_while_ago_in_a_task_of_its_own(store, fill, people):
    fill(store, 40)
    turn_on(store, repeat_rate=0.5, repeat_after=5)
    given = rate_all(store, people[0], preference="first", strength=2)
    repeats = dict(rows(store, "SELECT task_id, repeat_of FROM tasks WHERE pool = 'repeat'"))
    asked = [view.task_id for view, _ in given]
    assert len(repeats) >= 8
    assert len(set(repeats.values())) == len(repeats)
    for task_id, original in repeats.items():
        assert asked.index(task_id) - asked.index(original) > 5
    assert rows(store, "SELECT count(*) FROM tasks WHERE pool = 'queue' AND num_done = 1") == [(40,)]
    with store.read() as connection:
        pairs = repeat_pairs(connection, "p")
    assert len(pairs) == len(repeats)
    assert {(p.first["preference"], p.again["preference"]) for p in pairs} == {("first", "first")}
    assert {p.first["shown_order"] == p.again["shown_order"] for p in pairs} == {True, False}


def test_a_repeat_belongs_to_one_person_and_comes_once_even_when_skipped(store, fill, people):
    fill(store, 3)
    rate(store, people[0])
    rate(store, people[0])
    turn_on(store, repeat_rate=1.0, repeat_after=1)
    view = lease_next(store, people[0], "p")
    judgement = answer(view, people[1], preference="tie")
    with pytest.raises(StoreError, match="another person's repeat"):
        submit(store, judgement, lease_id=None, client_key="k")
    with pytest.raises(StoreError, match="repeat and cannot be gold"):
        set_gold(store, view.task_id, {"preference": "first"})
    skip(store, view.lease_id, people[0], reason="seen it", client_key="s")
    for _ in range(3):
        following = lease_next(store, people[0], "p")
        if following is None:
            break
        assert following.task_id != view.task_id
        rate(store, people[0])


def test_kendalls_tau_with_ties():
    abc = (("a",), ("b",), ("c",))
    assert tau(abc, abc) == 1.0
    assert tau(abc, abc[::-1]) == -1.0
    # a tied with b: of 3 pairs, 2 agree; 2 / sqrt(3 * 2).
    assert tau(abc, (("a", "b"), ("c",))) == pytest.approx(2 / 6**0.5)
    assert tau(abc, (("a", "b", "c"),)) == 0.0
