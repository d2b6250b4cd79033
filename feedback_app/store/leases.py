"""Handing out work: one lease is one annotator's hold on one place of one task.

A task with overlap k has k places. `num_done` places hold an accepted answer, `num_held` are leased; the
task is open while their sum is below k (a CHECK keeps it there). A lease that runs out gives its place back
when the next person asks for work. Gold items and repeats are leased too, but take no place. Everything here
is one transaction per call.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import JSON, Connection, Row, bindparam, insert, select, text, update

from feedback_app.store.checks import check_words
from feedback_app.store.engine import Store
from feedback_app.store.projects import enter
from feedback_app.store.queue import find_task
from feedback_app.store.schema import completions, leases, prompts, skips, task_completions, tasks
from rlhf.core.errors import StoreError
from rlhf.core.records import Completion, Judgement, Message, Prompt, TaskKind, content_id

DEFAULT_LEASE_S = 900.0


class TaskView(BaseModel):
    """A leased task as a rater may see it: completions in canonical order, without what wrote them.

    Nothing in it tells a gold item or a repeat from other work. `answer` is what the person said before, when
    they open it again to correct it.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    lease_id: str
    project_id: str
    kind: TaskKind
    prompt: Prompt
    completions: tuple[Completion, ...]
    shown_order: tuple[str, ...]
    expires_at: float
    simulated: bool = False
    answer: Judgement | None = None


_HELD = text(
    "SELECT lease_id, task_id, shown_order, created_at FROM leases "
    "WHERE annotator_id = :annotator AND project_id = :project AND state = 'active'"
).columns(shown_order=JSON)
_HELD_ANYWHERE = text(
    "SELECT lease_id, task_id, purpose FROM leases WHERE annotator_id = :annotator AND state = 'active' "
    "ORDER BY task_id"
)
_EXPIRED = text(
    "SELECT lease_id, task_id, purpose FROM leases WHERE state = 'active' AND expires_at < :now LIMIT 200"
)
_CLOSE_EXPIRED = text(
    "UPDATE leases SET state = 'expired', closed_at = :now WHERE lease_id = :lease_id AND state = 'active'"
)
_COUNT_PLACES = text(
    "UPDATE tasks SET num_done = num_done + :done, num_held = num_held + :held, is_open = "
    "(retired_at IS NULL AND pool = 'queue' AND num_done + :done + num_held + :held < overlap) "
    "WHERE task_id = :task_id"
)
_COUNT_PROGRESS = text(
    "INSERT INTO progress AS p (annotator_id, project_id, num_answers, num_skips, num_timed, total_seconds, "
    "last_answer_at) VALUES (:annotator, :project, :answers, :skips, :timed, :seconds, :at) "
    "ON CONFLICT (annotator_id, project_id) DO UPDATE SET "
    "num_answers = p.num_answers + excluded.num_answers, num_skips = p.num_skips + excluded.num_skips, "
    "num_timed = p.num_timed + excluded.num_timed, total_seconds = p.total_seconds + excluded.total_seconds, "
    "last_answer_at = coalesce(excluded.last_answer_at, p.last_answer_at)"
)
_VIEW = (
    select(
        tasks.c.kind,
        tasks.c.simulated,
        tasks.c.project_id,
        prompts.c.prompt_id,
        prompts.c.messages,
        prompts.c.context,
        prompts.c.group_id,
        task_completions.c.completion_id,
        completions.c.text,
    )
    .select_from(
        tasks.join(prompts)
        .outerjoin(task_completions, task_completions.c.task_id == tasks.c.task_id)
        .outerjoin(completions, completions.c.completion_id == task_completions.c.completion_id)
    )
    .where(tasks.c.task_id == bindparam("viewed_task"))
    .order_by(task_completions.c.position)
)


def lease_next(
    store: Store,
    annotator_id: str,
    project: str,
    *,
    lease_s: float = DEFAULT_LEASE_S,
    holding: Collection[str] = (),
) -> TaskView | None:
    """Lease the next task of a project to an annotator, or None when nothing is left for them.

    A task that they hold already and that is not among `holding` (the lease ids the caller has on screen)
    is given again and renewed: a reload shows the same task. Nobody is given a task that they answered,
    skipped or hold. Gold items and repeats are mixed in at the project's rates. Raises StoreError for an
    unknown or disabled annotator and for one who is not a member of a project that has members only.
    """
    return store.run(lambda connection: _lease(connection, annotator_id, project, lease_s, holding))


