"""Accounts, passwords and sessions, all in the database.

Passwords are hashed with argon2id. A session is a random token in a cookie whose SHA-256 is the row's key,
valid for 12 hours in all and 2 hours without use, and revocable. Five failed logins in 15 minutes for one
account from one address close that door for the rest of the 15 minutes. New people get a one-time link: no
password travels through a third person, and there is no default one.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Connection, delete, func, insert, select, update

from feedback_app.store import audit
from feedback_app.store.engine import Store
from feedback_app.store.schema import annotators, login_attempts, one_time_links, sessions
from rlhf.core.errors import DataError, StoreError
from rlhf.core.records import content_id

Role = Literal["annotator", "lead", "admin"]
ROLES: tuple[str, ...] = get_args(Role)

SESSION_S = 12 * 3600.0
IDLE_S = 2 * 3600.0
TOUCH_S = 60.0
LINK_S = 72 * 3600.0
THROTTLE_S = 15 * 60.0
MAX_FAILURES = 5
MAX_FAILURES_PER_ADDRESS = 50
MIN_PASSWORD, MAX_PASSWORD = 10, 1024

_HASHER = PasswordHasher()
# A hash takes 64 MB: many at once, from people who only guess, must not take the machine's memory.
_HASHING = threading.BoundedSemaphore(4)
# Verified when the name is unknown, so that the time taken does not tell which names exist.
_DUMMY_HASH = _HASHER.hash(secrets.token_hex(16))


@dataclass(frozen=True)
class Person:
    """Who is asking."""

    annotator_id: str
    name: str
    role: Role
    simulated: bool = False


@dataclass(frozen=True)
class Account:
    """One line of `rlhf users list`."""

    annotator_id: str
    name: str
    role: Role
    simulated: bool
    disabled: bool
    has_password: bool


class Throttled(StoreError):
    """Too many failed logins; `wait_s` says for how long."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many failed logins; try again in {max(1, round(wait_s / 60))} min")
        self.wait_s = wait_s


def create_annotator(
    store: Store, name: str, *, password: str | None, role: Role = "annotator", simulated: bool = False
) -> str:
    """Add an account and return its id. A taken name -> StoreError.

    Without a password nobody can log in until a one-time link was used. A simulated annotator with the same
    name and role is found again instead, so that a run can be repeated.
    """
    name = checked_name(name)
    if role not in ROLES:
        raise DataError(f"role must be one of {', '.join(ROLES)}; found '{role}'")
    hashed = None if password is None else hash_password(password, name)
    new_id = content_id("a", "simulated", name) if simulated else f"a-{secrets.token_hex(8)}"

    def unit(connection: Connection) -> str:
        known = connection.execute(select(annotators).where(annotators.c.name == name)).first()
        if known is not None:
            if simulated and known.simulated and known.role == role:
                return str(known.annotator_id)
            raise StoreError(f"the name '{name}' is taken")
        row = {
            "annotator_id": new_id,
            "name": name,
            "role": role,
            "password_hash": hashed,
            "simulated": simulated,
            "created_at": time.time(),
        }
        connection.execute(insert(annotators), row)
        audit.append(connection, "system", "account.add", new_id, role=role, simulated=simulated)
        return new_id

    return store.run(unit)


def checked_name(name: str) -> str:
    """The name in NFC without outer spaces. Raises DataError for what cannot be typed or read."""
    name = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise DataError(f"an account name has 1 to 128 printable characters; found {name[:40]!r}")
    return name


