"""The server over HTTP: who gets in, from where, and what leaves it."""

from __future__ import annotations

import re

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from sqlalchemy import text

from feedback_app import accounts, security
from feedback_app.accounts import create_annotator, create_link, set_disabled
from feedback_app.app import build_app
from feedback_app.config import AppConfig
from feedback_app.store.annotations import judgements
from feedback_app.store.engine import Store
from feedback_app.store.tasks import ensure_project

pytestmark = pytest.mark.databases("sqlite", "postgresql")

PASSWORD = "correct horse battery"
ORIGIN = "http://localhost"
MODEL = "secret-model-7b"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch):
    """Full-strength argon2id is tested in test_accounts; here it would only take time."""
    monkeypatch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@pytest.fixture
def app(store):
    return build_app(store, AppConfig())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One application for the tests that change nothing: (a stranger, somebody who has logged in)."""
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('shared')}/feedback.db") as store:
        app = build_app(store, AppConfig())
        create_annotator(store, "maria", password=PASSWORD)
        person = TestClient(app, base_url=ORIGIN, follow_redirects=False, headers={"origin": ORIGIN})
        assert person.post("/login", data={"name": "maria", "password": PASSWORD}).status_code == 303
        yield TestClient(app, base_url=ORIGIN, follow_redirects=False), person


@pytest.fixture
def stranger(shared):
    shared[0].cookies.clear()
    return shared[0]


@pytest.fixture
def visitor(app):
    return TestClient(app, base_url=ORIGIN, follow_redirects=False)


@pytest.fixture
def enter(app, store):
    """enter(name) is a client of a person who has logged in."""

    def _enter(name: str) -> TestClient:
        create_annotator(store, name, password=PASSWORD)
        client = TestClient(app, base_url=ORIGIN, follow_redirects=False, headers={"origin": ORIGIN})
        reply = client.post("/login", data={"name": name, "password": PASSWORD})
        assert reply.status_code == 303
        return client

    return _enter


def next_task(client, holding=()):
    reply = client.post("/api/v1/desk/next", json={"project": "p", "holding": list(holding)})
    assert reply.status_code == 200
    return reply.json()["task"]


def rate(client, lease, key="key-number-1", **answer):
    body = {"lease": lease, "key": key, **(answer or {"choice": "a", "strength": 2})}
    return client.post("/api/v1/desk/answer", json=body)


PROTECTED = [
    ("GET", "/api/v1/desk"),
    ("POST", "/api/v1/desk/next"),
    ("POST", "/api/v1/desk/answer"),
    ("POST", "/api/v1/desk/skip"),
    ("POST", "/api/v1/desk/heartbeat"),
    ("POST", "/api/v1/desk/draft"),
    ("GET", "/api/v1/desk/history"),
    ("GET", "/api/v1/desk/history/{annotation_id}"),
    ("POST", "/logout"),
    ("GET", "/desk/config"),
    ("GET", "/desk/gradio_api/info"),
    ("POST", "/desk/gradio_api/queue/join"),
    ("POST", "/desk/gradio_api/upload"),
    ("POST", "/desk/login"),
    ("GET", "/nowhere"),
    ("GET", "/api/v1/projects"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize("cookie", [None, "forged-token"])
def test_nothing_works_without_a_session(stranger, method, path, cookie):
    if cookie:
        stranger.cookies.set(security.COOKIE, cookie)
    reply = stranger.request(method, path, headers={"origin": ORIGIN}, json={} if method == "POST" else None)
    assert reply.status_code == 401


def test_a_page_without_a_session_leads_to_the_login(visitor):
    reply = visitor.get("/desk/", headers={"accept": "text/html"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/login?next=/desk/")
    assert visitor.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:81", "http://localhost.evil.example"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/login"),
        ("POST", "/api/v1/desk/next"),
        ("POST", "/desk/gradio_api/queue/join"),
        ("GET", "/desk/config"),
    ],
)
def test_other_origins_are_refused_even_with_a_session(shared, origin, method, path):
    reply = shared[1].request(method, path, headers={"origin": origin})
    assert reply.status_code == 403
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_browser_that_hides_the_origin_is_judged_by_fetch_metadata(enter):
    client = enter("maria")
    del client.headers["origin"]
    cross = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.post("/api/v1/desk/next", json={"project": "p"}, headers=cross).status_code == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/desk/", headers=link).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[::1"])
def test_other_hosts_are_refused(stranger, host):
    assert stranger.get("/login", headers={"host": host}).status_code == 421


def test_named_hosts_and_addresses_when_listening_everywhere(store):
    app = build_app(store, AppConfig(host="0.0.0.0", public_hosts=("desk.example",)))
    client = TestClient(app, base_url="http://desk.example")
    assert client.get("/login").status_code == 200
    assert client.get("/login", headers={"host": "192.168.1.7:7860"}).status_code == 200
    assert client.get("/login", headers={"host": "rebound.example"}).status_code == 421


def test_headers_on_every_answer(visitor, enter):
    for reply in (visitor.get("/login"), visitor.get("/nowhere"), enter("maria").get("/desk/")):
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert (
            "object-src 'none'" in reply.headers["content-security-policy"]
            or "default-src 'none'" in reply.headers["content-security-policy"]
        )
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
    assert "script" not in visitor.get("/login").headers["content-security-policy"]


def test_the_cookie_cannot_be_read_or_sent_across(app, store):
    create_annotator(store, "maria", password=PASSWORD)
    client = TestClient(app, base_url=ORIGIN, follow_redirects=False)
    cookie = client.post("/login", data={"name": "maria", "password": PASSWORD}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    behind_tls = TestClient(
        build_app(store, AppConfig(secure_cookies=True)), base_url=ORIGIN, follow_redirects=False
    )
    reply = behind_tls.post("/login", data={"name": "maria", "password": PASSWORD})
    assert "Secure" in reply.headers["set-cookie"]
    assert "strict-transport-security" in reply.headers


def test_login_refuses_throttles_and_stays_on_this_site(visitor, store):
    create_annotator(store, "maria", password=PASSWORD)
    for _ in range(5):
        assert visitor.post("/login", data={"name": "maria", "password": "wrong"}).status_code == 401
    assert visitor.post("/login", data={"name": "maria", "password": PASSWORD}).status_code == 429
    create_annotator(store, "ada", password=PASSWORD)
    for target in ("//evil.example", "/\\evil.example", "https://evil.example"):
        reply = visitor.post("/login", data={"name": "ada", "password": PASSWORD, "next": target})
        assert reply.headers["location"] == "/desk/"


def test_names_are_text_on_the_account_pages(visitor, store):
    hostile = "<script>alert(1)</script>"
    page = visitor.post("/login", data={"name": hostile, "password": "x", "next": f'"{hostile}'}).text
    assert "<script" not in page
    link = create_link(store, create_annotator(store, hostile, password=None))
    page = visitor.get(f"/welcome/{link}").text
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_one_time_link_sets_the_password(visitor, store):
    link = create_link(store, create_annotator(store, "ada", password=None))
    page = f"/welcome/{link}"
    assert "Welcome, ada" in visitor.get(page).text
    assert visitor.post(page, data={"password": PASSWORD, "again": "different one"}).status_code == 400
    assert visitor.post(page, data={"password": "short", "again": "short"}).status_code == 400
    assert visitor.post(page, data={"password": PASSWORD, "again": PASSWORD}).status_code == 200
    assert visitor.get(page).status_code == 410
    assert visitor.post(page, data={"password": PASSWORD, "again": PASSWORD}).status_code == 410
    assert visitor.post("/login", data={"name": "ada", "password": PASSWORD}).status_code == 303


def test_logging_out_and_being_disabled_end_access(enter, store):
    client, other = enter("maria"), enter("bob")
    token = client.cookies[security.COOKIE]
    assert client.post("/logout").status_code == 303
    client.cookies.set(security.COOKIE, token)
    assert client.get("/api/v1/desk").status_code == 401
    with store.read() as connection:
        bob = connection.execute(text("SELECT annotator_id FROM annotators WHERE name = 'bob'")).scalar_one()
    set_disabled(store, bob, True)
    assert other.get("/api/v1/desk").status_code == 401


def test_an_answer_is_in_the_database_when_the_reply_comes(enter, store, fill):
    fill(store, 2)
    client = enter("maria")
    task = next_task(client)
    reply = rate(client, task["lease"], choice="b", strength=3, reason="  kinder  ", seconds=4.2)
    assert (reply.status_code, reply.json()["saved"], reply.json()["progress"]["mine"]) == (200, True, 1)
    (judgement,) = judgements(store, "p")
    texts = dict(zip(("a", "b"), task["sides"], strict=True))
    with store.read() as connection:
        by_text = dict(connection.execute(text("SELECT text, completion_id FROM completions")).tuples().all())
    chosen = judgement.completion_ids[0 if judgement.preference == "first" else 1]
    assert by_text[texts["b"]] == chosen == judgement.shown_order[1]
    assert (judgement.strength, judgement.reason) == (3, "kinder")


def test_a_repeated_answer_is_stored_once(enter, store, fill):
    fill(store, 1)
    client = enter("maria")
    lease = next_task(client)["lease"]
    replies = [rate(client, lease).json() for _ in range(3)]
    assert [reply["repeated"] for reply in replies] == [False, True, True]
    with store.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM annotations")).scalar() == 1


def test_nobody_touches_what_is_leased_to_somebody_else(enter, store, fill):
    fill(store, 2)
    maria, bob = enter("maria"), enter("bob")
    lease = next_task(maria)["lease"]
    assert rate(bob, lease).status_code == 409
    assert (
        bob.post("/api/v1/desk/skip", json={"lease": lease, "key": "k" * 16, "reason": "x"}).status_code
        == 409
    )
    assert bob.post("/api/v1/desk/draft", json={"lease": lease, "reason": "x"}).status_code == 409
    assert bob.post("/api/v1/desk/heartbeat", json={"leases": [lease]}).json() == {"alive": []}
    assert maria.post("/api/v1/desk/heartbeat", json={"leases": [lease]}).json() == {"alive": [lease]}
    assert next_task(bob)["lease"] != lease


def test_a_draft_comes_back_and_ends_with_the_answer(enter, store, fill):
    fill(store, 1)
    client = enter("maria")
    lease = next_task(client)["lease"]
    for reason in ("half a thou", "half a thought"):
        body = {"lease": lease, "choice": "tie", "reason": reason}
        assert client.post("/api/v1/desk/draft", json=body).json() == {"kept": True}
    assert next_task(client)["draft"] == {"choice": "tie", "reason": "half a thought"}
    rate(client, lease)
    with store.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM drafts")).scalar() == 0


def test_a_skipped_task_does_not_come_back(enter, store, fill):
    fill(store, 1)
    client = enter("maria")
    lease = next_task(client)["lease"]
    body = {"lease": lease, "key": "skip-key-1", "reason": "I cannot judge this"}
    assert client.post("/api/v1/desk/skip", json=body).json() == {"skipped": True}
    assert next_task(client) is None


@pytest.mark.parametrize(
    "answer",
    [
        {"choice": "c"},
        {"choice": "a"},
        {"choice": "tie", "strength": 1},
        {"choice": "a", "strength": 4},
        {"choice": "a", "strength": 1, "reason": "x" * 10_001},
        {"choice": "a", "strength": 1, "preference": "first"},
    ],
)
def test_answers_that_make_no_sense_are_refused(enter, store, fill, answer):
    fill(store, 1)
    client = enter("maria")
    assert rate(client, next_task(client)["lease"], **answer).status_code == 422
    assert list(judgements(store, "p")) == []


def test_too_large_bodies_are_refused(enter):
    client = enter("maria")
    assert client.post("/api/v1/desk/draft", content=b"x" * (1 << 20) + b"x").status_code == 413
    endless = (b"x" * 65536 for _ in range(40))
    reply = client.post("/api/v1/desk/draft", content=endless, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 413, 422)


def test_no_model_name_anywhere(enter, store, fill):
    """Page, Gradio's config, its API description and every JSON answer."""
    fill(store, 2)
    ensure_project(store, "another")
    client = enter("maria")
    task = client.post("/api/v1/desk/next", json={"project": "p"})
    seen = [
        client.get("/desk/").text,
        client.get("/desk/config").text,
        client.get("/desk/gradio_api/info").text,
        client.get("/api/v1/desk").text,
        task.text,
        rate(client, task.json()["task"]["lease"]).text,
    ]
    assert not [page for page in seen if MODEL in page]
    with store.read() as connection:
        ids = connection.execute(text("SELECT completion_id FROM completions")).scalars().all()
    # nor an id from which the model could be told by comparing tasks
    assert not [page for page in seen for completion_id in ids if completion_id in page]


def test_simulated_projects_say_so(enter, store, fill):
    fill(store, 1, simulated=True)
    client = enter("maria")
    assert client.get("/api/v1/desk").json()["projects"][0]["simulated"] is True
    assert next_task(client)["simulated"] is True


def test_gradio_asks_no_other_host(enter):
    page = enter("maria").get("/desk/").text
    loaded = re.findall(r'(?:src|href)="(https?:)?//([^"/]+)', page)
    assert {host for _, host in loaded} <= {"localhost", "testserver"}