def heartbeat(store: Store, lease_id: str, annotator_id: str, *, lease_s: float = DEFAULT_LEASE_S) -> bool:
    """Renew a lease; False when it is no longer active (the answer can still be submitted)."""
    now = time.time()

    def unit(connection: Connection) -> bool:
        statement = update(leases).where(
            leases.c.lease_id == lease_id, leases.c.annotator_id == annotator_id, leases.c.state == "active"
        )
        return connection.execute(statement.values(heartbeat_at=now, expires_at=now + lease_s)).rowcount == 1

    return store.run(unit)


def skip(store: Store, lease_id: str, annotator_id: str, *, reason: str, client_key: str) -> bool:
    """Give a task back with a reason; the annotator is not asked again. Idempotent by client key.

    Returns False when the lease had been answered already (nothing changes then). Raises DataError for a
    reason that cannot be stored.
    """
    check_words("reason", reason)

    def unit(connection: Connection) -> bool:
        lease = get_lease(connection, lease_id, annotator_id)
        if connection.execute(select(skips.c.skip_id).where(skips.c.client_key == client_key)).first():
            return True
        if lease.state in ("submitted", "skipped"):
            return lease.state == "skipped"
        now = time.time()
        row = {
            "skip_id": content_id("k", client_key),
            "task_id": lease.task_id,
            "project_id": lease.project_id,
            "annotator_id": annotator_id,
            "lease_id": lease_id,
            "client_key": client_key,
            "reason": reason,
            "created_at": now,
        }
        connection.execute(insert(skips), row)
        close_lease(connection, lease_id, "skipped", now)
        count_progress(connection, annotator_id, lease.project_id, skips=1)
        if lease.state == "active":
            _give_place_back(connection, lease)
        return True

    return store.run(unit)


def release(store: Store, lease_id: str, annotator_id: str) -> None:
    """Give a task back without a word, as a page does when it closes; it may come again."""

    def unit(connection: Connection) -> None:
        lease = get_lease(connection, lease_id, annotator_id)
        if lease.state == "active":
            close_lease(connection, lease_id, "released", time.time())
            _give_place_back(connection, lease)

    store.run(unit)


def view_lease(connection: Connection, lease_id: str, annotator_id: str) -> TaskView:
    """The task behind a lease of this annotator, whatever its state. Unknown -> StoreError."""
    lease = get_lease(connection, lease_id, annotator_id)
    return view_task(connection, lease.task_id, lease_id, lease.shown_order, lease.expires_at)


def get_lease(connection: Connection, lease_id: str, annotator_id: str) -> Row[Any]:
    """The lease row, locked for this transaction on PostgreSQL; StoreError unless it is this annotator's."""
    row = connection.execute(select(leases).where(leases.c.lease_id == lease_id).with_for_update()).first()
    if row is None or row.annotator_id != annotator_id:
        raise StoreError(f"lease '{lease_id}' is not one of this annotator")
    return row


def close_lease(connection: Connection, lease_id: str, state: str, now: float) -> None:
    connection.execute(update(leases).where(leases.c.lease_id == lease_id).values(state=state, closed_at=now))


def expire_leases(connection: Connection, now: float) -> int:
    """Give back the places of leases that ran out; the answer may still come and is then looked at again."""
    expired = connection.execute(_EXPIRED, {"now": now}).all()
    num_expired = 0
    for lease in sorted(expired, key=lambda row: row.task_id):
        closed = connection.execute(_CLOSE_EXPIRED, {"lease_id": lease.lease_id, "now": now})
        if closed.rowcount:
            _give_place_back(connection, lease)
            num_expired += 1
    return num_expired


def release_all(connection: Connection, annotator_id: str) -> None:
    """Give back everything that a person holds, in every project."""
    for lease in connection.execute(_HELD_ANYWHERE, {"annotator": annotator_id}).all():
        close_lease(connection, lease.lease_id, "released", time.time())
        _give_place_back(connection, lease)


def count_places(connection: Connection, task_id: str, *, done: int = 0, held: int = 0) -> None:
    """Change how many places of a task are done and held; it stays in the queue while one is free."""
    connection.execute(_COUNT_PLACES, {"task_id": task_id, "done": done, "held": held})


