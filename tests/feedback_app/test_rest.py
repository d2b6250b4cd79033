"""The public API: what it gives to whom, page by page, once; and schemathesis against its own description."""

from __future__ import annotations

import gzip
import json

import pytest
import schemathesis
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance
from sqlalchemy import text

from feedback_app import accounts
from feedback_app.accounts import create_annotator
from feedback_app.app import build_app
from feedback_app.config import AppConfig
from feedback_app.store import audit
from feedback_app.store.annotations import answer, judgements, submit
from feedback_app.store.engine import Store
from feedback_app.store.leases import lease_next
from feedback_app.tokens import create_token

ORIGIN, PASSWORD = "http://localhost", "correct horse battery"
PAIRS = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "annotator_id": "ann"} for i in range(7)]
NUM_EXAMPLES = 2  # of each operation
# The token goes with every request; and a value of the right form may still name nothing that is there.
NOT_ASKED = [ignored_auth, positive_data_acceptance]
FILE = "".join(json.dumps(row) + "\n" for row in PAIRS)


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch):
    monkeypatch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@pytest.fixture
def door(store, tmp_path):
    """door(role, *scopes) is a client with a token of a new person of that role."""
    app = build_app(store, AppConfig(), snapshots=tmp_path / "snapshots")

    def _door(role, *scopes):
        person = create_annotator(store, f"{role} with {scopes}", password=None, role=role)
        token = create_token(store, person, scopes=scopes or ("read", "write"), expires_days=1)
        headers = {"authorization": f"Bearer {token}"}
        return TestClient(app, base_url=f"{ORIGIN}/api/v1/", headers=headers, follow_redirects=False)

    return _door


@pytest.fixture
def lead(door):
    return door("lead")


def bring(client, content=FILE, **query):
    query = {"project": "p", "filename": "a.jsonl", **query}
    return client.post("imports", params=query, content=content)


def test_a_project_from_nothing_to_a_snapshot(lead, store, people):
    project = lead.post("projects", json={"project": "p", "title": "Tea", "attributes": [{"name": "warmth"}]})
    assert (project.status_code, project.json()["attributes"][0]["name"]) == (201, "warmth")
    (prompt,) = lead.post("prompts", json={"items": [{"prompt": "Is tea hot?"}]}).json()["ids"]
    sent = {"items": [{"prompt_id": prompt, "text": text, "model_id": "m"} for text in ("Often.", "Never.")]}
    added = lead.post("completions", json=sent).json()
    assert (len(added["ids"]), added["new"]) == (2, 2)
    assert lead.post("completions", json=sent).json() == {"ids": added["ids"], "new": 0}
    made = lead.post(
        "projects/p/tasks", json={"items": [{"prompt_id": prompt, "completion_ids": added["ids"]}]}
    )
    assert made.status_code == 201
    view = lease_next(store, people[0], "p")
    said = answer(view, people[0], preference="first", strength=2, reason="It is.")
    submit(store, said, lease_id=view.lease_id, client_key="rated-once")
    (task,) = lead.get("projects/p/tasks").json()["items"]
    assert (task["task_id"], task["num_done"], task["is_open"]) == (made.json()["ids"][0], 1, False)
    (annotation,) = lead.get("projects/p/annotations").json()["items"]
    assert (annotation["preference"], annotation["reason"]) == ("first", "It is.")
    snapshot = lead.post("projects/p/snapshots", json={"train": 1.0, "validation": 0.0}).json()
    assert "trl/train.jsonl" in snapshot["files"]
    line = lead.get(f"snapshots/{snapshot['snapshot_id']}/files/trl/train.jsonl").json()
    assert line["chosen"][0]["content"] == view.completions[0].text
    assert lead.get("projects/p/snapshots").json()["items"] == [snapshot]


def test_a_file_is_imported_once(lead, store):
    first = bring(lead)
    assert (first.status_code, first.json()["ratings"], first.json()["bad_rows"]) == (201, 7, 0)
    packed = bring(lead, gzip.compress(FILE.encode()), filename="b.jsonl.gz").json()
    assert (packed["ratings"], packed["known_ratings"]) == (0, 7)
    assert len(list(judgements(store, "p"))) == 7


