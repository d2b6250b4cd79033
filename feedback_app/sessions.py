"""Looking at sessions and ending them: what an administrator does when a laptop was left on a train."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from feedback_app.accounts import IDLE_S
from feedback_app.store import audit
from feedback_app.store.engine import Store
from feedback_app.store.schema import annotators, sessions

ID_LENGTH = 12


@dataclass(frozen=True)
class Visit:
    """A session that still works. `session_id` is the beginning of its token's hash: it opens nothing."""

    session_id: str
    name: str
    created_at: float
    last_seen_at: float
    expires_at: float
    address: str
    user_agent: str


def list_sessions(store: Store, annotator_id: str | None = None, *, now: float | None = None) -> list[Visit]:
    """The sessions that would be let in, of one person or of all, newest use first."""
    now = time.time() if now is None else now
    query = (
        select(sessions, annotators.c.name)
        .join(annotators, annotators.c.annotator_id == sessions.c.annotator_id)
        .where(
            sessions.c.revoked_at.is_(None),
            sessions.c.expires_at > now,
            sessions.c.last_seen_at > now - IDLE_S,
            annotators.c.disabled_at.is_(None),
        )
        .order_by(sessions.c.last_seen_at.desc())
    )
    if annotator_id is not None:
        query = query.where(sessions.c.annotator_id == annotator_id)
    with store.read() as connection:
        rows = connection.execute(query).all()
    return [
        Visit(
            row.token_hash[:ID_LENGTH],
            row.name,
            row.created_at,
            row.last_seen_at,
            row.expires_at,
            row.address,
            row.user_agent,
        )
        for row in rows
    ]


def end_sessions(store: Store, annotator_id: str, *, actor: str = "system") -> int:
    """End all sessions of a person; how many there were. The password stays."""

    def unit(connection: Connection) -> int:
        ended = update(sessions).where(
            sessions.c.annotator_id == annotator_id, sessions.c.revoked_at.is_(None)
        )
        num_ended = connection.execute(ended.values(revoked_at=time.time())).rowcount
        audit.append(connection, actor, "account.revoke", annotator_id, sessions=num_ended)
        return int(num_ended)

    return store.run(unit)