def count_progress(
    connection: Connection,
    annotator_id: str,
    project: str,
    *,
    answers: int = 0,
    skips: int = 0,
    seconds: float | None = None,
    at: float | None = None,
) -> None:
    """Add to how far a person is in a project."""
    row = {
        "annotator": annotator_id,
        "project": project,
        "answers": answers,
        "skips": skips,
        "timed": int(seconds is not None),
        "seconds": seconds or 0.0,
        "at": at,
    }
    connection.execute(_COUNT_PROGRESS, row)


def shuffled(task_id: str, annotator_id: str, completion_ids: tuple[str, ...]) -> tuple[str, ...]:
    """The order in which this annotator sees the completions: random over tasks, the same at every look."""

    def key(completion_id: str) -> bytes:
        return hashlib.sha256(f"{task_id}|{annotator_id}|{completion_id}".encode()).digest()

    return tuple(sorted(completion_ids, key=key))


def check_annotator(connection: Connection, annotator_id: str) -> bool:
    """True when the annotator is simulated. Raises StoreError for an unknown or disabled one."""
    row = connection.execute(_ANNOTATOR, {"annotator": annotator_id}).first()
    if row is None:
        raise StoreError(f"there is no annotator '{annotator_id}'")
    if row.disabled_at is not None:
        raise StoreError(f"annotator '{annotator_id}' is disabled")
    return bool(row.simulated)


_ANNOTATOR = text("SELECT simulated, disabled_at FROM annotators WHERE annotator_id = :annotator")


def _lease(
    connection: Connection, annotator_id: str, project: str, lease_s: float, holding: Collection[str]
) -> TaskView | None:
    now = time.time()
    who = {"annotator": annotator_id, "project": project}
    if connection.dialect.name == "postgresql":
        # Two tabs of one person take turns; otherwise both could be given the same place.
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtext(:annotator))"), {"annotator": annotator_id}
        )
    settings = enter(connection, annotator_id, project)
    if settings is None:
        return None
    expire_leases(connection, now)
    held = sorted(connection.execute(_HELD, who), key=lambda row: row.created_at)
    for lease in held:
        if lease.lease_id not in holding:
            renewal = update(leases).where(leases.c.lease_id == lease.lease_id)
            connection.execute(renewal.values(expires_at=now + lease_s, heartbeat_at=now))
            return view_task(connection, lease.task_id, lease.lease_id, lease.shown_order, now + lease_s)
    found = find_task(connection, annotator_id, project, settings, len(held))
    if found is None:
        return None
    lease_id = f"l-{secrets.token_hex(12)}"
    view = view_task(connection, found.task_id, lease_id, None, now + lease_s, annotator_id)
    if found.purpose == "rate":
        count_places(connection, found.task_id, held=1)
    row = {
        "lease_id": lease_id,
        "task_id": found.task_id,
        "project_id": project,
        "annotator_id": annotator_id,
        "state": "active",
        "purpose": found.purpose,
        "shown_order": list(view.shown_order),
        "created_at": now,
        "heartbeat_at": now,
        "expires_at": now + lease_s,
    }
    connection.execute(insert(leases), row)
    return view


def _give_place_back(connection: Connection, lease: Row[Any]) -> None:
    if lease.purpose == "rate":
        count_places(connection, lease.task_id, held=-1)


def view_task(
    connection: Connection,
    task_id: str,
    lease_id: str,
    shown_order: list[str] | None,
    expires_at: float,
    annotator_id: str = "",
) -> TaskView:
    """A task as it is shown. Without a `shown_order` it gets the one of this annotator."""
    rows = connection.execute(_VIEW, {"viewed_task": task_id}).all()
    first = rows[0]
    # model_construct: these were validated when they came in, and this is the hot path.
    prompt = Prompt.model_construct(
        prompt_id=first.prompt_id,
        messages=tuple(Message.model_construct(**message) for message in first.messages),
        source="",
        group_id=first.group_id,
        context=first.context,
        metadata={},
    )
    shown = tuple(
        Completion.model_construct(
            completion_id=row.completion_id,
            prompt_id=first.prompt_id,
            text=row.text,
            model_id="",
            sampling={},
        )
        for row in rows
        if row.completion_id is not None
    )
    ids = tuple(completion.completion_id for completion in shown)
    return TaskView.model_construct(
        task_id=task_id,
        lease_id=lease_id,
        project_id=first.project_id,
        kind=first.kind,
        prompt=prompt,
        completions=shown,
        shown_order=tuple(shown_order) if shown_order is not None else shuffled(task_id, annotator_id, ids),
        expires_at=expires_at,
        simulated=first.simulated,
    )
