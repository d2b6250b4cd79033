"""Accounts: passwords, throttle, sessions, one-time links, `rlhf users`."""

from __future__ import annotations

import io
import time

import pytest
from sqlalchemy import select, text, update

from feedback_app import accounts, auth
from feedback_app.accounts import (
    Throttled,
    create_annotator,
    create_link,
    find_account,
    first_admin_link,
    link_owner,
    log_in,
    log_out,
    set_disabled,
    set_password,
    use_link,
    who_is,
)
from feedback_app.config import UsersConfig
from feedback_app.sessions import list_sessions
from feedback_app.store.schema import annotators, sessions
from rlhf.core.errors import ConfigError, DataError, StoreError
from rlhf.core.run import Launch

pytestmark = pytest.mark.databases("sqlite", "postgresql")

PASSWORD = "correct horse battery"


@pytest.fixture
def maria(store) -> str:
    return create_annotator(store, "maria", password=PASSWORD)


def enter(store, name="maria", password=PASSWORD, address="10.0.0.1"):
    return log_in(store, name, password, address=address)


def test_passwords_are_argon2id_and_nothing_else_is_stored(store, maria):
    with store.read() as connection:
        hashed = connection.execute(select(annotators.c.password_hash)).scalar_one()
    assert hashed.startswith("$argon2id$")
    token = enter(store)
    with store.read() as connection:
        kept = connection.execute(select(sessions.c.token_hash)).scalar_one()
    assert token not in kept
    assert len(kept) == 64


def test_log_in_and_out(store, maria):
    token = enter(store)
    person = who_is(store, token)
    assert (person.annotator_id, person.name, person.role) == (maria, "maria", "annotator")
    assert enter(store, password="wrong password") is None
    assert enter(store, name="nobody") is None
    log_out(store, token)
    assert who_is(store, token) is None
    assert who_is(store, None) is None
    assert who_is(store, "forged") is None


def test_an_account_without_a_password_cannot_log_in(store):
    create_annotator(store, "robot", password=None, simulated=True)
    assert enter(store, name="robot", password="") is None
    assert enter(store, name="robot", password="None") is None


def test_sessions_end_after_12_hours_or_2_idle(store, maria):
    token = enter(store)
    now = time.time()
    assert who_is(store, token, now=now + 2 * 3600 - 5) is not None  # and this counts as use
    assert who_is(store, token, now=now + 4 * 3600 - 60) is not None
    assert who_is(store, token, now=now + 6 * 3600) is None
    assert who_is(store, token, now=now + 4 * 3600) is not None
    with store.write() as connection:
        connection.execute(update(sessions).values(last_seen_at=now + 12 * 3600 - 1))
    assert who_is(store, token, now=now + 12 * 3600 - 1) is not None
    assert who_is(store, token, now=now + 12 * 3600 + 1) is None


def test_five_failures_close_the_door_for_that_account_and_address(store, maria):
    for _ in range(5):
        assert enter(store, password="not the password") is None
    with pytest.raises(Throttled, match="15 min"):
        enter(store)
    assert enter(store, address="10.0.0.2") is not None
    with store.write() as connection:
        connection.execute(text("UPDATE login_attempts SET attempted_at = attempted_at - 901"))
    assert enter(store) is not None


def test_a_success_starts_the_count_again(store, maria):
    for _ in range(2):
        for _ in range(4):
            enter(store, password="not the password")
        assert enter(store) is not None


def test_guessing_over_many_accounts_is_slowed_too(store, monkeypatch):
    monkeypatch.setattr(accounts, "_fits", lambda hashed, password: False)
    for i in range(accounts.MAX_FAILURES_PER_ADDRESS):
        assert enter(store, name=f"guess {i}") is None
    with pytest.raises(Throttled):
        enter(store, name="one more")


def test_disabling_ends_sessions_at_once(store, maria):
    token = enter(store)
    set_disabled(store, maria, True)
    assert who_is(store, token) is None
    assert enter(store) is None
    set_disabled(store, maria, False)
    assert who_is(store, token) is None
    assert enter(store) is not None


def test_a_new_password_ends_sessions(store, maria):
    token = enter(store)
    set_password(store, maria, "another password")
    assert who_is(store, token) is None
    assert enter(store) is None
    assert enter(store, password="another password") is not None


def test_a_link_works_once(store):
    person = create_annotator(store, "ada", password=None)
    old, link = create_link(store, person), create_link(store, person)
    assert link_owner(store, old) is None
    assert link_owner(store, link) == "ada"
    with pytest.raises(DataError, match="10 to 1024 characters"):
        use_link(store, link, "short")
    use_link(store, link, PASSWORD)
    assert enter(store, name="ada") is not None
    with pytest.raises(StoreError, match="used already"):
        use_link(store, link, "again and again")


