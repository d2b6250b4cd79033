"""Attacks on the server that are not about who may do what: bodies, addresses, files, sessions, slow clients."""

from __future__ import annotations

import asyncio
import csv
import socket
import threading
import time
from io import StringIO

import pytest
import uvicorn
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from feedback_app import accounts, security
from feedback_app.accounts import create_annotator, log_in
from feedback_app.addresses import client_address
from feedback_app.app import build_app
from feedback_app.config import AppConfig
from feedback_app.csv_safe import csv_lines
from feedback_app.security import COOKIE, Gate, cookie_name
from feedback_app.slow_clients import PatientProtocol
from feedback_app.store.engine import Store

PASSWORD = "correct horse battery"
ORIGIN = "http://localhost"


@pytest.fixture(scope="module", autouse=True)
def quick_hashes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        yield


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """One store for all of these: none of them is about the store, which has its tests on both databases."""
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('attacked')}/feedback.db") as opened:
        create_annotator(opened, "maria", password=PASSWORD)
        yield opened


@pytest.fixture(scope="module")
def app(db):
    return build_app(db, AppConfig())


@pytest.fixture(scope="module")
def browser(app):
    """browser() is a browser at the login page, with the cookies that are given."""

    def _browser(**cookies: str) -> TestClient:
        headers = {"origin": ORIGIN}
        return TestClient(
            app,
            base_url=ORIGIN,
            follow_redirects=False,
            headers=headers,
            cookies=cookies,
            raise_server_exceptions=False,
        )

    return _browser


@pytest.fixture(scope="module")
def client(browser):
    """Somebody who has logged in."""
    opened = browser()
    assert opened.post("/login", data={"name": "maria", "password": PASSWORD}).status_code == 303
    return opened


# --- Gradio's routes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/desk/gradio_api/file=/etc/passwd",
        "/desk/gradio_api/file=../../etc/passwd",
        "/desk/gradio_api/file/etc/passwd",
        "/desk/file=/etc/passwd",
        "/desk/gradio_api/proxy=http://evil.example/",
        "/desk/gradio_api/queue/status",
        "/desk/gradio_api/heartbeat/abc",
        "/desk/gradio_api/info",
        "/desk/openapi.json",
        "/desk/monitoring",
        "/desk/assets/../../app.py",
        "/desk/static/..%2f..%2fapp.py",
        "/desk/assets/%2e%2e/%2e%2e/routes.py",
        "/desk/assets//etc/passwd",
        "/static/../security.py",
        "/static/%2e%2e/desk.js",
        "/static/..%5cdesk.js",
        "/static//etc/passwd",
        "/static/account.css%00.svg",
    ],
)
def test_no_path_leads_to_a_file_or_a_service_of_the_machine(client, path):
    reply = client.get(path)
    assert reply.status_code in (400, 403, 404)
    assert "root:" not in reply.text
    assert "def " not in reply.text


@pytest.mark.parametrize(
    "path",
    [
        "upload",
        "queue/join",
        "run/predict",
        "api/predict",
        "call/predict",
        "component_server",
        "reset",
        "vibe-edit",
    ],
)
def test_gradio_takes_nothing(client, path):
    """No upload that could fill the disk, no event that could run."""
    reply = client.post(f"/desk/gradio_api/{path}", json={"fn_index": 0, "data": []})
    assert reply.status_code == 404
    assert client.post("/desk/", json={}).status_code == 404


def test_what_the_desk_needs_of_gradio_is_there(client):
    page = client.get("/desk/")
    assert page.status_code == 200
    assert client.get("/desk/config").status_code == 200
    assert client.get("/desk/theme.css").status_code == 200
    asset = next(part for part in page.text.split('"') if "assets/" in part and part.endswith(".js"))
    assert (
        client.get(f"/desk/{asset.removeprefix('.').removeprefix('/').removeprefix('desk/')}").status_code
        == 200
    )


def test_websockets_are_refused(client):
    with (
        pytest.raises(Exception, match=r"1008|403|denied|Disconnect|^$"),
        client.websocket_connect("/desk/queue"),
    ):
        pytest.fail("a websocket was opened")


# --- sessions -------------------------------------------------------------------------------------------


