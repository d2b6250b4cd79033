"""Every route of the server times everybody who may knock: who comes in is written here, and nowhere by accident.

The routes are read from the application itself, Gradio's among them. A route that `access_of` does not know fails
the first test: whoever adds one says here who may use it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from sqlalchemy import select, text, update
from starlette.routing import Mount

from feedback_app import accounts, security
from feedback_app.accounts import create_annotator, log_in
from feedback_app.app import build_app
from feedback_app.config import SCOPES, AppConfig
from feedback_app.security import COOKIE, GRADIO_PATHS
from feedback_app.store.engine import Store
from feedback_app.store.schema import annotators, sessions
from feedback_app.tokens import create_token

PASSWORD = "correct horse battery"
ORIGIN = "http://localhost"
ROLES = ("annotator", "lead", "admin")
LEADS = ("lead", "admin")
SOME = {"anonymous", "annotator", "admin", "admin, token to admin"}


@dataclass(frozen=True)
class Access:
    """Who may use a route: everybody, people of these roles with a session, tokens of this scope."""

    public: bool = False
    roles: tuple[str, ...] = ()
    scope: str | None = None
    token_roles: tuple[str, ...] = ()
    is_gone: bool = False  # the gate answers 404, whoever asks


PUBLIC, PERSON, LEAD = Access(public=True), Access(roles=ROLES), Access(roles=LEADS)
GONE = Access(is_gone=True)

EXACT = {
    ("GET", "/login"): PUBLIC,
    ("POST", "/login"): PUBLIC,
    ("GET", "/welcome/{token}"): PUBLIC,
    ("POST", "/welcome/{token}"): PUBLIC,
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/favicon.ico"): PUBLIC,
    ("GET", "/static/{file}"): PUBLIC,
    ("GET", "/"): PERSON,
    ("POST", "/logout"): PERSON,
    ("GET", "/metrics"): Access(scope="metrics", token_roles=ROLES),
}
REST = "/api/v1"
REST_ROUTES = {
    "anybody": "GET /me, GET /openapi.json",
    "read": "GET /projects, GET /projects/{project}, GET /projects/{project}/settings, "
    "GET /projects/{project}/quality, GET /prompts, GET /prompts/{prompt_id}, GET /completions, "
    "GET /projects/{project}/tasks, GET /projects/{project}/annotations, GET /projects/{project}/snapshots, "
    "GET /snapshots/{snapshot_id}, GET /snapshots/{snapshot_id}/files/{name:path}",
    "write": "POST /projects, PATCH /projects/{project}/settings, POST /prompts, POST /completions, "
    "POST /projects/{project}/tasks, POST /imports, POST /projects/{project}/snapshots",
    "admin": "GET /users, POST /users, PATCH /users/{annotator_id}",
}
REST_ACCESS = {
    "anybody": Access(roles=ROLES, scope="read", token_roles=ROLES),
    "read": Access(roles=LEADS, scope="read", token_roles=LEADS),
    "write": Access(roles=LEADS, scope="write", token_roles=LEADS),
    "admin": Access(roles=("admin",), scope="admin", token_roles=("admin",)),
}
for kind, listed in REST_ROUTES.items():
    for route in listed.split(", "):
        EXACT[route.split(" ")[0], REST + route.split(" ")[1]] = REST_ACCESS[kind]
# What of Gradio is served behind the gate, below each of its mounts.
GRADIO_SERVED = {"/", "/config", "/theme.css", "/static/{path:path}", "/assets/{path:path}"}


def access_of(method: str, path: str) -> Access | None:
    """Who may use the route; None for one that nobody has thought of."""
    if (method, path) in EXACT:
        return EXACT[method, path]
    if path == "/api/v1/desk" or path.startswith("/api/v1/desk/"):
        return PERSON
    if path == "/api/v1/lead" or path.startswith("/api/v1/lead/"):
        return LEAD
    for mount in GRADIO_PATHS:
        if path.startswith(f"{mount}/"):
            served = method in ("GET", "HEAD") and path.removeprefix(mount) in GRADIO_SERVED
            return GONE if not served else LEAD if mount == "/lead" else PERSON
    return None


@dataclass(frozen=True)
class Caller:
    """Somebody at the door: what they send, and who they are in truth."""

    name: str
    headers: dict[str, str] = field(default_factory=dict)
    role: str | None = None
    scope: str | None = None


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(app, store, callers): a person of each role, with sessions good and bad and tokens of each scope."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        with Store.open(f"sqlite:///{tmp_path_factory.mktemp('doors')}/feedback.db") as store:
            yield build_app(store, AppConfig()), store, everybody(store)


def everybody(store: Store) -> list[Caller]:
    callers = [Caller("anonymous"), Caller("forged session", cookie("forged-token"))]
    callers.append(Caller("forged token", bearer("rlhf_forged")))
    for role in ROLES:
        person = create_annotator(store, role, password=PASSWORD, role=role)
        callers.append(Caller(role, cookie(session(store, role)), role=role))
        expired, idle = session(store, role), session(store, role)
        change(store, expired, expires_at=1.0)
        change(store, idle, last_seen_at=1.0)
        callers += [Caller(f"{role}, expired", cookie(expired)), Caller(f"{role}, idle", cookie(idle))]
        callers += [
            Caller(f"{role}, token to {scope}", bearer(token), role=role, scope=scope)
            for scope in SCOPES
            for token in [create_token(store, person, scopes=[scope], expires_days=1)]
        ]
        # Of somebody whose account was closed: a session and a token that nobody has revoked.
        closed = create_annotator(store, f"closed {role}", password=PASSWORD, role=role)
        held, token = (
            session(store, f"closed {role}"),
            create_token(store, closed, scopes=SCOPES, expires_days=1),
        )
        with store.write() as connection:
            connection.execute(
                update(annotators).where(annotators.c.annotator_id == closed).values(disabled_at=1.0)
            )
        callers += [
            Caller(f"{role}, disabled", cookie(held)),
            Caller(f"{role}, disabled, token", bearer(token)),
        ]
    return callers


def session(store: Store, name: str) -> str:
    token = log_in(store, name, PASSWORD, address="10.0.0.1")
    assert token is not None
    return token


def change(store: Store, token: str, **values: float) -> None:
    with store.write() as connection:
        where = sessions.c.token_hash == accounts._digest(token)
        connection.execute(update(sessions).where(where).values(**values))


def cookie(token: str) -> dict[str, str]:
    return {"cookie": f"{COOKIE}={token}"}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def routes_of(routes, prefix: str = "") -> list[tuple[str, str]]:
    """(method, path template) of every route, those of routers and mounted applications too."""
    found = []
    for route in routes:
        if (nested := getattr(route, "original_router", None)) is not None:
            found += routes_of(nested.routes, prefix)
        elif getattr(route, "routes", None):
            found += routes_of(route.routes, prefix + route.path)
        elif isinstance(route, Mount):  # of files
            found.append(("GET", f"{prefix}{route.path}/{{file}}"))
        else:
            found += [
                (method, prefix + route.path) for method in sorted(getattr(route, "methods", None) or ["GET"])
            ]
    return found


def address_of(path: str) -> str:
    """A path of that template. What it names need not exist: whoever may not ask is not told."""
    return re.sub(r"\{[^}]*\}", "x", path)


def expected(access: Access, caller: Caller, path: str) -> set[int] | None:
    """The statuses of a refusal, None when the caller has to get in."""
    if access.public:
        return None
    if caller.role is None:
        return {401}
    if caller.scope is None:
        if access.is_gone:
            return {404}
        return None if caller.role in access.roles else {401, 403}
    takes_tokens = path.startswith(security.TOKEN_PATHS) and not path.startswith(security.SESSION_ONLY_PATHS)
    if not takes_tokens:
        return {401}  # a token is nobody there
    return None if caller.scope == access.scope and caller.role in access.token_roles else {403}


def test_every_route_says_who_may_use_it(world):
    routes = routes_of(world[0].routes)
    assert [route for route in routes if access_of(*route) is None] == []
    assert [route for route in EXACT if route not in routes] == []
    assert ("POST", "/api/v1/desk/answer") in routes
    assert ("POST", "/desk/gradio_api/upload") in routes


def test_everybody_gets_where_they_may_and_nowhere_else(world):
    app, store, callers = world
    knock = TestClient(app, base_url=ORIGIN, follow_redirects=False, raise_server_exceptions=False)
    wrong, num_knocks = [], 0
    for method, path in routes_of(app.routes):
        access = access_of(method, path)
        # A route that the gate does not let through is the same for all kinds of nobody.
        for caller in callers if not access.is_gone else [c for c in callers if c.name in SOME]:
            headers = caller.headers
            if path == "/logout" and caller.name in ROLES:
                headers = cookie(session(store, caller.name))  # which ends with this knock
            body = {"json": {}} if method in ("POST", "PUT", "PATCH", "DELETE") else {}
            status = knock.request(
                method, address_of(path), headers={"origin": ORIGIN, **headers}, **body
            ).status_code
            refusal = expected(access, caller, path)
            num_knocks += 1
            if status >= 500 or (status in (401, 403) if refusal is None else status not in refusal):
                wrong.append((method, path, caller.name, status, refusal))
    assert wrong == []
    assert num_knocks > 500


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:81"}, 403),
        ({"origin": "http://localhost.evil.example"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost@evil.example"}, 421),
        ({"content-length": str(10**9), "origin": ORIGIN}, 413),
        ({"content-length": "-1", "origin": ORIGIN}, 413),
    ],
)  # fmt: skip
def test_no_route_answers_a_foreign_page_a_foreign_host_or_a_huge_body(world, headers, status):
    app, store, _ = world
    knock = TestClient(app, base_url=ORIGIN, follow_redirects=False, headers=cookie(session(store, "admin")))
    given = {
        (method, path): knock.request(method, address_of(path), headers=headers).status_code
        for method, path in routes_of(app.routes)
    }
    assert {route: found for route, found in given.items() if found != status} == {}


def test_a_method_that_a_route_does_not_have_is_refused_also_under_another_name(world):
    app, store, _ = world
    knock = TestClient(app, base_url=ORIGIN, follow_redirects=False, headers=cookie(session(store, "admin")))
    routes = routes_of(app.routes)
    wrong = []
    for path in sorted({path for _, path in routes}):
        known = {method for method, other in routes if address_of(other) == address_of(path)} | {
            "HEAD",
            "OPTIONS",
        }
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - known:
            disguise = {"x-http-method-override": "POST", "x-method-override": "POST", "origin": ORIGIN}
            status = knock.request(method, address_of(path) + "?_method=POST", headers=disguise).status_code
            if status not in (404, 405):
                wrong.append((method, path, status))
    assert wrong == []


def test_a_client_key_opens_nothing_for_somebody_else(world, fill):
    """A key is not a secret: with another person's key (or lease) nothing is read and nothing is written."""
    app, store, callers = world
    fill(store, 2, project="keys")
    by_role = {caller.name: caller.headers for caller in callers if caller.name in ROLES}
    knock = TestClient(app, base_url=ORIGIN, headers={"origin": ORIGIN})

    def ask(role: str, call: str, **body):
        return knock.post(f"/api/v1/desk/{call}", json=body, headers=by_role[role])

    mine = ask("annotator", "next", project="keys").json()["task"]["lease"]
    answer = {"key": "the-same-key", "choice": "a", "strength": 1}
    saved = ask("annotator", "answer", lease=mine, **answer)
    again = ask("annotator", "answer", lease=mine, **answer)
    assert (saved.json()["repeated"], again.json()["repeated"]) == (False, True)
    assert ask("lead", "answer", lease=mine, **answer).status_code == 409
    theirs = ask("lead", "next", project="keys").json()["task"]["lease"]
    assert ask("lead", "answer", lease=theirs, **answer).status_code == 409
    assert ask("annotator", "answer", lease=theirs, **{**answer, "key": "another-key"}).status_code == 409
    with store.read() as connection:
        kept = connection.execute(
            text("SELECT count(*) FROM annotations WHERE project_id = 'keys'")
        ).scalar_one()
    assert kept == 1


def test_a_role_that_was_taken_away_is_gone_at_the_next_request(world):
    app, store, _ = world
    create_annotator(store, "was admin", password=PASSWORD, role="admin")
    token = session(store, "was admin")
    knock = TestClient(app, base_url=ORIGIN, headers={"origin": ORIGIN, **cookie(token)})
    with store.write() as connection:
        connection.execute(
            update(annotators).where(annotators.c.name == "was admin").values(role="annotator")
        )
    assert knock.get("/api/v1/desk").json()["me"]["role"] == "annotator"


def test_a_session_is_found_by_its_hash_alone(world):
    """Neither the hash out of a stolen backup nor a piece of SQL is a session."""
    app, store, _ = world
    with store.read() as connection:
        stolen = connection.execute(select(sessions.c.token_hash).limit(1)).scalar_one()
    for token in (stolen, "' OR '1'='1", "%", "null", "x" * 5000):
        knock = TestClient(app, base_url=ORIGIN, headers={"origin": ORIGIN, **cookie(token)})
        assert knock.get("/api/v1/desk").status_code == 401