def test_a_link_runs_out(store):
    link = create_link(store, create_annotator(store, "ada", password=None))
    with store.write() as connection:
        connection.execute(text("UPDATE one_time_links SET expires_at = 1"))
    with pytest.raises(StoreError, match="run out"):
        use_link(store, link, PASSWORD)


def test_the_first_administrator_has_no_default_password(store):
    name, token = first_admin_link(store)
    again, second = first_admin_link(store)
    assert name == again == "admin"
    assert link_owner(store, token) is None  # only the newest link counts
    use_link(store, second, PASSWORD)
    assert first_admin_link(store) is None
    assert find_account(store, "admin").role == "admin"


@pytest.mark.parametrize("name", ["", "  ", "a" * 129, "two\nlines", "zero\u200bwidth"])
def test_names_must_be_typable(store, name):
    with pytest.raises(DataError, match="printable"):
        create_annotator(store, name, password=None)


def test_names_are_taken_once(store, maria):
    with pytest.raises(StoreError, match="taken"):
        create_annotator(store, " maria ", password=None)
    with pytest.raises(StoreError, match="taken"):
        create_annotator(store, "maria", password=None, simulated=True)
    with pytest.raises(DataError, match="must not be the account name"):
        create_annotator(store, "a very long name", password="A very long name")


def test_the_users_command(tmp_path, db_url, capsys, monkeypatch):
    launch = Launch(workspace=tmp_path, db=db_url)
    auth.run(UsersConfig(action="add", name="ada", role="lead"), launch)
    assert "/welcome/" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO(PASSWORD + "\n"))
    auth.run(UsersConfig(action="password", name="ada", password_stdin=True), launch)
    auth.run(UsersConfig(action="disable", name="ada"), launch)
    capsys.readouterr()
    auth.run(UsersConfig(action="list"), launch)
    assert capsys.readouterr().out.split() == ["ada", "lead", "disabled"]
    with pytest.raises(StoreError, match="no account 'bob'"):
        auth.run(UsersConfig(action="password", name="bob"), launch)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ConfigError, match="standard input"):
        auth.run(UsersConfig(action="add", name="eve", password_stdin=True), launch)
    with pytest.raises(ValueError, match="needs a name"):
        UsersConfig(action="add")


def test_sessions_are_seen_and_ended_from_the_command_line(store, maria, tmp_path, db_url, capsys):
    launch = Launch(workspace=tmp_path, db=db_url)
    create_annotator(store, "bob", password=PASSWORD)
    mine, theirs = enter(store), enter(store, name="bob", address="10.0.0.9")
    auth.run(UsersConfig(action="sessions"), launch)
    shown = capsys.readouterr().out
    assert "maria" in shown
    assert "10.0.0.9" in shown
    assert mine not in shown
    auth.run(UsersConfig(action="revoke", name="maria"), launch)
    assert "(1 sessions)" in capsys.readouterr().out
    assert who_is(store, mine) is None
    assert who_is(store, theirs) is not None
    auth.run(UsersConfig(action="sessions", name="maria"), launch)
    assert capsys.readouterr().out == "nobody is logged in\n"
    assert enter(store) is not None  # the password still works


def test_only_sessions_that_would_be_let_in_are_listed(store, maria):
    enter(store)
    now = time.time()
    assert len(list_sessions(store)) == 1
    assert list_sessions(store, now=now + 2 * 3600 + 5) == []
    with store.write() as connection:
        connection.execute(update(sessions).values(last_seen_at=now + 12 * 3600))
    assert list_sessions(store, now=now + 12 * 3600 + 5) == []


def test_erasing_from_the_command_line_asks_first(store, maria, tmp_path, db_url, capsys):
    launch = Launch(workspace=tmp_path, db=db_url)
    with pytest.raises(ConfigError, match="--yes"):
        auth.run(UsersConfig(action="erase", name="maria"), launch)
    auth.run(UsersConfig(action="erase", name="maria", yes=True, reason="asked by letter"), launch)
    assert "erased all ratings and words of 'maria': 0 answers" in capsys.readouterr().out
    assert enter(store) is not None
    auth.run(UsersConfig(action="erase", name="maria", yes=True, account=True), launch)
    assert enter(store) is None
    with pytest.raises(StoreError, match="no account 'maria'"):
        find_account(store, "maria")
