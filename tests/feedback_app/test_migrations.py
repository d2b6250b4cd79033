"""A database of the first release, with work and answers in it, is brought to the current schema whole."""

from __future__ import annotations

import time

import pytest
from desk_world import rate_all, rows
from sqlalchemy import create_engine, event, text

from feedback_app.store import engine as engines
from feedback_app.store import migrate
from feedback_app.store.adjudication import disputed
from feedback_app.store.annotations import judgements
from feedback_app.store.engine import Store, parse_url
from feedback_app.store.gold import tally

FIRST = "0001_first_schema"
PEOPLE = ("ann", "bob", "cy")


@pytest.fixture
def old_url(request, tmp_path):
    """An empty database at the first revision, on SQLite or PostgreSQL."""
    if request.param == "sqlite":
        url, drop = f"sqlite:///{tmp_path}/old.db", None
    else:
        server = request.getfixturevalue("postgres")
        name = f"old_{time.time_ns()}"
        url, drop = server.create(name), lambda: server.drop(name)
    old = create_engine(parse_url(url))
    if request.param == "sqlite":
        event.listen(old, "connect", engines._on_sqlite_connect)
        event.listen(old, "begin", engines._on_sqlite_begin)
    with old.connect().execution_options(rlhf_write=True) as connection, connection.begin():
        migrate.upgrade(connection, FIRST)
        _fill(connection)
    old.dispose()
    yield url
    if drop is not None:
        drop()


def _fill(connection):
    """Six pairs for two people each, three raters; corrections, a skip, a tombstone, a gold item, a repeat."""

    def add(table, **row):
        names = ", ".join(row)
        connection.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{', :'.join(row)})"), row)

    add("projects", project_id="p", title="Old", created_at=1.0)
    add("rubrics", rubric_id="r", project_id="p", version=1, title="t", text="x", created_at=1.0)
    for person in PEOPLE:
        add("annotators", annotator_id=person, name=person.title(), role="annotator", created_at=1.0)
    for n in range(6):
        add(
            "prompts",
            prompt_id=f"p{n}",
            messages='[{"role": "user", "content": "Q"}]',
            group_id="g",
            created_at=1.0,
        )
        for side in "ab":
            add("completions", completion_id=f"c{n}{side}", prompt_id=f"p{n}", text="A", created_at=1.0)
        done = 2 if n in (0, 1) else 1 if n == 2 else 0
        add(
            "tasks", task_id=f"t{n}", project_id="p", kind="pairwise", prompt_id=f"p{n}", overlap=2,
            num_done=done, is_open=done < 2, sort_key=n, created_at=1.0,
            repeat_of="t0" if n == 5 else None, repeat_for="ann" if n == 5 else None,
        )  # fmt: skip
        for position, side in enumerate("ab"):
            add("task_completions", task_id=f"t{n}", position=position, completion_id=f"c{n}{side}")
    add("gold_items", task_id="t4", expected='{"preference": "first"}', created_at=1.0)

    def answer(key, task, person, preference, *, version=1, supersedes=None, origin="desk"):
        lease = f"l-{key}"
        add(
            "leases", lease_id=lease, task_id=task, project_id="p", annotator_id=person, state="submitted",
            purpose="rate" if origin == "desk" else origin, shown_order="[]", created_at=2.0,
            heartbeat_at=2.0, expires_at=2.0,
        )  # fmt: skip
        add(
            "annotations", annotation_id=key, task_id=task, project_id="p", annotator_id=person, lease_id=lease,
            client_key=key, version=version, supersedes=supersedes, kind="pairwise", preference=preference,
            shown_order="[]", seconds=4.0, rubric_id="r", origin=origin, created_at=3.0 + version,
        )  # fmt: skip
        add("annotation_texts", annotation_id=key, reason=f"reason {key}")

    answer("j1", "t0", "ann", "first")
    answer("j2", "t0", "bob", "second")
    answer("j3", "t1", "ann", "first")
    answer("j4", "t1", "ann", "tie", version=2, supersedes="j3")
    answer("j5", "t1", "bob", "tie")
    answer("j6", "t2", "cy", "first", origin="import")
    answer("j7", "t3", "cy", "second")
    add("tombstones", annotation_id="j7", annotator_id="cy", created_at=4.0)
    add(
        "leases", lease_id="l-s", task_id="t3", project_id="p", annotator_id="bob", state="skipped",
        shown_order="[]", created_at=2.0, heartbeat_at=2.0, expires_at=2.0,
    )  # fmt: skip
    add(
        "skips", skip_id="k", task_id="t3", project_id="p", annotator_id="bob", lease_id="l-s", client_key="s",
        reason="no idea", created_at=2.0,
    )  # fmt: skip


@pytest.mark.parametrize("old_url", ["sqlite", "postgresql"], indirect=True)
def test_an_old_database_with_answers_is_brought_up_to_date(old_url):
    with Store.open(old_url) as store:
        assert rows(store, "SELECT version_num FROM alembic_version") == [(migrate.HEAD,)]
        said = {j.judgement_id: (j.preference, j.version, j.reason) for j in judgements(store, "p")}
        assert said == {
            "j1": ("first", 1, "reason j1"),
            "j2": ("second", 1, "reason j2"),
            "j4": ("tie", 2, "reason j4"),
            "j5": ("tie", 1, "reason j5"),
            "j6": ("first", 1, "reason j6"),
        }
        assert rows(store, "SELECT task_id, pool FROM tasks WHERE pool <> 'queue' ORDER BY 1") == [
            ("t4", "gold"),
            ("t5", "repeat"),
        ]
        progress = rows(
            store, "SELECT annotator_id, num_answers, num_skips, num_timed, total_seconds FROM progress"
        )
        # Corrections and imported answers are not counted; the erased one of cy was given, so it is.
        assert sorted(progress) == [("ann", 2, 0, 2, 8.0), ("bob", 2, 1, 2, 8.0), ("cy", 1, 0, 1, 4.0)]
        assert rows(store, "SELECT DISTINCT purpose FROM leases") == [("rate",)]
        with store.read() as connection:
            assert [d.task.task_id for d in disputed(connection, "p")] == ["t0"]
            assert tally(connection, "p") == []
        # And work goes on: bob skipped t3 and has t2 left, gold and the repeat are not in the queue.
        assert [view.task_id for view, _ in rate_all(store, "bob")] == ["t2"]
        assert [view.task_id for view, _ in rate_all(store, "ann")] == ["t3"]
    Store.open(old_url).close()


@pytest.mark.parametrize("old_url", ["sqlite"], indirect=True)
def test_the_old_file_is_kept_beside_the_new_one(old_url, tmp_path):
    Store.open(old_url).close()
    (backup,) = tmp_path.glob(f"old.db.backup-{FIRST}-*")
    kept = create_engine(f"sqlite:///{backup}")
    with kept.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == FIRST
        assert connection.execute(text("SELECT count(*) FROM annotations")).scalar() == 7
    kept.dispose()