def test_bad_rows_and_bad_files_are_told_without_our_paths(lead):
    told = bring(lead, FILE + "nonsense\n").json()
    assert told["first_bad"] == [{"line": 8, "reason": "broken JSON at column 1: Expecting value"}]
    for content, name, part in (
        ("nonsense\n", "a.jsonl", "no usable row among 1"),
        ("x", "a.exe", "expected .jsonl"),
        (b"PAR1 is not enough", "a.parquet", "cannot be read as Parquet"),
        (gzip.compress(b" " * (200 << 20)), "a.jsonl.gz", "decompression bomb"),
        ("", "a.csv", "file is empty"),
    ):
        reply = bring(lead, content, filename=name)
        assert reply.status_code == 422, name
        assert part in reply.json()["detail"]
        assert "/tmp" not in reply.text


def test_an_upload_is_capped_and_other_bodies_more_so(lead):
    huge = {"content-length": str((64 << 20) + 1)}
    assert lead.post("imports?project=p&filename=a.jsonl", content=b"", headers=huge).status_code == 413
    assert lead.post("prompts", content=b" " * ((1 << 20) + 1)).status_code == 413


def test_pages_follow_each_other_without_gaps(lead):
    bring(lead)
    for path, name in (("prompts", "prompt_id"), ("completions", "completion_id")):
        assert len(collected(lead, path, name)) == {"prompts": 7, "completions": 14}[path]
    for path, name in (("projects/p/tasks", "task_id"), ("projects/p/annotations", "annotation_id")):
        assert len(collected(lead, path, name)) == 7
    prompt = lead.get("prompts?limit=1").json()["items"][0]["prompt_id"]
    assert len(lead.get("completions", params={"prompt_id": prompt}).json()["items"]) == 2
    assert lead.get(f"prompts/{prompt}").json()["prompt_id"] == prompt
    for cursor in ("x", "e30=", "WyJcdTAwMDAiXQ=="):
        assert lead.get("prompts", params={"cursor": cursor}).status_code == 422


def collected(client, path, name):
    found, cursor = [], ""
    while cursor is not None:
        page = client.get(path, params={"limit": 3, "cursor": cursor}).json()
        assert len(page["items"]) <= 3
        found += [item[name] for item in page["items"]]
        cursor = page["next"]
    assert len(set(found)) == len(found)
    return found


def test_a_repeated_key_gives_the_first_answer(lead, door, store):
    body, key = {"items": [{"prompt": "once"}]}, {"idempotency-key": "write-number-1"}
    first = lead.post("prompts", json=body, headers=key).json()
    assert (first["new"], lead.post("prompts", json=body, headers=key).json()) == (1, first)
    other = lead.post("prompts", json={"items": [{"prompt": "another"}]}, headers=key)
    assert (other.status_code, other.json()["where"]) == (409, "header.Idempotency-Key")
    somebody = door("admin", "read", "write")
    assert somebody.post("prompts", json=body, headers=key).json()["new"] == 0  # a key is one person's
    with store.read() as connection:
        assert audit.first_broken(connection) is None


def test_a_one_time_link_is_told_once(door, store):
    admin, key = door("admin", "admin"), {"idempotency-key": "a-new-person"}
    first = admin.post("users", json={"name": "ada", "role": "lead"}, headers=key).json()
    assert first["welcome"].startswith("/welcome/")
    again = admin.post("users", json={"name": "ada", "role": "lead"}, headers=key).json()
    assert again == {**first, "welcome": None}
    with store.read() as connection:
        log = connection.execute(text("SELECT details FROM audit_log")).scalars().all()
    assert first["welcome"].split("/")[-1] not in str(log)
    assert admin.post("users", json={"name": "ada"}).status_code == 409
    closed = admin.patch(f"users/{first['annotator_id']}", json={"disabled": True})
    assert closed.json()["disabled"] is True


def test_settings_change_by_name(lead):
    lead.post("projects", json={"project": "p"})
    assert lead.patch("projects/p/settings", json={"gold_rate": 0.25}).json()["gold_rate"] == 0.25
    assert lead.get("projects/p/settings").json()["gold_rate"] == 0.25
    wrong = lead.patch("projects/p/settings", json={"gold_rat": 0.25})
    assert (wrong.status_code, "did you mean 'gold_rate'" in wrong.json()["detail"]) == (422, True)
    assert lead.patch("projects/none/settings", json={}).status_code == 404


