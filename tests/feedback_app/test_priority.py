"""The priority queue: what is asked for first comes first, and the honest sample is rated all the same."""

from __future__ import annotations

import pytest
from desk_world import rate, rate_all, rows

from feedback_app.store.leases import lease_next
from feedback_app.store.priority import prioritise
from feedback_app.store.projects import change_settings
from rlhf.core.errors import DataError, StoreError

on_both = pytest.mark.databases("sqlite", "postgresql")


@on_both
def test_the_urgent_come_in_order_and_the_uniform_share_between_them(store, fill, people):
    ids = fill(store, 100)
    counts = prioritise(store, "p", {task_id: float(n) for n, task_id in enumerate(ids)}, uniform_share=0.25)
    assert counts.num_uniform + counts.num_priority == 100
    assert 8 <= counts.num_uniform <= 45
    selection = dict(rows(store, "SELECT task_id, selection FROM tasks"))
    given = [rate(store, people[0])[0].task_id for _ in range(40)]
    urgent = [task_id for task_id in given if selection[task_id] == "priority"]
    assert urgent == [task_id for task_id in ids if selection[task_id] == "priority"][: len(urgent)]
    # 40 draws at 0.25: 10 expected, 5 deviations are 14.
    assert 1 <= len(given) - len(urgent) <= 24
    # Neither queue is starved when the other has run dry.
    assert len(rate_all(store, people[0])) == 60


def test_the_uniform_sample_does_not_depend_on_the_ranks(store, fill):
    ids = fill(store, 60)

    def uniform():
        return {r[0] for r in rows(store, "SELECT task_id FROM tasks WHERE selection = 'uniform'")}

    prioritise(store, "p", dict.fromkeys(ids[:30], 1.0), uniform_share=0.5, seed=3)
    first = uniform()
    prioritise(store, "p", dict.fromkeys(ids[20:], -5.0), uniform_share=0.5, seed=3)
    assert uniform() == first
    prioritise(store, "p", {}, uniform_share=0.5, seed=4)
    assert uniform() != first
    assert rows(store, "SELECT DISTINCT queue_rank FROM tasks WHERE selection = 'uniform'") == [(0.0,)]


def test_the_same_call_again_changes_nothing(store, fill):
    ids = fill(store, 20)
    ranks = {task_id: float(n) for n, task_id in enumerate(ids[:10])}
    assert prioritise(store, "p", ranks).num_moved > 0
    before = rows(store, "SELECT count(*) FROM audit_log")
    assert prioritise(store, "p", ranks).num_moved == 0
    assert rows(store, "SELECT count(*) FROM audit_log") == before


@on_both
def test_a_task_that_somebody_touched_stays_in_its_queue(store, fill, people):
    fill(store, 3, overlap=2)
    view, _ = rate(store, people[0])
    held = lease_next(store, people[0], "p")
    prioritise(store, "p", {view.task_id: -1.0, held.task_id: -2.0}, uniform_share=0.0)
    found = {r[0]: r[1:] for r in rows(store, "SELECT task_id, selection, queue_rank FROM tasks")}
    assert found[view.task_id] == ("uniform", -1.0)
    assert found[held.task_id] == ("uniform", -2.0)
    assert sorted(selection for selection, _ in found.values()) == ["priority", "uniform", "uniform"]


def test_unranked_tasks_come_last_and_new_ones_are_uniform(store, fill, people):
    ids = fill(store, 10)
    prioritise(store, "p", {ids[4]: 7.0, ids[5]: -2.0}, uniform_share=0.0)
    given = [rate(store, people[0])[0].task_id for _ in range(4)]
    assert given[:2] == [ids[5], ids[4]]
    new = set(fill(store, 12)) - set(ids)
    assert {r[0] for r in rows(store, "SELECT task_id FROM tasks WHERE selection = 'uniform'")} == new
    assert len(rate_all(store, people[0])) == 8


def test_the_share_that_was_asked_for_is_the_projects_share(store, fill, people):
    ids = fill(store, 30)
    prioritise(store, "p", dict.fromkeys(ids, 0.0), uniform_share=1.0)
    assert rows(store, "SELECT DISTINCT selection FROM tasks") == [("uniform",)]
    change_settings(store, "p", {"uniform_share": 0.0}, actor="test")
    assert prioritise(store, "p", {}).num_priority == 30


@on_both
def test_ranks_must_be_numbers_of_the_projects_tasks(store, fill):
    ids = fill(store, 1)
    fill(store, 2, project="other")
    (foreign, *_) = [r[0] for r in rows(store, "SELECT task_id FROM tasks WHERE project_id = 'other'")]
    with pytest.raises(DataError, match="found nan"):
        prioritise(store, "p", {ids[0]: float("nan")})
    with pytest.raises(DataError, match="0 to 1; found 2"):
        prioritise(store, "p", {}, uniform_share=2)
    with pytest.raises(StoreError, match=f"has no task '{foreign}'"):
        prioritise(store, "p", {foreign: 1.0})
    with pytest.raises(StoreError, match="no project 'nowhere'"):
        prioritise(store, "nowhere", {})
