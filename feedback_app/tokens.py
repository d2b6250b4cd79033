"""Tokens for programs: a bearer token acts for one person, within its scopes, on /api/v1 and /metrics only.

A token is shown once, when it is made; the store keeps its SHA-256. It never does more than its person may:
the role is read at every request, and disabling the account ends its tokens. Scopes narrow that further:
`read`, `write`, `admin` (accounts and tokens) and `metrics`.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, insert, select, update

from feedback_app.accounts import Person
from feedback_app.config import SCOPES
from feedback_app.store import audit
from feedback_app.store.engine import Store
from feedback_app.store.schema import annotators, api_tokens
from rlhf.core.errors import DataError, StoreError

Scope = Literal["read", "write", "admin", "metrics"]
PREFIX = "rlhf_"
ID_CHARS = 12
TOUCH_S = 60.0
DAY_S = 86_400.0
MAX_DAYS = 3650.0


@dataclass(frozen=True)
class Bearer:
    """Who a token speaks for and what it may do."""

    person: Person
    scopes: frozenset[str]
    token_id: str


@dataclass(frozen=True)
class Token:
    """One line of `rlhf users tokens`; times are seconds since the epoch, None: never."""

    token_id: str
    name: str
    label: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    revoked_at: float | None


def create_token(
    store: Store,
    annotator_id: str,
    *,
    scopes: Iterable[str],
    expires_days: float | None,
    label: str = "",
    actor: str = "system",
) -> str:
    """A new token, which is not kept anywhere: show it once. Unknown scope or account -> an error."""
    wanted = tuple(dict.fromkeys(scopes))
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        found = f"'{unknown[0]}'" if unknown else "none"
        raise DataError(f"a token has one or more of the scopes {', '.join(SCOPES)}; found {found}")
    if expires_days is not None and not 0 < expires_days <= MAX_DAYS:
        raise DataError(f"a token is valid for up to {MAX_DAYS:g} days; found {expires_days:g}")
    if len(label) > 128 or (label and not label.isprintable()):
        raise DataError("a token's label has at most 128 printable characters")
    token = PREFIX + secrets.token_urlsafe(32)
    now = time.time()
    row = {
        "token_hash": _digest(token),
        "annotator_id": annotator_id,
        "label": label,
        "scopes": list(wanted),
        "created_at": now,
        "expires_at": None if expires_days is None else now + expires_days * DAY_S,
    }

    def unit(connection: Connection) -> None:
        known = select(annotators.c.role).where(annotators.c.annotator_id == annotator_id)
        if connection.execute(known).first() is None:
            raise StoreError(f"there is no account '{annotator_id}'")
        connection.execute(insert(api_tokens), row)
        token_id = _digest(token)[:ID_CHARS]
        audit.append(connection, actor, "token.add", annotator_id, token=token_id, scopes=list(wanted))

    store.run(unit)
    return token


def token_id_of(token: str) -> str:
    """The id under which a token is listed and revoked; it tells nothing about the token."""
    return _digest(token)[:ID_CHARS]


def bearer_of(store: Store, token: str, *, now: float | None = None) -> Bearer | None:
    """Who a token speaks for; None when it is unknown, revoked or run out, or its account is closed."""
    now = time.time() if now is None else now
    query = (
        select(api_tokens, annotators.c.name, annotators.c.role, annotators.c.simulated)
        .join(annotators, annotators.c.annotator_id == api_tokens.c.annotator_id)
        .where(api_tokens.c.token_hash == _digest(token), annotators.c.disabled_at.is_(None))
    )
    with store.read() as connection:
        row = connection.execute(query).first()
    if row is None or row.revoked_at is not None or (row.expires_at is not None and now >= row.expires_at):
        return None
    if row.last_used_at is None or now - row.last_used_at > TOUCH_S:
        touched = update(api_tokens).where(api_tokens.c.token_hash == row.token_hash)
        store.run(lambda connection: connection.execute(touched.values(last_used_at=now)))
    person = Person(row.annotator_id, row.name, row.role, row.simulated)
    return Bearer(person, frozenset(row.scopes), row.token_hash[:ID_CHARS])


def list_tokens(store: Store, annotator_id: str | None = None) -> list[Token]:
    """All tokens, or one person's, newest first."""
    query = select(api_tokens, annotators.c.name).join(
        annotators, annotators.c.annotator_id == api_tokens.c.annotator_id
    )
    if annotator_id is not None:
        query = query.where(api_tokens.c.annotator_id == annotator_id)
    with store.read() as connection:
        rows = connection.execute(query.order_by(api_tokens.c.created_at.desc())).all()
    return [
        Token(
            row.token_hash[:ID_CHARS],
            row.name,
            row.label,
            tuple(row.scopes),
            row.created_at,
            row.expires_at,
            row.last_used_at,
            row.revoked_at,
        )
        for row in rows
    ]


def revoke_token(store: Store, token_id: str, *, actor: str = "system") -> None:
    """End a token by its id. StoreError unless exactly one that still works has it."""

    def unit(connection: Connection) -> None:
        matches = api_tokens.c.token_hash.startswith(token_id, autoescape=True)
        found = connection.execute(
            select(api_tokens.c.token_hash, api_tokens.c.annotator_id).where(
                matches, api_tokens.c.revoked_at.is_(None)
            )
        ).all()
        if len(token_id) != ID_CHARS or len(found) != 1:
            raise StoreError(f"there is no working token '{token_id}'; `rlhf users tokens` shows them")
        ended = update(api_tokens).where(api_tokens.c.token_hash == found[0].token_hash)
        connection.execute(ended.values(revoked_at=time.time()))
        audit.append(connection, actor, "token.revoke", found[0].annotator_id, token=token_id)

    store.run(unit)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