def test_scopes_and_roles_are_both_needed(door):
    reader, annotator, admin = door("lead", "read"), door("annotator", "read", "write"), door("admin", "read")
    assert reader.get("projects").status_code == 200
    refused = reader.post("projects", json={"project": "p"})
    assert (refused.status_code, refused.json()["expected"]) == (403, "a token of scope 'write'")
    assert annotator.get("projects").status_code == 403
    assert annotator.get("completions").status_code == 403  # which names models
    assert annotator.get("me").json()["role"] == "annotator"
    assert admin.get("users").status_code == 403
    assert door("lead", "admin").get("users").status_code == 403


def test_a_leads_session_works_too_and_keeps_the_origin_rules(store, tmp_path):
    create_annotator(store, "lena", password=PASSWORD, role="lead")
    client = TestClient(build_app(store, AppConfig()), base_url=ORIGIN, headers={"origin": ORIGIN})
    client.post("/login", data={"name": "lena", "password": PASSWORD})
    assert client.get("/api/v1/me").json()["scopes"] is None
    assert client.post("/api/v1/projects", json={"project": "p"}).status_code == 201
    foreign = client.post(
        "/api/v1/projects", json={"project": "q"}, headers={"origin": "http://evil.example"}
    )
    assert foreign.status_code == 403


def test_errors_say_what_where_and_what_is_expected(lead):
    reply = lead.post("prompts", json={"items": [{"prompt": "fine"}, {"prompt": " "}]})
    assert reply.status_code == 422
    assert reply.json() == {"detail": "the last message is empty", "where": "body.items.1", "expected": ""}
    broken = lead.post("prompts", content="{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["expected"]) == (400, "JSON")
    assert lead.get("projects/none").json()["detail"] == "there is no project 'none'"
    assert lead.get("prompts?limit=0").json()["where"] == "query.limit"


def test_blind_evaluations_are_not_exported(lead, store):
    bring(lead)
    with store.write() as connection:
        connection.execute(text("UPDATE projects SET purpose = 'evaluate'"))
    assert lead.post("projects/p/snapshots", json={}).status_code == 409


def test_only_a_snapshots_own_files_are_given(lead, store, tmp_path):
    bring(lead)
    snapshot = lead.post("projects/p/snapshots", json={}).json()["snapshot_id"]
    for name in ("..%2f..%2ffeedback.db", "trl", "../manifest.json", "nothing.jsonl", "%00"):
        assert lead.get(f"snapshots/{snapshot}/files/{name}").status_code in (404, 422), name
    (folder,) = (tmp_path / "snapshots").iterdir()
    (folder / "manifest.json").write_text('{"snapshot_id": "another"}')
    assert lead.get(f"snapshots/{snapshot}/files/train.jsonl").status_code == 404
    assert lead.get(f"snapshots/{snapshot}").json()["files"] == []


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The API's description and an admin's token, over a store with some work in it."""
    folder = tmp_path_factory.mktemp("described")
    with Store.open(f"sqlite:///{folder}/feedback.db") as store:
        app = build_app(store, AppConfig())
        person = create_annotator(store, "root", password=None, role="admin")
        token = create_token(store, person, scopes=("read", "write", "admin"), expires_days=1)
        client = TestClient(app, base_url=f"{ORIGIN}/api/v1/", headers={"authorization": f"Bearer {token}"})
        assert bring(client).status_code == 201
        schema = schemathesis.openapi.from_dict(client.get("openapi.json").json())
        schema.app = app
        schema.config.update(base_url=f"{ORIGIN}/api/v1", headers={"authorization": f"Bearer {token}"})
        yield schema


def test_every_answer_fits_the_description(described):
    """Good and bad requests to every operation: no 5xx, and nothing that the description does not promise."""
    num_operations = 0
    for found in described.get_all_operations():
        operation = found.ok()
        num_operations += 1

        @seed(7)
        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategies.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))
        def knock(case):
            case.call_and_validate(excluded_checks=NOT_ASKED)

        knock()
    assert num_operations > 20
