"""What happens on the way of every rating is looked up in an index, however many answers there are."""

from __future__ import annotations

import re

import pytest
from desk_world import rate, rows
from sqlalchemy import event

from feedback_app.progress import open_tasks, progress_of
from feedback_app.store.adjudication import disputed
from feedback_app.store.annotations import answer, judgements, submit
from feedback_app.store.gold import set_gold, tally
from feedback_app.store.history import my_answers
from feedback_app.store.leases import heartbeat, lease_next, skip
from feedback_app.store.priority import prioritise
from feedback_app.store.projects import change_settings
from feedback_app.store.repeats import repeat_pairs

ALLOWED = (
    # the 64 open tasks at the head of the queue, and the last 64 leases, each found through an index
    r"SCAN q",
    r"SCAN l",
    r"SCAN CONSTANT ROW",
)


@pytest.fixture
def statements(store):
    """Every statement that the store runs from here on, with its parameters."""
    seen = {}

    @event.listens_for(store.engine, "before_cursor_execute")
    def _remember(connection, cursor, statement, parameters, context, many):
        if statement.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
            seen.setdefault(statement, parameters[0] if many else parameters)

    return seen


def plans(store, statements):
    with store.read() as connection:
        raw = connection.connection.cursor()
        for statement, parameters in statements.items():
            steps = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            yield statement, steps


def test_lease_heartbeat_submit_and_skip_never_walk_a_table(store, fill, people, statements):
    ids = fill(store, 60, overlap=2)
    for task_id in ids[:10]:
        set_gold(store, task_id, {"preference": "first"})
    prioritise(store, "p", dict.fromkeys(ids[10:30], 1.0))
    change_settings(store, "p", {"gold_rate": 0.2, "repeat_rate": 0.2, "repeat_after": 2}, actor="t")
    statements.clear()
    for person in people[:2]:
        for _ in range(25):
            view, _ = rate(store, person)
        submit(store, answer(view, person, preference="tie"), lease_id=view.lease_id, client_key=f"c{person}")
        held = lease_next(store, person, "p")
        heartbeat(store, held.lease_id, person)
        skip(store, held.lease_id, person, reason="x", client_key=f"s{person}")
        with store.read() as connection:
            my_answers(connection, person, "p")
            progress_of(connection, person, "p")
            open_tasks(connection, person, "p")
    hot = dict(statements)
    assert len(hot) > 30
    assert {r[0] for r in rows(store, "SELECT purpose FROM annotations")} == {"rate", "gold", "repeat"}
    for statement, steps in plans(store, hot):
        # An index of a column that is NULL in nearly every row is a walk through the table, too.
        assert not any("(supersedes=?)" in step and "COVERING" not in step for step in steps), statement
        scans = [step for step in steps if step.startswith("SCAN")]
        assert all(any(re.fullmatch(pattern, step) for pattern in ALLOWED) for step in scans), statement
        if {"SCAN q", "SCAN l"} & set(scans):
            assert any(step.startswith(("CO-ROUTINE", "MATERIALIZE")) for step in steps), statement


def test_the_queue_is_read_in_the_order_of_its_index(store, fill, people, statements):
    fill(store, 5)
    lease_next(store, people[0], "p")
    queue = [s for s, steps in plans(store, statements) if any("ix_tasks_queue" in step for step in steps)]
    assert queue
    heads = [steps for statement, steps in plans(store, statements) if "LIMIT 64) q" in statement]
    assert all("USE TEMP B-TREE FOR ORDER BY" not in steps[: steps.index("SCAN q")] for steps in heads)


def test_what_is_rare_is_found_through_an_index_of_its_own(store, fill, people, statements):
    fill(store, 3, overlap=2)
    statements.clear()
    with store.read() as connection:
        disputed(connection, "p")
        tally(connection, "p")
        repeat_pairs(connection, "p")
    list(judgements(store, "p"))
    used = " ".join(step for _, steps in plans(store, dict(statements)) for step in steps)
    for index in ("ix_tasks_disputed", "ix_annotations_checks", "ix_annotations_decided"):
        assert index in used
