"""Erasing a person on request: their ratings, their words, their account; and what had learned from them.

`annotations` is append-only, so a rating is not deleted but gets a tombstone: it leaves every view, every
later export and every count, and its place is free for somebody else. What the person wrote (reasons,
demonstrations, reasons for skips, drafts) is emptied for good. What left the store before is listed: the
snapshots that hold their ratings, and the artifacts that were trained on those, or on what was trained on them.

What stays: the bare verdicts behind the tombstones (without a name once the account is erased too), the audit
log, which is a chain and names people by their ids and as the actors of their own acts, and backups.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, text, update

from feedback_app.store import audit
from feedback_app.store.disputes import note_dispute
from feedback_app.store.engine import Store
from feedback_app.store.leases import count_places, release_all
from feedback_app.store.schema import (
    annotators,
    api_tokens,
    drafts,
    login_attempts,
    one_time_links,
    progress,
    project_members,
    sessions,
    skips,
)
from rlhf.core.errors import StoreError


@dataclass(frozen=True)
class HeldBy:
    """A snapshot that holds `num_members` ratings of the person."""

    snapshot_id: str
    path: str
    project: str
    num_members: int


@dataclass(frozen=True)
class LearnedFrom:
    """An artifact (a reward model, a policy, ...) with such a snapshot among its ancestors."""

    artifact_id: str
    stage: str
    path: str


@dataclass(frozen=True)
class Erasure:
    """What an erasure did, and what it could not reach.

    num_answers, num_texts: tombstones set and texts emptied by this call (none the second time). snapshots,
    artifacts: everything that ever held or learned from the person's ratings, the second time too.
    """

    annotator_id: str
    num_answers: int
    num_texts: int
    snapshots: tuple[HeldBy, ...] = field(default=())
    artifacts: tuple[LearnedFrom, ...] = field(default=())


_PERSON = text("SELECT annotator_id FROM annotators WHERE name = :name")
_REQUESTER = text("SELECT annotator_id FROM annotators WHERE annotator_id = :who OR name = :who")
_STANDING = (
    "annotator_id = :person AND NOT EXISTS "
    "(SELECT 1 FROM tombstones d WHERE d.annotation_id = a.annotation_id)"
)
_PLACES = text(
    "SELECT a.task_id, t.kind, t.dispute, "
    "max(CASE WHEN a.supersedes IS NULL AND NOT a.surplus AND a.purpose = 'rate' THEN 1 ELSE 0 END) AS held, "
    "max(CASE WHEN a.purpose = 'adjudicate' THEN 1 ELSE 0 END) AS decided "
    f"FROM annotations a JOIN tasks t ON t.task_id = a.task_id WHERE a.{_STANDING} "
    "GROUP BY a.task_id, t.kind, t.dispute ORDER BY a.task_id"
)
_BURY = text(
    "INSERT INTO tombstones (annotation_id, annotator_id, reason, requested_by, created_at) "
    f"SELECT a.annotation_id, a.annotator_id, :reason, :requester, :now FROM annotations a WHERE a.{_STANDING}"
)
_EMPTY_TEXTS = text(
    "UPDATE annotation_texts SET reason = '', demonstration = NULL, erased_at = :now WHERE erased_at IS NULL "
    "AND annotation_id IN (SELECT annotation_id FROM annotations WHERE annotator_id = :person)"
)
_UNDECIDE = text(
    "UPDATE tasks SET dispute = NULL WHERE task_id = :task_id AND NOT EXISTS (SELECT 1 FROM annotations o "
    "WHERE o.task_id = :task_id AND o.purpose = 'adjudicate' "
    "AND NOT EXISTS (SELECT 1 FROM tombstones d WHERE d.annotation_id = o.annotation_id))"
)
_HELD_BY = text(
    "SELECT s.snapshot_id, s.path, s.project_id, count(*) AS num_members FROM annotations a "
    "JOIN snapshot_members m ON m.annotation_id = a.annotation_id "
    "JOIN snapshots s ON s.snapshot_id = m.snapshot_id WHERE a.annotator_id = :person "
    "GROUP BY s.snapshot_id, s.path, s.project_id, s.created_at ORDER BY s.created_at, s.snapshot_id"
)
_LEARNED = (
    "WITH RECURSIVE learned (artifact_id) AS ("
    "SELECT f.artifact_id FROM artifacts f WHERE f.snapshot_id IN (SELECT m.snapshot_id "
    "FROM annotations a JOIN snapshot_members m ON m.annotation_id = a.annotation_id "
    "WHERE a.annotator_id = :person) "
    "UNION SELECT p.artifact_id FROM artifact_parents p JOIN learned l ON l.artifact_id = p.parent_id) "
)
_LEARNED_FROM = text(
    _LEARNED
    + "SELECT f.artifact_id, f.stage, f.path FROM artifacts f JOIN learned l ON l.artifact_id = f.artifact_id "
    "ORDER BY f.created_at, f.artifact_id"
)
_MARK_LEARNED = text(
    "UPDATE artifacts SET erasure_at = :now "
    f"WHERE erasure_at IS NULL AND artifact_id IN ({_LEARNED} SELECT artifact_id FROM learned)"
)


def erase_ratings(store: Store, name: str, *, requested_by: str, reason: str = "") -> Erasure:
    """Erase everything that the account `name` rated and wrote, in one transaction; audited.

    requested_by: who asks for it, an account's id or name, or "system" for the command line. Doing it again
    erases what came since, and otherwise nothing. Raises StoreError for an unknown name or requester.
    """
    return store.run(lambda connection: _erase(connection, name, requested_by, reason))


def erase_account(store: Store, name: str, *, requested_by: str, reason: str = "") -> Erasure:
    """Erase the ratings, then the account: name, password, sessions, tokens, links and login attempts.

    The id stays, so that what refers to it still does; the name is free again. The account cannot be used any
    more. Raises StoreError for an unknown name or requester and for the last administrator who can log in.
    """

    def unit(connection: Connection) -> Erasure:
        erasure = _erase(connection, name, requested_by, reason)
        person = erasure.annotator_id
        _keep_an_administrator(connection, person)
        release_all(connection, person)
        for table in (sessions, api_tokens, one_time_links, project_members):
            connection.execute(delete(table).where(table.c.annotator_id == person))
        connection.execute(delete(login_attempts).where(login_attempts.c.name == name))
        now = time.time()
        erased = update(annotators).where(annotators.c.annotator_id == person)
        erased = erased.values(name=f"erased {person}", password_hash=None, preferences={})
        connection.execute(erased.values(disabled_at=now, erased_at=now))
        audit.append(connection, requested_by, "erase.account", person)
        return erasure

    return store.run(unit)


def _erase(connection: Connection, name: str, requested_by: str, reason: str) -> Erasure:
    person = connection.execute(_PERSON, {"name": name}).scalar()
    if person is None:
        raise StoreError(f"there is no account '{name}'; `rlhf users list` shows them")
    requester = connection.execute(_REQUESTER, {"who": requested_by}).scalar()
    if requester is None and requested_by != "system":
        raise StoreError(f"there is no account '{requested_by}' that could ask for an erasure")
    now = time.time()
    places = connection.execute(_PLACES, {"person": person}).all()
    grave = {"person": person, "reason": reason, "requester": requester, "now": now}
    num_answers = connection.execute(_BURY, grave).rowcount
    for place in places:
        if place.held:
            count_places(connection, place.task_id, done=-1)
        known = place.dispute
        if place.decided:
            connection.execute(_UNDECIDE, {"task_id": place.task_id})
            known = None
        note_dispute(connection, place.task_id, place.kind, known)
    num_texts = connection.execute(_EMPTY_TEXTS, {"person": person, "now": now}).rowcount
    num_texts += connection.execute(delete(drafts).where(drafts.c.annotator_id == person)).rowcount
    mine = update(skips).where(skips.c.annotator_id == person, skips.c.reason != "")
    num_texts += connection.execute(mine.values(reason="")).rowcount
    connection.execute(delete(progress).where(progress.c.annotator_id == person))
    connection.execute(_MARK_LEARNED, {"person": person, "now": now})
    erasure = Erasure(
        annotator_id=person,
        num_answers=num_answers,
        num_texts=num_texts,
        snapshots=tuple(HeldBy(*row) for row in connection.execute(_HELD_BY, {"person": person}).tuples()),
        artifacts=tuple(
            LearnedFrom(*row) for row in connection.execute(_LEARNED_FROM, {"person": person}).tuples()
        ),
    )
    if num_answers or num_texts:
        details = {
            "answers": num_answers,
            "texts": num_texts,
            "snapshots": [held.snapshot_id for held in erasure.snapshots],
            "artifacts": [learned.artifact_id for learned in erasure.artifacts],
        }
        audit.append(connection, requester or requested_by, "erase.ratings", person, **details)
    return erasure


def _keep_an_administrator(connection: Connection, person: str) -> None:
    others = text(
        "SELECT count(*) FROM annotators WHERE role = 'admin' AND disabled_at IS NULL "
        "AND password_hash IS NOT NULL AND annotator_id <> :person"
    )
    is_one = text(
        "SELECT count(*) FROM annotators WHERE annotator_id = :person AND role = 'admin' "
        "AND disabled_at IS NULL AND password_hash IS NOT NULL"
    )
    keys = {"person": person}
    if connection.execute(is_one, keys).scalar() and not connection.execute(others, keys).scalar():
        raise StoreError("the last administrator cannot be erased; make another one first")
