"""Many answers at once, for imports: the rules of `annotations.submit`, some hundreds of answers a statement.

The common case (a person's first answer to a task of the queue, brought by a file) is written here in bulk;
everything else (a correction, a second answer to the same task, a gold item) goes through `submit` itself.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import JSON, Connection, Row, bindparam, insert, text

from feedback_app.store.annotations import Receipt, Submission, submit_in
from feedback_app.store.checks import check_fits, check_key_and_time, check_words
from feedback_app.store.disputes import note_dispute
from feedback_app.store.engine import Store
from feedback_app.store.leases import check_annotator, shuffled
from feedback_app.store.projects import settings_of
from feedback_app.store.schema import annotation_texts, annotations_table, leases
from feedback_app.store.tasks import chunks, existing
from rlhf.core.records import content_id

_TASKS = (
    "SELECT t.task_id, t.kind, t.project_id, t.pool, t.repeat_for, t.dispute, t.simulated, t.num_done, "
    "p.settings, r.rubric_id, r.attributes FROM tasks t JOIN projects p ON p.project_id = t.project_id "
    "JOIN rubrics r ON r.project_id = t.project_id "
    "AND r.version = (SELECT max(version) FROM rubrics WHERE project_id = t.project_id) "
    "WHERE t.task_id IN :ids ORDER BY t.task_id"
)
_PLACES = text(
    "SELECT task_id, completion_id FROM task_completions WHERE task_id IN :ids ORDER BY task_id, position"
).bindparams(bindparam("ids", expanding=True))
_ANSWERED = text("SELECT task_id, annotator_id FROM annotations WHERE task_id IN :ids").bindparams(
    bindparam("ids", expanding=True)
)
# Ratings that somebody brings are wanted: the task's overlap grows where it has no place left for them.
_MAKE_ROOM = text(
    "UPDATE tasks SET overlap = num_done + num_held + :needed, is_open = (retired_at IS NULL) "
    "WHERE task_id = :task_id AND pool = 'queue' AND overlap < num_done + num_held + :needed"
)
_FILL = text(
    "UPDATE tasks SET num_done = num_done + :done, "
    "is_open = (retired_at IS NULL AND num_done + num_held + :done < overlap) WHERE task_id = :task_id"
)


@dataclass
class BulkCounts:
    """What became of the answers; `corrected` are new versions of answers that were there."""

    new: int = 0
    known: int = 0
    corrected: int = 0


@dataclass
class _Batch:
    tasks: dict[str, Row[Any]]
    orders: dict[str, tuple[str, ...]]
    answered: set[tuple[str, str]]
    simulated: dict[str, bool] = field(default_factory=dict)


def import_answers(store: Store, submissions: Sequence[Submission]) -> BulkCounts:
    """Store answers in one transaction, idempotent by client key. Raises what `submit` raises."""
    return store.run(lambda connection: _import(connection, submissions))


def canonical_orders(connection: Connection, task_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The completions of each task in canonical order."""
    found: dict[str, list[str]] = defaultdict(list)
    for chunk in chunks(sorted(set(task_ids))):
        for task_id, completion_id in connection.execute(_PLACES, {"ids": chunk}).tuples():
            found[task_id].append(completion_id)
    return {task_id: tuple(ids) for task_id, ids in found.items()}


def _import(connection: Connection, submissions: Sequence[Submission]) -> BulkCounts:
    counts = BulkCounts()
    known = existing(connection, annotations_table.c.client_key, [s.client_key for s in submissions])
    fresh = [s for s in submissions if s.client_key not in known]
    counts.known = len(submissions) - len(fresh)
    batch = _look_up(connection, sorted({s.judgement.task_id for s in fresh}))
    bulk, single = [], []
    for submission in fresh:
        judgement = submission.judgement
        task = batch.tasks.get(judgement.task_id)
        pair = (judgement.task_id, judgement.annotator_id)
        ordinary = task is not None and task.pool == "queue" and task.repeat_for is None
        if not ordinary or pair in batch.answered:
            single.append(submission)
        else:
            batch.answered.add(pair)
            bulk.append(submission)
    _write(connection, bulk, batch)
    counts.new = len(bulk)
    for submission in single:
        receipt: Receipt = submit_in(connection, submission)
        counts.known += receipt.repeated
        counts.corrected += not receipt.repeated and receipt.version > 1
        counts.new += not receipt.repeated and receipt.version == 1
    return counts


