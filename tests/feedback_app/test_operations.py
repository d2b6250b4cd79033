"""Running it: starting, stopping, several servers over one store, copies and what becomes of them."""

from __future__ import annotations

import socket
import subprocess
import threading

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError

from feedback_app import app as app_module
from feedback_app import operations, postgres_tools
from feedback_app.accounts import (
    create_annotator,
    create_link,
    find_account,
    link_owner,
    log_in,
    log_out,
    set_disabled,
    who_is,
)
from feedback_app.store import audit, engine
from feedback_app.store.annotations import answer, judgements, submit
from feedback_app.store.engine import Store
from feedback_app.store.leases import lease_next
from feedback_app.store.schema import login_attempts
from rlhf import cli
from rlhf.core.errors import BusyError, ConfigError, DataError, StoreError
from rlhf.core.files import write_json

both_databases = pytest.mark.databases("sqlite", "postgresql")


def test_small_replies_do_not_wait_for_an_acknowledgement():
    """asyncio sets TCP_NODELAY on a connection only when its socket names the protocol."""
    with app_module.listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken_is_one_clear_line():
    with (
        app_module.listen("127.0.0.1", 0) as listener,
        pytest.raises(BusyError, match="choose another --port"),
    ):
        app_module.listen("127.0.0.1", listener.getsockname()[1])


def test_writers_of_one_process_take_turns(store, monkeypatch):
    """Without a turn they poll SQLite's lock, with pauses of up to 100 ms: a fifth of a second at p95 under load."""
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.05)
    order, first_is_in, second_may_end = [], threading.Event(), threading.Event()

    def first() -> None:
        with store.write() as connection:
            connection.execute(text("UPDATE annotators SET name = name"))
            first_is_in.set()
            second_may_end.wait(5)
        order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert first_is_in.wait(5)
    with pytest.raises(BusyError, match="busy with other answers"), store.write():
        order.append("second")
    with store.read() as connection:  # readers never wait
        connection.execute(text("SELECT count(*) FROM annotators")).scalar_one()
    second_may_end.set()
    thread.join(5)
    assert order == ["first"]


# --- backup and restore ---------------------------------------------------------------------------------


@pytest.fixture
def rated(store, fill, people):
    """A store with answers, words, a session and an audit log."""
    fill(store, 6, overlap=2)
    for person in people[:2]:
        while (view := lease_next(store, person, "p")) is not None:
            judgement = answer(view, person, preference="first", strength=2, reason="clearer")
            submit(store, judgement, lease_id=view.lease_id, client_key=view.lease_id)
    return store


@both_databases
def test_a_backup_comes_back_whole(rated, db_url, tmp_path):
    manifest = operations.backup(db_url, tmp_path / "copy")
    assert (manifest.facts.rows["annotations"], manifest.facts.rows["tasks"]) == (12, 6)
    assert (tmp_path / "copy" / manifest.file).stat().st_mode & 0o077 == 0
    before = sorted(judgements(rated, "p"), key=lambda j: j.judgement_id)
    rated.close()
    with pytest.raises(StoreError, match="--force"):
        operations.restore(tmp_path / "copy", db_url)
    _, aside = operations.restore(tmp_path / "copy", db_url, force=True)
    assert "old" in aside
    with Store.open(db_url) as again:
        assert sorted(judgements(again, "p"), key=lambda j: j.judgement_id) == before
        with again.read() as connection:
            assert audit.first_broken(connection) is None
        with again.write() as connection, pytest.raises(DBAPIError, match="append-only"):
            connection.execute(text("DELETE FROM annotations"))  # the triggers came along
        with again.write() as connection:  # and so did what keeps count of keys
            connection.execute(insert(login_attempts), {"name": "x", "address": "y", "attempted_at": 1.0})


@both_databases
def test_a_restore_into_an_empty_place_needs_no_force(rated, db_url, tmp_path, request):
    operations.backup(db_url, tmp_path / "copy")
    if rated.dialect == "sqlite":
        target = f"sqlite:///{tmp_path}/elsewhere/feedback.db"
        assert operations.restore(tmp_path / "copy", target)[1] == ""
    else:
        server = request.getfixturevalue("postgres")
        target = server.create("restored_elsewhere")
        request.addfinalizer(lambda: server.drop("restored_elsewhere"))
        assert operations.restore(tmp_path / "copy", target)[1] == ""
    with Store.open(target) as again:
        assert len(list(judgements(again, "p"))) == 12


@both_databases
def test_a_backup_is_consistent_while_people_rate(store, fill, people, db_url, tmp_path):
    fill(store, 200)
    stop = threading.Event()

    def rate() -> None:
        while not stop.is_set() and (view := lease_next(store, people[0], "p")) is not None:
            judgement = answer(view, people[0], preference="tie")
            submit(store, judgement, lease_id=view.lease_id, client_key=view.lease_id)

    thread = threading.Thread(target=rate)
    thread.start()
    try:
        manifests = [operations.backup(db_url, tmp_path / f"copy-{i}") for i in range(3)]
    finally:
        stop.set()
        thread.join()
    counts = [manifest.facts.rows["annotations"] for manifest in manifests]
    assert counts == sorted(counts)
    for i in range(3):
        assert operations.read_backup(tmp_path / f"copy-{i}") == manifests[i]
    if store.dialect == "sqlite":
        for i in range(3):  # an answer and the place it took are in the copy together, or neither is
            target = f"sqlite:///{tmp_path}/back-{i}.db"
            operations.restore(tmp_path / f"copy-{i}", target)
            with Store.open(target) as copy, copy.read() as connection:
                done = connection.execute(text("SELECT sum(num_done) FROM tasks")).scalar_one()
            assert done == counts[i]


