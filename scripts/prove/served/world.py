"""A store full of work for raters, and the check that nothing in it was lost, doubled or over its quota."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, text

from feedback_app.accounts import SESSION_S, create_annotator
from feedback_app.security import COOKIE
from feedback_app.store import audit
from feedback_app.store.engine import Store
from feedback_app.store.schema import completions, prompts, sessions, task_completions, tasks
from feedback_app.store.tasks import chunks, ensure_project
from served.client import PROJECT

WORDS = "Please send the parcel back within fourteen days; the label lies in the box, postage is free. "


def make_people(store: Store, count: int) -> list[str]:
    """Ids of new raters."""
    return [create_annotator(store, f"rater {i}", password=None) for i in range(count)]


def log_in_all(store: Store, people: list[str]) -> list[str]:
    """A cookie for each, as the login page gives: argon2id is slow on purpose, and not what is proven here."""
    now, tokens = time.time(), [secrets.token_urlsafe(32) for _ in people]
    rows = [
        {
            "token_hash": hashlib.sha256(token.encode()).hexdigest(),
            "annotator_id": person,
            "created_at": now,
            "last_seen_at": now,
            "expires_at": now + SESSION_S,
        }
        for token, person in zip(tokens, people, strict=True)
    ]
    with store.write() as connection:
        connection.execute(sessions.insert(), rows)
    return [f"{COOKIE}={token}" for token in tokens]


def make_tasks(store: Store, count: int, *, overlap: int, first: int = 0) -> None:
    """Pairs with texts of the length people read: a short prompt and about 100 words on each side."""
    ensure_project(store, PROJECT)
    for numbers in chunks(range(first, first + count), 5000):
        with store.write() as connection:
            _insert_tasks(connection, numbers, overlap)


def _insert_tasks(connection: Connection, numbers: Iterable[int], overlap: int) -> None:
    now = time.time()
    rows: dict[Any, list[dict[str, Any]]] = {prompts: [], completions: [], tasks: [], task_completions: []}
    for i in numbers:
        rows[prompts].append(
            {
                "prompt_id": f"p-{i}",
                "messages": [{"role": "user", "content": f"Question {i}: how do I return order {i}?"}],
                "source": "",
                "group_id": f"p-{i}",
                "metadata": {},
                "created_at": now,
            }
        )
        for side in (0, 1):
            body = f"Answer {side} to {i}. " + WORDS * (5 + (i + side) % 4)
            row = {"completion_id": f"c-{i}-{side}", "prompt_id": f"p-{i}", "text": body, "created_at": now}
            rows[completions].append({**row, "model_id": f"model-{side}", "sampling": {}})
            rows[task_completions].append(
                {"task_id": f"t-{i}", "position": side, "completion_id": f"c-{i}-{side}"}
            )
        rows[tasks].append(
            {
                "task_id": f"t-{i}",
                "project_id": PROJECT,
                "kind": "pairwise",
                "prompt_id": f"p-{i}",
                "overlap": overlap,
                "sort_key": i * 7919 % 2**31,
                "created_at": now,
            }
        )
    for table, values in rows.items():
        connection.execute(table.insert(), values)


def faults(store: Store, acknowledged: dict[str, str]) -> list[str]:
    """What is wrong in the store, given the answers that were acknowledged: client key -> lease."""
    with store.read() as connection:
        kept = dict(
            connection.execute(text("SELECT client_key, lease_id FROM annotations WHERE origin = 'desk'"))
            .tuples()
            .all()
        )
        counts = {what: connection.execute(text(query)).scalar_one() for what, query in _WRONG.items()}
        broken = audit.first_broken(connection)
        whole = (
            store.dialect != "sqlite" or connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        )
    found = [f"{count} {what}" for what, count in counts.items() if count]
    lost = [key for key, lease in acknowledged.items() if kept.get(key) != lease]
    if lost:
        found.append(f"{len(lost)} acknowledged answers are not there, such as {lost[0]}")
    unasked = kept.keys() - acknowledged.keys()
    if unasked:
        found.append(f"{len(unasked)} answers are there that nobody was told about, such as {min(unasked)}")
    if broken is not None:
        found.append(f"the audit chain is broken at {broken}")
    return found if whole else [*found, "SQLite's integrity check fails"]


_PER_TASK = (
    "SELECT t.task_id, t.num_done, t.num_held, t.overlap, "
    "(SELECT count(*) FROM annotations a WHERE a.task_id = t.task_id AND a.version = 1 AND NOT a.surplus) AS done, "
    "(SELECT count(*) FROM leases l WHERE l.task_id = t.task_id AND l.state = 'active') AS held FROM tasks t"
)
_WRONG = {
    "tasks over their quota": f"SELECT count(*) FROM ({_PER_TASK}) c WHERE done + held > overlap",
    "tasks whose num_done is not their answers": f"SELECT count(*) FROM ({_PER_TASK}) c WHERE num_done <> done",
    "tasks whose num_held is not their leases": f"SELECT count(*) FROM ({_PER_TASK}) c WHERE num_held <> held",
    "answers given twice by one person": "SELECT count(*) FROM (SELECT 1 FROM annotations WHERE version = 1 "
    "GROUP BY task_id, annotator_id HAVING count(*) > 1) d",
    "answers with two versions": "SELECT count(*) FROM annotations WHERE version > 1",
    "answers beyond the quota": "SELECT count(*) FROM annotations WHERE surplus",
    "leases answered without an answer": "SELECT count(*) FROM leases l WHERE l.state = 'submitted' "
    "AND NOT EXISTS (SELECT 1 FROM annotations a WHERE a.lease_id = l.lease_id)",
}