def test_logging_in_never_keeps_the_session_that_was_there(browser):
    """Neither one that somebody chose for me (fixation) nor my old one."""
    me = {"name": "maria", "password": PASSWORD}
    old = browser().post("/login", data=me).cookies[COOKIE]
    assert browser(**{COOKIE: old}).get("/api/v1/desk").status_code == 200
    new = browser(**{COOKIE: old}).post("/login", data=me).cookies[COOKIE]
    assert browser(**{COOKIE: old}).get("/api/v1/desk").status_code == 401
    assert browser(**{COOKIE: new}).get("/api/v1/desk").status_code == 200
    chosen = "chosen-by-somebody-else"
    assert browser(**{COOKIE: chosen}).post("/login", data=me).cookies[COOKIE] not in (chosen, old, new)
    assert browser(**{COOKIE: chosen}).get("/api/v1/desk").status_code == 401


def test_behind_tls_a_neighbouring_host_cannot_set_the_cookie(db):
    app = build_app(db, AppConfig(secure_cookies=True, public_hosts=("desk.example",)))
    browser = TestClient(app, base_url="https://desk.example", follow_redirects=False)
    reply = browser.post("/login", data={"name": "maria", "password": PASSWORD})
    cookie = reply.headers["set-cookie"]
    assert cookie.startswith(f"__Host-{COOKIE}=")
    assert "Secure" in cookie
    assert "Path=/" in cookie
    assert "domain" not in cookie.lower()
    assert browser.get("/api/v1/desk").status_code == 200
    plain = {COOKIE: browser.cookies[cookie_name(True)]}
    assert (
        TestClient(app, base_url="https://desk.example", cookies=plain).get("/api/v1/desk").status_code == 401
    )
    # and a page fetched without TLS, which anyone on the way may have written, is another origin
    unsafe = {"origin": "http://desk.example"}
    assert browser.post("/api/v1/desk/next", json={"project": "p"}, headers=unsafe).status_code == 403


def test_every_refused_login_costs_one_hash(db, monkeypatch):
    """Whether the name exists, is disabled or has no password cannot be told from the time."""
    create_annotator(db, "no password", password=None)
    accounts.set_disabled(db, create_annotator(db, "closed", password=PASSWORD), True)
    hashes = []

    class Counting:
        def verify(self, hashed, password):
            hashes.append(hashed)
            raise accounts.VerificationError

    monkeypatch.setattr(accounts, "_HASHER", Counting())
    for name in ("maria", "no password", "closed", "nobody"):
        hashes.clear()
        assert log_in(db, name, "wrong password", address="10.0.0.1") is None
        assert len(hashes) == 1
        assert hashes[0].startswith("$argon2id$")


def test_at_most_four_hashes_are_computed_at_once(monkeypatch):
    """A hash takes 64 MB: forty guesses at once would take 2.6 GB."""
    running, most, lock = 0, 0, threading.Lock()

    class Slow:
        def verify(self, hashed, password):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.02)
            with lock:
                running -= 1
            return True

    monkeypatch.setattr(accounts, "_HASHER", Slow())
    threads = [threading.Thread(target=accounts._fits, args=("x", "y")) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 4


# --- addresses ------------------------------------------------------------------------------------------


def from_address(client: str, *forwarded: str) -> Request:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return Request({"type": "http", "headers": headers, "client": (client, 1)})


@pytest.mark.parametrize(
    ("trusted", "forwarded", "expected"),
    [
        (False, ["1.1.1.1"], "10.0.0.1"),
        (True, [], "10.0.0.1"),
        (True, ["1.1.1.1"], "1.1.1.1"),
        (True, ["9.9.9.9, 1.1.1.1"], "1.1.1.1"),
        (True, ["9.9.9.9", "1.1.1.1"], "1.1.1.1"),  # a line of the caller above the proxy's
        (True, ["1.1.1.1:4711"], "1.1.1.1"),
        (True, ["[2001:db8:1:2:3:4:5:6]:4711"], "2001:db8:1:2::/64"),
        (True, ["2001:db8:1:2:ffff::1"], "2001:db8:1:2::/64"),
        (True, ["::ffff:1.1.1.1"], "1.1.1.1"),
        (True, ["unknown"], "unknown"),
    ],
)
def test_the_address_that_the_throttle_counts(trusted, forwarded, expected):
    assert client_address(from_address("10.0.0.1", *forwarded), trusted) == expected


def test_a_forged_forwarding_header_does_not_reset_the_throttle(browser):
    replies = [
        browser()
        .post("/login", data={"name": "eve", "password": "wrong"}, headers={"x-forwarded-for": f"9.9.9.{i}"})
        .status_code
        for i in range(6)
    ]
    assert replies == [401] * 5 + [429]


# --- bodies and headers ---------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_413_with_and_without_a_length(client):
    headers = {"content-type": "application/json"}
    said = client.post("/api/v1/desk/draft", content=b"x" * (security.MAX_BODY_BYTES + 1), headers=headers)
    endless = (b"x" * 65536 for _ in range(40))
    unsaid = client.post("/api/v1/desk/draft", content=endless, headers=headers)
    assert (said.status_code, unsaid.status_code) == (413, 413)
    assert "content-security-policy" in unsaid.headers


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"project": "\\ud800"}',
        b'{"\\ud800": 1}',
        b"\xff\xfe",
        b'{"project": 1e999}',
        b"",
        b"null",
        b'{"project": "p"',
    ],
)
def test_bodies_that_make_no_sense_are_the_callers_fault(client, body):
    reply = client.post("/api/v1/desk/next", content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)
    assert reply.json()["detail"]