@both_databases
def test_a_restore_ends_sessions_and_links(rated, db_url, tmp_path, people):
    create_annotator(rated, "maria", password="correct horse battery")
    token = log_in(rated, "maria", "correct horse battery", address="x")
    link = create_link(rated, people[0])
    operations.backup(db_url, tmp_path / "copy")
    log_out(rated, token)
    rated.close()
    operations.restore(tmp_path / "copy", db_url, force=True)
    with Store.open(db_url) as again:
        assert who_is(again, token) is None
        assert link_owner(again, link) is None
        assert log_in(again, "maria", "correct horse battery", address="x") is not None


@both_databases
def test_a_damaged_backup_is_refused_and_changes_nothing(rated, db_url, tmp_path):
    manifest = operations.backup(db_url, tmp_path / "copy")
    rated.close()
    file = tmp_path / "copy" / manifest.file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="SHA-256"):
        operations.restore(tmp_path / "copy", db_url, force=True)
    file.unlink()
    with pytest.raises(DataError, match="no such file"):
        operations.restore(tmp_path / "copy", db_url, force=True)
    with pytest.raises(DataError, match=r"manifest\.json: no such file"):
        operations.restore(tmp_path / "nowhere", db_url, force=True)
    with Store.open(db_url, create=False) as again:
        assert len(list(judgements(again, "p"))) == 12


@both_databases
def test_a_restore_that_fails_puts_the_old_store_back(rated, db_url, tmp_path):
    """The manifest promises other rows than the copy has: noticed after the copy was read."""
    manifest = operations.backup(db_url, tmp_path / "copy")
    rated.close()
    rows = {**manifest.facts.rows, "annotations": 13}
    forged = manifest.model_copy(update={"facts": manifest.facts.model_copy(update={"rows": rows})})
    write_json(tmp_path / "copy" / "manifest.json", forged)
    with pytest.raises(DataError, match="annotations differ"):
        operations.restore(tmp_path / "copy", db_url, force=True)
    with Store.open(db_url, create=False) as again:
        assert len(list(judgements(again, "p"))) == 12


@both_databases
def test_a_store_in_use_is_not_replaced(rated, db_url, tmp_path):
    operations.backup(db_url, tmp_path / "copy")
    with rated.read() as connection:
        connection.execute(text("SELECT 1 FROM annotators")).first()
        with pytest.raises(BusyError, match="stop the server first"):
            operations.restore(tmp_path / "copy", db_url, force=True)
    assert len(list(judgements(rated, "p"))) == 12


def test_a_broken_audit_log_is_noticed_when_it_is_backed_up(rated, db_url, tmp_path):
    with rated.write() as connection:
        connection.execute(text("DROP TRIGGER audit_log_refuse_update"))
        connection.execute(text("UPDATE audit_log SET actor = 'somebody else' WHERE seq = 3"))
    with pytest.raises(StoreError, match="broken at entry 3"):
        operations.backup(db_url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_backups_go_only_where_they_fit(rated, db_url, tmp_path):
    operations.backup(db_url, tmp_path / "copy")
    with pytest.raises(ConfigError, match="exists already"):
        operations.backup(db_url, tmp_path / "copy")
    with pytest.raises(ConfigError, match="backup of a sqlite store"):
        operations.restore(tmp_path / "copy", "postgresql://x@nowhere/y")
    with pytest.raises(StoreError, match="there is no feedback store"):
        operations.backup(f"sqlite:///{tmp_path}/absent.db", tmp_path / "other")
    assert not list(tmp_path.glob(".*building*"))


def test_a_store_set_aside_is_a_whole_store(rated, db_url, tmp_path):
    """What was only in the write-ahead log goes along."""
    operations.backup(db_url, tmp_path / "copy")
    set_disabled(rated, find_account(rated, "rater 3").annotator_id, True)
    rated.close()
    _, aside = operations.restore(tmp_path / "copy", db_url, force=True)
    with Store.open(f"sqlite:///{aside}") as old:
        assert find_account(old, "rater 3").disabled
    with Store.open(db_url) as new:
        assert not find_account(new, "rater 3").disabled


@both_databases
def test_the_commands(rated, db_url, tmp_path, capsys):
    rated.close()
    assert cli.main(["backup", "--db", db_url, "--out", str(tmp_path / "copy")]) == 0
    assert "12 answers, 6 tasks, 4 accounts" in capsys.readouterr().out
    assert cli.main(["restore", str(tmp_path / "copy"), "--db", db_url]) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main(["restore", str(tmp_path / "copy"), "--db", db_url, "--force"]) == 0
    assert "everybody has to log in again" in capsys.readouterr().out


def test_a_password_is_not_on_the_command_line_of_pg_dump(monkeypatch, tmp_path):
    seen = {}

    def run(command, env, **options):
        seen.update(command=command, password=env.get("PGPASSWORD"))
        return subprocess.CompletedProcess(command, 1, "", "no such server")

    monkeypatch.setattr(postgres_tools.subprocess, "run", run)
    url = engine.parse_url("postgresql://maria:s3cret@db.example:5433/ratings?sslmode=require")
    with pytest.raises(StoreError, match="no such server"):
        postgres_tools.restore_dump(url, tmp_path / "dump")
    assert seen["password"] == "s3cret"
    assert "--dbname=postgresql://maria@db.example:5433/ratings?sslmode=require" in seen["command"]
    assert not [word for word in seen["command"] if "s3cret" in word]
