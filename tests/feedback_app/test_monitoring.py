"""/metrics and /healthz: what they say, to whom, and that no client can choose a label."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from feedback_app import monitoring
from feedback_app.accounts import create_annotator
from feedback_app.app import build_app
from feedback_app.config import AppConfig
from feedback_app.store.leases import lease_next
from feedback_app.tokens import create_token

ORIGIN = "http://localhost"
LOCAL, REMOTE = ("127.0.0.1", 5000), ("192.0.2.7", 5000)


def client_of(store, address, **settings):
    app = build_app(store, AppConfig(**settings))
    return TestClient(app, base_url=ORIGIN, follow_redirects=False, client=address)


def value(page, name):
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found.group(1)) if found else None


def test_figures_of_the_store_and_of_requests(store, fill, people):
    fill(store, 5)
    lease_next(store, people[0], "p")
    client = client_of(store, LOCAL)
    for _ in range(3):
        client.get("/login")
    page = client.get("/metrics").text
    assert value(page, "rlhf_open_tasks") == 4
    assert value(page, "rlhf_leases_held") == 1
    assert value(page, "rlhf_answers") == 0
    assert value(page, "rlhf_sessions") == 0
    assert value(page, "rlhf_db_pool_size") >= 1
    assert value(page, 'rlhf_requests_total{method="GET",route="/login",status="200"}') == 3
    assert value(page, 'rlhf_request_seconds_bucket{le="+Inf",method="GET",route="/login"}') == 3


def test_no_label_comes_from_a_client(store):
    client = client_of(store, LOCAL)
    for path in (
        "/secret-path",
        "/welcome/secret-token",
        "/static/secret.css",
        "/desk/secret",
        "/api/v1/secret",
    ):
        client.get(path)
        client.request("SECRET", path)
    client.get("/login", headers={"host": "secret.example"})
    page = client.get("/metrics").text
    assert "secret" not in page.lower()
    assert 'route="/welcome/{token}"' in page
    routes = set(re.findall(r'route="([^"]*)"', page))
    assert routes <= {"other", "/login", "/welcome/{token}", "/static/*", "/desk/*", "/metrics"}


def test_only_this_machine_or_a_token_of_that_scope_reads_metrics(store):
    robot = create_annotator(store, "prometheus", password=None)
    right, wrong = (create_token(store, robot, scopes=[s], expires_days=1) for s in ("metrics", "read"))
    remote, local = client_of(store, REMOTE), client_of(store, LOCAL)
    assert remote.get("/metrics").status_code == 401
    assert local.get("/metrics", headers={"authorization": "Bearer forged"}).status_code == 401
    assert remote.get("/metrics", headers={"authorization": f"Bearer {wrong}"}).status_code == 403
    assert remote.get("/metrics", headers={"authorization": f"Bearer {right}"}).status_code == 200
    assert local.get("/metrics", headers={"x-forwarded-for": "192.0.2.7"}).status_code == 401
    assert client_of(store, LOCAL, trusted_proxy=True).get("/metrics").status_code == 401
    public = client_of(store, LOCAL, public_hosts=("desk.example",))
    assert public.get("/metrics", headers={"host": "desk.example"}).status_code == 401
    assert public.get("/metrics").status_code == 200


def test_health_says_when_the_store_takes_no_write(store, monkeypatch):
    monkeypatch.setattr(monitoring, "HEALTH_S", -1.0)
    client = client_of(store, REMOTE)
    assert client.get("/healthz").json() == {"status": "ok"}
    with store.write() as connection:
        connection.execute(text("ALTER TABLE alembic_version RENAME TO gone"))
    reply = client.get("/healthz")
    assert (reply.status_code, reply.json()["status"]) == (503, "failing")


@pytest.mark.parametrize("times", [20])
def test_health_asks_the_store_once_in_a_while(store, times, monkeypatch):
    looks = []
    monkeypatch.setattr(monitoring.Health, "_look", lambda self: looks.append(1) or "")
    client = client_of(store, REMOTE)
    assert [client.get("/healthz").status_code for _ in range(times)] == [200] * times
    assert len(looks) == 1
