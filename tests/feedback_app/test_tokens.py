"""Tokens for programs: shown once, kept as hashes, narrower than their person, never mixed with cookies."""

from __future__ import annotations

import re
import time

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from pydantic import ValidationError
from sqlalchemy import text

from feedback_app import accounts, security
from feedback_app.accounts import create_annotator, set_disabled
from feedback_app.app import build_app
from feedback_app.auth import run as run_users
from feedback_app.config import AppConfig, UsersConfig
from feedback_app.tokens import DAY_S, bearer_of, create_token, list_tokens, revoke_token, token_id_of
from rlhf.core.errors import DataError, StoreError
from rlhf.core.run import Launch

ORIGIN = "http://localhost"
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch):
    monkeypatch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@pytest.fixture
def lead(store):
    return create_annotator(store, "lena", password=PASSWORD, role="lead")


@pytest.fixture
def client(store):
    app = build_app(store, AppConfig())
    return TestClient(app, base_url=ORIGIN, follow_redirects=False, client=("127.0.0.1", 5000))


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_a_token_speaks_for_its_person_and_is_kept_as_a_hash(store, lead):
    token = create_token(store, lead, scopes=["read", "write", "read"], expires_days=1, label="nightly")
    found = bearer_of(store, token)
    assert (found.person.name, found.person.role, found.scopes) == ("lena", "lead", {"read", "write"})
    with store.read() as connection:
        rows = connection.execute(text("SELECT * FROM api_tokens")).all()
        log = connection.execute(text("SELECT details FROM audit_log")).scalars().all()
    assert token not in str(rows) + str(log)
    (listed,) = list_tokens(store)
    assert (listed.name, listed.label, listed.token_id) == ("lena", "nightly", token_id_of(token))
    assert listed.last_used_at == pytest.approx(time.time(), abs=5)


def test_a_token_ends_when_it_runs_out_is_revoked_or_its_person_is_disabled(store, lead):
    short, revoked, last = (create_token(store, lead, scopes=["read"], expires_days=1) for _ in range(3))
    assert bearer_of(store, short, now=time.time() + 0.9 * DAY_S) is not None
    assert bearer_of(store, short, now=time.time() + 1.1 * DAY_S) is None
    revoke_token(store, token_id_of(revoked))
    assert bearer_of(store, revoked) is None
    with pytest.raises(StoreError, match="no working token"):
        revoke_token(store, token_id_of(revoked))
    with pytest.raises(StoreError, match="no working token"):
        revoke_token(store, "")
    set_disabled(store, lead, True)
    assert bearer_of(store, last) is None
    assert bearer_of(store, last + "x") is None


def test_tokens_that_make_no_sense_are_refused(store, lead):
    with pytest.raises(DataError, match="scopes read, write, admin, metrics; found 'root'"):
        create_token(store, lead, scopes=["root"], expires_days=1)
    with pytest.raises(DataError, match="found none"):
        create_token(store, lead, scopes=[], expires_days=1)
    with pytest.raises(DataError, match="3650 days"):
        create_token(store, lead, scopes=["read"], expires_days=1e9)
    with pytest.raises(StoreError, match="no account"):
        create_token(store, "a-nobody", scopes=["read"], expires_days=None)


def test_the_command_makes_lists_and_revokes(store, lead, db_url, tmp_path, capsys):
    launch = Launch(workspace=tmp_path, db=db_url)
    run_users(UsersConfig(action="token", name="lena", scopes="read,write", expires_days=3), launch)
    token = re.search(r"shown only now: (\S+)", capsys.readouterr().out).group(1)
    assert bearer_of(store, token).scopes == {"read", "write"}
    run_users(UsersConfig(action="tokens"), launch)
    listed = capsys.readouterr().out
    assert token not in listed
    assert token_id_of(token) in listed
    run_users(UsersConfig(action="revoke-token", name=token_id_of(token)), launch)
    assert bearer_of(store, token) is None
    with pytest.raises(ValidationError, match="scopes"):
        UsersConfig(action="token", name="lena", scopes="read,everything")


def test_a_token_opens_no_desk_and_no_page(client, store, lead):
    headers = bearer(create_token(store, lead, scopes=["read", "write", "admin"], expires_days=1))
    for path in ("/desk/", "/desk/config", "/api/v1/desk", "/api/v1/lead", "/"):
        assert client.get(path, headers=headers).status_code == 401
    assert client.post("/api/v1/desk/next", headers=headers, json={"project": "p"}).status_code == 401


def test_a_bad_token_is_not_rescued_by_a_cookie(client, lead):
    assert client.post("/login", data={"name": "lena", "password": PASSWORD}).status_code == 303
    assert client.get("/api/v1/desk").status_code == 200
    for header in ("Bearer forged", "Bearer ", "Basic bGVuYTp4", b"\xb2"):
        assert client.get("/api/v1/projects", headers={"authorization": header}).status_code == 401


def test_origin_and_host_rules_hold_for_tokens_too(client, store, lead):
    headers = bearer(create_token(store, lead, scopes=["read", "write"], expires_days=1))
    foreign = {**headers, "origin": "http://evil.example"}
    assert client.get("/api/v1/projects", headers=foreign).status_code == 403
    assert client.get("/api/v1/projects", headers={**headers, "host": "evil.example"}).status_code == 421


def test_a_length_that_is_no_number_is_refused(client):
    for length in (b"\xb2", "-1", "9" * 5000):
        reply = client.get("/login", headers={"content-length": length})
        assert reply.status_code == 413, length
    assert security.MAX_BODY_BYTES < security.MAX_UPLOAD_BYTES
