"""The store keeps its promises: nothing lost, nothing twice, nothing over quota, nothing rewritten."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from feedback_app.accounts import create_annotator, set_disabled
from feedback_app.store import audit, engine, migrate
from feedback_app.store.annotations import Submission, answer, judgements, submit, submit_many
from feedback_app.store.engine import Store, file_system_of, sqlite_path
from feedback_app.store.leases import heartbeat, lease_next, release, skip
from feedback_app.store.schema import METADATA, audit_log, leases, projects, tombstones
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, set_rubric
from rlhf.core.errors import ConfigError, DataError, StoreError
from rlhf.core.records import Completion, Prompt

pytestmark = pytest.mark.databases("sqlite", "postgresql")


def rows(store: Store, query: str, **parameters: object) -> list[tuple]:
    with store.read() as connection:
        return [tuple(row) for row in connection.execute(text(query), parameters)]


def expire_all(store: Store) -> None:
    with store.write() as connection:
        connection.execute(
            update(leases).where(leases.c.state == "active").values(expires_at=time.time() - 1)
        )


def rate(store: Store, person: str, key: str | None = None, project: str = "p", **fields: object):
    view = lease_next(store, person, project)
    assert view is not None
    fields = fields or {"preference": "first", "strength": 2}
    judgement = answer(view, person, **fields)
    return view, submit(store, judgement, lease_id=view.lease_id, client_key=key or view.lease_id)


def test_migrated_schema_is_the_declared_schema(store):
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        assert (
            ScriptDirectory.from_config(migrate.alembic_config(connection)).get_current_head() == migrate.HEAD
        )


def test_opening_again_changes_nothing_and_a_future_schema_is_refused(store, db_url):
    with Store.open(db_url) as again, again.read() as connection:
        assert migrate.current_revision(connection) == migrate.HEAD
    with store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_from_the_future'"))
    with pytest.raises(StoreError, match="9999_from_the_future"):
        Store.open(db_url)


def test_migrating_an_existing_file_backs_it_up_first(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/old.db"
    with Store.open(url) as store, store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000_older'"))
    monkeypatch.setattr(migrate, "KNOWN_REVISIONS", ("0000_older", migrate.HEAD))
    monkeypatch.setattr(migrate, "upgrade", lambda connection: None)
    Store.open(url).close()
    backups = list(tmp_path.glob("old.db.backup-0000_older-*"))
    assert len(backups) == 1
    copy = sqlite3.connect(backups[0])
    assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("0000_older",)
    copy.close()


@pytest.mark.parametrize("url", ["feedback.db", "mysql://x/y", "sqlite:///:memory:", "sqlite://"])
def test_a_bad_url_is_one_clear_line(url):
    with pytest.raises(ConfigError, match="--db"):
        Store.open(url)


def test_what_is_not_a_database_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("I am not a database, I am a poem. " * 40)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(StoreError, match="there is no feedback store"):
        Store.open(f"sqlite:///{tmp_path}/absent.db", create=False)


def test_network_file_systems_are_recognised(tmp_path):
    mounts = "/dev/sda1 / ext4 rw 0 0\nserver:/x /mnt/share nfs4 rw 0 0\n"
    assert file_system_of(sqlite_path("sqlite:////mnt/share/a/feedback.db"), mounts) == "nfs4"
    assert file_system_of(tmp_path, mounts) == "ext4"


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "file_system_of", lambda path: "nfs4")
    with pytest.raises(StoreError, match=r"network file system \(nfs4\).*postgresql://"):
        Store.open(f"sqlite:///{tmp_path}/feedback.db")
    assert not (tmp_path / "feedback.db").exists()


@pytest.mark.databases("sqlite")
def test_sqlite_runs_durably(store):
    with store.read() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10000}


def test_adding_twice_is_adding_once(store, fill):
    first = fill(store, 5)
    assert fill(store, 5) == first
    assert rows(store, "SELECT count(*) FROM tasks") == [(5,)]
    assert rows(store, "SELECT count(*) FROM task_completions") == [(10,)]
    prompt = Prompt.model_validate({"prompt": "new"})
    assert add_prompts(store, [prompt, prompt]) == 1
    assert add_prompts(store, [prompt]) == 0


def test_swapped_completions_are_the_same_task(store):
    prompt = Prompt.model_validate({"prompt": "Hi"})
    pair = [Completion(completion_id=f"c{i}", prompt_id=prompt.prompt_id, text=str(i)) for i in range(2)]
    add_prompts(store, [prompt])
    add_completions(store, pair)
    one = create_tasks(store, project="p", kind="pairwise", items=[(prompt.prompt_id, ("c1", "c0"))])
    two = create_tasks(store, project="p", kind="pairwise", items=[(prompt.prompt_id, ("c0", "c1"))])
    assert one == two
    person = create_annotator(store, "x", password=None)
    assert [c.completion_id for c in lease_next(store, person, "p").completions] == ["c1", "c0"]


def test_tasks_need_known_prompts_and_their_own_completions(store, fill):
    fill(store, 2)
    ids = rows(store, "SELECT prompt_id, completion_id FROM completions ORDER BY prompt_id")
    with pytest.raises(DataError, match="unknown prompt 'nowhere'"):
        create_tasks(store, project="p", kind="pairwise", items=[("nowhere", (ids[0][1], ids[1][1]))])
    with pytest.raises(DataError, match="not a known completion of prompt"):
        create_tasks(store, project="p", kind="pairwise", items=[(ids[0][0], (ids[0][1], ids[2][1]))])
    with pytest.raises(DataError, match="needs 2 different completions; found 1"):
        create_tasks(store, project="p", kind="pairwise", items=[(ids[0][0], (ids[0][1],) * 2)])
    with pytest.raises(DataError, match="unknown prompt"):
        add_completions(store, [Completion(completion_id="x", prompt_id="nowhere", text="")])


def test_a_lease_hides_what_wrote_the_completions(store, fill, people):
    fill(store, 1)
    assert "secret" not in lease_next(store, people[0], "p").model_dump_json()


def test_one_place_is_held_by_one_person(store, fill, people):
    fill(store, 1)
    mine = lease_next(store, people[0], "p")
    assert lease_next(store, people[1], "p") is None
    again = lease_next(store, people[0], "p")
    assert (again.lease_id, again.shown_order) == (mine.lease_id, mine.shown_order)
    assert lease_next(store, people[0], "p", holding=[mine.lease_id]) is None
    release(store, mine.lease_id, people[0])
    assert lease_next(store, people[1], "p").task_id == mine.task_id


def test_overlap_gives_a_task_to_that_many_different_people(store, fill, people):
    fill(store, 3, overlap=2)
    for person in people[:2]:
        tasks = {rate(store, person)[0].task_id for _ in range(3)}
        assert len(tasks) == 3
        assert lease_next(store, person, "p") is None
    assert lease_next(store, people[2], "p") is None
    assert rows(store, "SELECT DISTINCT num_done, num_held, is_open FROM tasks") == [(2, 0, 0)]


def test_someone_with_many_open_answers_still_gets_the_rest_in_order(store, fill, people):
    """More answered-but-open tasks than the head of the queue holds: the cursor takes over, then the tail."""
    fill(store, 150, overlap=2)
    seen = [rate(store, people[0])[0].task_id for _ in range(150)]
    assert len(set(seen)) == 150
    expected = [r[0] for r in rows(store, "SELECT task_id FROM tasks ORDER BY queue_rank, sort_key")]
    assert seen == expected
    assert lease_next(store, people[0], "p") is None


def test_urgent_tasks_overtake(store, fill, people):
    ids = fill(store, 10)
    with store.write() as connection:
        connection.execute(text("UPDATE tasks SET queue_rank = -1 WHERE task_id = :id"), {"id": ids[7]})
    assert lease_next(store, people[0], "p").task_id == ids[7]


def test_sides_are_shuffled_over_tasks_and_stable_for_one(store, fill, people):
    fill(store, 200, overlap=1)
    flipped = 0
    for _ in range(200):
        view, _ = rate(store, people[0])
        flipped += view.shown_order[0] != view.completions[0].completion_id
    # 200 fair coins: outside 65..135 with probability < 1e-6.
    assert 65 <= flipped <= 135
    for judgement in judgements(store, "p"):
        assert set(judgement.shown_order) == set(judgement.completion_ids)


def test_submit_is_idempotent_by_client_key(store, fill, people):
    fill(store, 2)
    view = lease_next(store, people[0], "p")
    judgement = answer(view, people[0], preference="second", strength=3, reason="kinder")
    first = submit(store, judgement, lease_id=view.lease_id, client_key="k1")
    retry = submit(store, judgement, lease_id=view.lease_id, client_key="k1")
    assert (first.repeated, retry.repeated) == (False, True)
    assert first.annotation_id == retry.annotation_id
    assert [(j.preference, j.strength, j.reason) for j in judgements(store, "p")] == [("second", 3, "kinder")]
    other = lease_next(store, people[0], "p")
    with pytest.raises(StoreError, match="used for another answer"):
        submit(store, answer(other, people[0], preference="tie"), lease_id=other.lease_id, client_key="k1")


def test_a_correction_is_a_new_version(store, fill, people):
    fill(store, 1)
    view, first = rate(store, people[0], "k1", preference="first", strength=1)
    second = submit(store, answer(view, people[0], preference="tie"), lease_id=view.lease_id, client_key="k2")
    assert (first.version, second.version) == (1, 2)
    assert [(j.preference, j.version) for j in judgements(store, "p")] == [("tie", 2)]
    assert rows(store, "SELECT count(*) FROM annotations") == [(2,)]
    assert rows(store, "SELECT num_done FROM tasks") == [(1,)]


def test_an_expired_lease_with_quota_left_is_accepted(store, fill, people):
    fill(store, 1)
    view = lease_next(store, people[0], "p")
    expire_all(store)
    assert lease_next(store, people[1], "p").task_id == view.task_id
    release(store, lease_next(store, people[1], "p").lease_id, people[1])
    receipt = submit(
        store, answer(view, people[0], preference="tie"), lease_id=view.lease_id, client_key="late"
    )
    assert not receipt.surplus
    assert rows(store, "SELECT num_done, num_held, is_open FROM tasks") == [(1, 0, 0)]


def test_an_expired_lease_without_quota_is_kept_as_surplus(store, fill, people):
    fill(store, 1)
    late = lease_next(store, people[0], "p")
    expire_all(store)
    rate(store, people[1])
    receipt = submit(
        store,
        answer(late, people[0], preference="second", strength=1),
        lease_id=late.lease_id,
        client_key="late",
    )
    assert receipt.surplus
    assert len(list(judgements(store, "p"))) == 1
    assert len(list(judgements(store, "p", include_surplus=True))) == 2
    assert rows(store, "SELECT num_done FROM tasks") == [(1,)]


def test_a_heartbeat_keeps_a_lease(store, fill, people):
    fill(store, 1)
    view = lease_next(store, people[0], "p", lease_s=0.05)
    assert heartbeat(store, view.lease_id, people[0], lease_s=60)
    time.sleep(0.06)
    assert lease_next(store, people[1], "p") is None
    assert not heartbeat(store, view.lease_id, people[1])


def test_a_skip_needs_no_answer_and_does_not_come_back(store, fill, people):
    fill(store, 1)
    view = lease_next(store, people[0], "p")
    assert skip(store, view.lease_id, people[0], reason="cannot judge", client_key="s1")
    assert skip(store, view.lease_id, people[0], reason="cannot judge", client_key="s1")
    assert rows(store, "SELECT reason FROM skips") == [("cannot judge",)]
    assert lease_next(store, people[0], "p") is None
    assert lease_next(store, people[1], "p").task_id == view.task_id


def test_answers_must_fit_their_task_lease_and_person(store, fill, people):
    fill(store, 2)
    view = lease_next(store, people[0], "p")
    other = lease_next(store, people[1], "p")
    fits = answer(view, people[0], preference="tie")
    with pytest.raises(StoreError, match="not one of this annotator"):
        submit(store, fits, lease_id=other.lease_id, client_key="a")
    turned = fits.model_copy(update={"completion_ids": fits.completion_ids[::-1]})
    with pytest.raises(StoreError, match="in this order"):
        submit(store, turned, lease_id=view.lease_id, client_key="b")
    with pytest.raises(StoreError, match="there is no task"):
        submit(store, fits.model_copy(update={"task_id": "x"}), lease_id=None, client_key="c")
    with pytest.raises(StoreError, match="no annotator"):
        lease_next(store, "nobody", "p")
    set_disabled(store, people[0], True)
    with pytest.raises(StoreError, match="disabled"):
        submit(store, fits, lease_id=view.lease_id, client_key="d")
    assert rows(store, "SELECT count(*) FROM annotations") == [(0,)]


def test_many_answers_without_leases(store, fill, people):
    fill(store, 700, overlap=1)
    view = lease_next(store, people[0], "p")
    release(store, view.lease_id, people[0])
    made = rows(store, "SELECT task_id, prompt_id FROM tasks")
    places: dict[str, list[str]] = {}
    for task_id, completion_id in rows(
        store, "SELECT task_id, completion_id FROM task_completions ORDER BY position"
    ):
        places.setdefault(task_id, []).append(completion_id)
    from_file = [
        Submission(
            answer(view, people[0], preference="tie").model_copy(
                update={"task_id": t, "prompt_id": p, "completion_ids": tuple(places[t]), "shown_order": ()}
            ),
            client_key=f"row-{t}",
        )
        for t, p in made
    ]
    receipts = submit_many(store, from_file)
    assert len(receipts) == 700
    assert not any(r.surplus or r.repeated for r in receipts)
    assert all(r.repeated for r in submit_many(store, from_file))
    assert lease_next(store, people[0], "p") is None


@pytest.mark.parametrize("table", ["annotations", "audit_log"])
def test_triggers_refuse_update_delete_and_replace(store, fill, people, table, db_url):
    fill(store, 1)
    rate(store, people[0])
    key = "annotation_id" if table == "annotations" else "seq"
    statements = [f"UPDATE {table} SET {key} = {key}", f"DELETE FROM {table}"]
    if store.dialect == "sqlite":
        statements.append(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
    for statement in statements:
        with pytest.raises(DBAPIError, match="append-only"), store.write() as connection:
            connection.execute(text(statement))
    if store.dialect == "sqlite":  # the trigger lives in the file, not in our connection
        raw = sqlite3.connect(str(sqlite_path(db_url)))
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(f"DELETE FROM {table}")
        raw.close()


def test_written_text_can_be_erased_and_nothing_else(store, fill, people):
    fill(store, 1)
    rate(store, people[0], preference="first", strength=1, reason="my private reason")
    with pytest.raises(DBAPIError, match="only be erased"), store.write() as connection:
        connection.execute(text("UPDATE annotation_texts SET reason = 'forged'"))
    with pytest.raises(DBAPIError, match="only be erased"), store.write() as connection:
        connection.execute(text("DELETE FROM annotation_texts"))
    with store.write() as connection:
        connection.execute(
            text("UPDATE annotation_texts SET reason = '', demonstration = NULL, erased_at = 1")
        )
    assert [j.reason for j in judgements(store, "p")] == [""]


def test_tombstoned_answers_are_not_current(store, fill, people):
    fill(store, 2)
    _, receipt = rate(store, people[0])
    rate(store, people[0])
    with store.write() as connection:
        connection.execute(
            insert(tombstones),
            {"annotation_id": receipt.annotation_id, "annotator_id": people[0], "created_at": time.time()},
        )
    assert len(list(judgements(store, "p"))) == 1


def test_the_quota_is_kept_by_the_database_itself(store, fill):
    fill(store, 1)
    with pytest.raises(IntegrityError, match="quota"), store.write() as connection:
        connection.execute(text("UPDATE tasks SET num_done = 2"))


def test_the_audit_chain_shows_where_it_was_broken(store, people):
    with store.read() as connection:
        assert audit.first_broken(connection) is None
        assert len(connection.execute(select(audit_log)).all()) == 4
    with store.write() as connection:
        on_postgres = store.dialect == "postgresql"
        trigger = "audit_log_append_only ON audit_log" if on_postgres else "audit_log_refuse_update"
        connection.execute(text(f"DROP TRIGGER {trigger}"))
        connection.execute(text("UPDATE audit_log SET actor = 'somebody else' WHERE seq = 3"))
        assert audit.first_broken(connection) == 3


def test_rubrics_have_versions_and_answers_name_theirs(store, fill, people):
    fill(store, 2)
    rate(store, people[0])
    assert set_rubric(store, "p", "Be stricter.") == 2
    rate(store, people[0])
    found = rows(
        store, "SELECT r.version FROM annotations a JOIN rubrics r USING (rubric_id) ORDER BY a.created_at"
    )
    assert found == [(1,), (2,)]


def test_simulated_is_inherited(store, fill):
    fill(store, 1, project="people")
    fill(store, 1, project="bots", simulated=True)
    robot = create_annotator(store, "robot", password=None, simulated=True)
    assert create_annotator(store, "robot", password=None, simulated=True) == robot
    rate(store, robot, project="people")
    with store.read() as connection:
        flags = dict(connection.execute(select(projects.c.project_id, projects.c.simulated)).tuples().all())
    assert flags == {"people": False, "bots": True}
    assert rows(store, "SELECT simulated FROM annotations") == [(1,)]


def _work(url: str, person: str, project: str) -> int:
    done = 0
    with Store.open(url) as store:
        while (view := lease_next(store, person, project)) is not None:
            judgement = answer(view, person, preference="first", strength=1)
            key = f"{person}|{view.task_id}"
            submit(store, judgement, lease_id=view.lease_id, client_key=key)
            if done % 5 == 0:  # a nervous client sends it again
                assert submit(store, judgement, lease_id=view.lease_id, client_key=key).repeated
            done += 1
    return done


def test_processes_share_the_queue_without_loss_or_overrun(store, fill, db_url):
    fill(store, 60, overlap=3)
    raters = [create_annotator(store, f"w{i}", password=None) for i in range(6)]
    with multiprocessing.get_context("spawn").Pool(6) as pool:
        counts = pool.starmap(_work, [(db_url, rater, "p") for rater in raters], chunksize=1)
    assert sum(counts) == 180
    assert rows(store, "SELECT num_done, num_held, is_open, count(*) FROM tasks GROUP BY 1, 2, 3") == [
        (3, 0, 0, 60)
    ]
    assert rows(
        store,
        "SELECT count(*), count(DISTINCT task_id || annotator_id), count(nullif(surplus, false)) FROM annotations",
    ) == [(180, 180, 0)]


def test_processes_may_create_the_same_store_at_once(tmp_path):
    url = f"sqlite:///{tmp_path}/new.db"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_open_once, [url] * 4, chunksize=1) == [migrate.HEAD] * 4


def _open_once(url: str) -> str | None:
    with Store.open(url) as store, store.read() as connection:
        return migrate.current_revision(connection)