def hash_password(password: str, name: str = "") -> str:
    """argon2id hash. Raises DataError for a password that is too short, too long or the name itself."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise DataError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters; found {len(password)}")
    if name and password.casefold() == name.casefold():
        raise DataError("the password must not be the account name")
    return _HASHER.hash(password)


def find_account(store: Store, name: str) -> Account:
    """The account of that name. Unknown -> StoreError."""
    wanted = checked_name(name)
    for account in list_accounts(store):
        if account.name == wanted:
            return account
    raise StoreError(f"there is no account '{name}'; `rlhf users list` shows them")


def list_accounts(store: Store) -> list[Account]:
    """All accounts by name."""
    with store.read() as connection:
        rows = connection.execute(select(annotators).order_by(annotators.c.name)).all()
    return [
        Account(
            row.annotator_id,
            row.name,
            row.role,
            row.simulated,
            row.disabled_at is not None,
            bool(row.password_hash),
        )
        for row in rows
    ]


def set_disabled(store: Store, annotator_id: str, disabled: bool, *, actor: str = "system") -> None:
    """Close (or reopen) an account; closing ends its sessions. Ratings stay."""

    def unit(connection: Connection) -> None:
        when = time.time() if disabled else None
        connection.execute(
            update(annotators).where(annotators.c.annotator_id == annotator_id).values(disabled_at=when)
        )
        if disabled:
            _revoke_all(connection, annotator_id)
        audit.append(connection, actor, "account.disable" if disabled else "account.enable", annotator_id)

    store.run(unit)


def set_password(store: Store, annotator_id: str, password: str, *, actor: str = "system") -> None:
    """Set a password and end all sessions of the account."""

    def unit(connection: Connection) -> None:
        name = connection.execute(
            select(annotators.c.name).where(annotators.c.annotator_id == annotator_id)
        ).scalar_one()
        _store_password(connection, annotator_id, hash_password(password, name), actor)

    store.run(unit)


# --- one-time links -------------------------------------------------------------------------------------


def create_link(store: Store, annotator_id: str, *, actor: str = "system") -> str:
    """A token with which the person sets a password, once, within 72 hours. Earlier links end."""
    token = secrets.token_urlsafe(32)

    def unit(connection: Connection) -> None:
        now = time.time()
        connection.execute(
            delete(one_time_links).where(
                one_time_links.c.annotator_id == annotator_id, one_time_links.c.used_at.is_(None)
            )
        )
        row = {
            "token_hash": _digest(token),
            "annotator_id": annotator_id,
            "created_at": now,
            "expires_at": now + LINK_S,
        }
        connection.execute(insert(one_time_links), row)
        audit.append(connection, actor, "account.link", annotator_id)

    store.run(unit)
    return token


def link_owner(store: Store, token: str) -> str | None:
    """The account name behind a link that can still be used."""
    with store.read() as connection:
        return _link_owner(connection, token)[1]


def use_link(store: Store, token: str, password: str) -> None:
    """Set the password through a link, which ends it. StoreError when it was used or ran out."""

    def unit(connection: Connection) -> None:
        annotator_id, name = _link_owner(connection, token)
        if annotator_id is None or name is None:
            raise StoreError("this link was used already or has run out; ask for a new one")
        hashed = hash_password(password, name)
        used = update(one_time_links).where(
            one_time_links.c.token_hash == _digest(token), one_time_links.c.used_at.is_(None)
        )
        if connection.execute(used.values(used_at=time.time())).rowcount != 1:
            raise StoreError("this link was used already or has run out; ask for a new one")
        _store_password(connection, annotator_id, hashed, annotator_id)

    store.run(unit)


def first_admin_link(store: Store) -> tuple[str, str] | None:
    """(name, token) while no administrator can log in yet; the account is made on the first call."""
    accounts = [a for a in list_accounts(store) if a.role == "admin" and not a.disabled]
    if any(account.has_password for account in accounts):
        return None
    if accounts:
        return accounts[0].name, create_link(store, accounts[0].annotator_id)
    taken = {account.name for account in list_accounts(store)}
    name = next(n for n in ("admin", *(f"admin{i}" for i in range(2, 1000))) if n not in taken)
    return name, create_link(store, create_annotator(store, name, password=None, role="admin"))


# --- sessions -------------------------------------------------------------------------------------------


def log_in(store: Store, name: str, password: str, *, address: str, user_agent: str = "") -> str | None:
    """A new session's token, or None when name and password do not fit. Raises Throttled."""
    name = unicodedata.normalize("NFC", name).strip()[:128]
    attempt_id = store.run(lambda connection: _begin_attempt(connection, name, address))
    with store.read() as connection:
        row = connection.execute(select(annotators).where(annotators.c.name == name)).first()
    fits = _fits(row.password_hash if row is not None else None, password)
    if row is None or not fits or row.disabled_at is not None:
        return None
    token = secrets.token_urlsafe(32)

    def unit(connection: Connection) -> None:
        now = time.time()
        connection.execute(
            update(login_attempts).where(login_attempts.c.attempt_id == attempt_id).values(succeeded=True)
        )
        values = {
            "token_hash": _digest(token),
            "annotator_id": row.annotator_id,
            "created_at": now,
            "last_seen_at": now,
            "expires_at": now + SESSION_S,
            "address": address[:64],
            "user_agent": user_agent[:256],
        }
        connection.execute(insert(sessions), values)
        if _HASHER.check_needs_rehash(row.password_hash):
            stronger = _HASHER.hash(password)
            connection.execute(
                update(annotators)
                .where(annotators.c.annotator_id == row.annotator_id)
                .values(password_hash=stronger)
            )

    store.run(unit)
    return token