def _look_up(connection: Connection, task_ids: Sequence[str]) -> _Batch:
    locking = " FOR UPDATE OF t" if connection.dialect.name == "postgresql" else ""
    query = (
        text(_TASKS + locking)
        .bindparams(bindparam("ids", expanding=True))
        .columns(settings=JSON, attributes=JSON)
    )
    tasks: dict[str, Row[Any]] = {}
    answered: set[tuple[str, str]] = set()
    for chunk in chunks(task_ids):
        tasks.update((row.task_id, row) for row in connection.execute(query, {"ids": chunk}))
        answered.update(tuple(row) for row in connection.execute(_ANSWERED, {"ids": chunk}))
    return _Batch(tasks, canonical_orders(connection, task_ids), answered)


def _write(connection: Connection, submissions: Sequence[Submission], batch: _Batch) -> None:
    now = time.time()
    leased: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    places: Counter[str] = Counter()
    for submission in submissions:
        judgement = submission.judgement
        task = batch.tasks[judgement.task_id]
        _check(submission, task, batch.orders.get(task.task_id, ()))
        if judgement.annotator_id not in batch.simulated:
            batch.simulated[judgement.annotator_id] = check_annotator(connection, judgement.annotator_id)
        simulated = batch.simulated[judgement.annotator_id] or bool(task.simulated)
        lease, row = _rows(submission, task, simulated, now)
        leased.append(lease)
        rows.append(row)
        if judgement.reason or judgement.demonstration is not None:
            words = {"reason": judgement.reason, "demonstration": judgement.demonstration}
            texts.append({"annotation_id": row["annotation_id"], **words})
        places[task.task_id] += 1
    if not rows:
        return
    ordered = sorted(places.items())
    connection.execute(_MAKE_ROOM, [{"task_id": task_id, "needed": number} for task_id, number in ordered])
    connection.execute(insert(leases), leased)
    connection.execute(insert(annotations_table), rows)
    if texts:
        connection.execute(insert(annotation_texts), texts)
    connection.execute(_FILL, [{"task_id": task_id, "done": number} for task_id, number in ordered])
    for task_id, number in ordered:
        task = batch.tasks[task_id]
        if number + task.num_done > 1:
            note_dispute(connection, task_id, task.kind, task.dispute)


def _check(submission: Submission, task: Row[Any], order: tuple[str, ...]) -> None:
    judgement = submission.judgement
    check_key_and_time(submission.client_key, submission.seconds)
    check_words("reason", judgement.reason)
    check_words("demonstration", judgement.demonstration or "")
    check_fits(
        judgement,
        kind=task.kind,
        completion_ids=order,
        attributes=task.attributes,
        flags=settings_of(task.settings).flags,
        imported=submission.origin == "import",
    )


def _rows(
    submission: Submission, task: Row[Any], simulated: bool, now: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    judgement = submission.judgement
    shown = judgement.shown_order or shuffled(task.task_id, judgement.annotator_id, judgement.completion_ids)
    common = {
        "task_id": task.task_id,
        "project_id": task.project_id,
        "annotator_id": judgement.annotator_id,
        "lease_id": f"l-{secrets.token_hex(12)}",
        "purpose": "rate",
        "shown_order": list(shown),
        "created_at": now,
    }
    lease = common | {"state": "submitted", "heartbeat_at": now, "expires_at": now, "closed_at": now}
    row = common | {
        "annotation_id": content_id("j", task.task_id, judgement.annotator_id, 1),
        "client_key": submission.client_key,
        "version": 1,
        "kind": judgement.kind,
        "preference": judgement.preference,
        "strength": judgement.strength,
        "ranking": [list(tier) for tier in judgement.ranking] if judgement.ranking else None,
        "scores": judgement.scores,
        "thumb": judgement.thumb,
        "flags": list(judgement.flags),
        "shown_order": list(judgement.shown_order or judgement.completion_ids),
        "seconds": submission.seconds,
        "rubric_id": task.rubric_id,
        "origin": submission.origin,
        "surplus": False,
        "simulated": simulated,
    }
    return lease, row