def test_a_password_is_never_sent_back(client):
    reply = client.post("/login", data={"name": "x" * 300, "password": "the secret"})
    assert reply.status_code == 422
    assert "the secret" not in reply.text


def test_a_fault_of_the_server_carries_the_headers_and_no_details(client, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr("feedback_app.desk.Desk.overview", broken)
    reply = client.get("/api/v1/desk")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "content-security-policy" in reply.headers


def test_the_browser_is_told_not_to_look_up_the_hosts_of_links(client):
    assert client.get("/desk/").headers["x-dns-prefetch-control"] == "off"


@pytest.mark.parametrize("host", ["evil@localhost", "localhost@evil.example", "localhost/x", "localhost#"])
def test_a_host_header_is_a_host_and_nothing_else(client, host):
    assert client.get("/login", headers={"host": host}).status_code == 421


def test_a_body_that_stops_is_given_up(db, monkeypatch):
    monkeypatch.setattr(security, "BODY_S", 0.05)

    async def reads_all(scope, receive, send):
        body = b"".join([chunk async for chunk in Request(scope, receive).stream()])
        await PlainTextResponse(f"{len(body)} bytes")(scope, receive, send)

    async def stalled():
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/login", "headers": [(b"host", b"localhost")]}
    with pytest.raises(Exception):  # noqa: B017 the handler's own complaint, for the log
        asyncio.run(Gate(reads_all, store=db)(scope, stalled, send))
    assert sent[0]["status"] == 408


def test_connections_that_only_wait_are_hung_up():
    class Impatient(PatientProtocol):
        head_s = 0.3

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await asyncio.sleep(0.6)  # a slow answer is not the client's fault
            await PlainTextResponse("done")(scope, receive, send)

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, http=Impatient, ws="none", lifespan="off", log_level="error"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    try:
        address = listener.getsockname()
        silent, dripping, honest = (socket.create_connection(address, timeout=5) for _ in range(3))
        honest.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        began = time.monotonic()
        for letter in b"GET / HT":
            dripping.sendall(bytes([letter]))
            time.sleep(0.02)
        assert silent.recv(100) == b""
        assert dripping.recv(100) == b""
        assert time.monotonic() - began < 2
        reply = b""
        while piece := honest.recv(1000):
            reply += piece
        assert reply.endswith(b"done")
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


# --- CSV ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "\ufeff=1", "=cmd|' /C calc'!A0"],
)
def test_no_cell_of_a_csv_is_a_formula(cell):
    (row,) = list(csv.reader(StringIO("".join(csv_lines(["a"], [[cell]])), newline="")))[1:]
    assert row == [f"'{cell}"]


def test_other_cells_of_a_csv_are_what_they_were():
    rows = [["text, with comma", 'a "quote"', -2.5, 7, None, "", "two\nlines", "a=b"]]
    written = "".join(csv_lines(list("abcdefgh"), rows))
    assert list(csv.reader(StringIO(written, newline="")))[1] == [
        *("text, with comma", 'a "quote"', "-2.5", "7", "", "", "two\nlines", "a=b"),
    ]