def who_is(store: Store, token: str | None, *, now: float | None = None) -> Person | None:
    """The person behind a session token, None when it is unknown, revoked, too old or idle too long."""
    if not token:
        return None
    now = time.time() if now is None else now
    joined = select(
        sessions, annotators.c.name, annotators.c.role, annotators.c.simulated, annotators.c.disabled_at
    )
    with store.read() as connection:
        row = connection.execute(
            joined.join(annotators, annotators.c.annotator_id == sessions.c.annotator_id).where(
                sessions.c.token_hash == _digest(token)
            )
        ).first()
    if row is None or row.revoked_at is not None or row.disabled_at is not None:
        return None
    if now >= row.expires_at or now - row.last_seen_at >= IDLE_S:
        return None
    if now - row.last_seen_at > TOUCH_S:
        store.run(
            lambda connection: connection.execute(
                update(sessions).where(sessions.c.token_hash == row.token_hash).values(last_seen_at=now)
            )
        )
    return Person(row.annotator_id, row.name, row.role, row.simulated)


def log_out(store: Store, token: str | None) -> None:
    """End one session."""
    if token:
        ended = update(sessions).where(sessions.c.token_hash == _digest(token)).values(revoked_at=time.time())
        store.run(lambda connection: connection.execute(ended))


def _begin_attempt(connection: Connection, name: str, address: str) -> int:
    """Book the attempt as a failure before the password is looked at: parallel guesses count too."""
    now = time.time()
    since = now - THROTTLE_S
    recent = [login_attempts.c.address == address, login_attempts.c.attempted_at > since]
    mine = [*recent, login_attempts.c.name == name]
    last_success = connection.execute(
        select(func.max(login_attempts.c.attempted_at)).where(*mine, login_attempts.c.succeeded)
    ).scalar()
    failed = [~login_attempts.c.succeeded]
    counted = select(func.count(), func.min(login_attempts.c.attempted_at)).select_from(login_attempts)
    num_mine, first_mine = connection.execute(
        counted.where(*mine, *failed, login_attempts.c.attempted_at > (last_success or 0.0))
    ).one()
    num_all, first_all = connection.execute(counted.where(*recent, *failed)).one()
    if num_mine >= MAX_FAILURES:
        raise Throttled(first_mine + THROTTLE_S - now)
    if num_all >= MAX_FAILURES_PER_ADDRESS:
        raise Throttled(first_all + THROTTLE_S - now)
    connection.execute(delete(login_attempts).where(login_attempts.c.attempted_at < now - 30 * 86400))
    row = {"name": name, "address": address[:64], "attempted_at": now}
    key = connection.execute(insert(login_attempts), row).inserted_primary_key
    return int(key[0]) if key is not None else 0


def _fits(hashed: str | None, password: str) -> bool:
    try:
        with _HASHING:
            return _HASHER.verify(hashed or _DUMMY_HASH, password[: MAX_PASSWORD + 1]) and hashed is not None
    except (VerificationError, InvalidHashError):
        return False


def _store_password(connection: Connection, annotator_id: str, hashed: str, actor: str) -> None:
    connection.execute(
        update(annotators).where(annotators.c.annotator_id == annotator_id).values(password_hash=hashed)
    )
    _revoke_all(connection, annotator_id)
    audit.append(connection, actor, "account.password", annotator_id)


def _revoke_all(connection: Connection, annotator_id: str) -> None:
    connection.execute(
        update(sessions)
        .where(sessions.c.annotator_id == annotator_id, sessions.c.revoked_at.is_(None))
        .values(revoked_at=time.time())
    )


def _link_owner(connection: Connection, token: str) -> tuple[str | None, str | None]:
    row = connection.execute(
        select(annotators.c.annotator_id, annotators.c.name)
        .join(one_time_links, one_time_links.c.annotator_id == annotators.c.annotator_id)
        .where(
            one_time_links.c.token_hash == _digest(token),
            one_time_links.c.used_at.is_(None),
            one_time_links.c.expires_at > time.time(),
            annotators.c.disabled_at.is_(None),
        )
    ).first()
    return (row.annotator_id, row.name) if row is not None else (None, None)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
