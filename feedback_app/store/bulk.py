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
from typing import Any, NamedTuple

from sqlalchemy import JSON, Connection, text

from feedback_app.store.annotations import Receipt, Submission, answer_columns, submit_in
from feedback_app.store.checks import check_fits, check_key_and_time, check_words
from feedback_app.store.disputes import note_dispute
from feedback_app.store.engine import Store
from feedback_app.store.leases import check_annotator, shuffled
from feedback_app.store.projects import settings_of
from feedback_app.store.rows import insert_rows, look_up, run_for
from feedback_app.store.schema import annotation_texts, annotations_table, leases
from feedback_app.store.tasks import LOOK_UP, chunks, existing
from rlhf.core.records import content_id

_TASKS = (
    "SELECT t.task_id, t.kind, t.project_id, t.pool, t.repeat_for, t.dispute, t.simulated, t.num_done "
    "FROM {wanted} w CROSS JOIN tasks t WHERE t.task_id = w.id ORDER BY t.task_id"
)
_LOCKED = {"sqlite": "", "postgresql": " FOR UPDATE OF t"}
_PROJECT = text(
    "SELECT p.settings, r.rubric_id, r.attributes FROM projects p JOIN rubrics r ON r.project_id = p.project_id "
    "WHERE p.project_id = :project ORDER BY r.version DESC LIMIT 1"
).columns(settings=JSON, attributes=JSON)
_PLACES = (
    "SELECT c.task_id, c.completion_id FROM {wanted} w CROSS JOIN task_completions c WHERE c.task_id = w.id "
    "ORDER BY c.task_id, c.position"
)
_ANSWERED = "SELECT a.task_id, a.annotator_id FROM {wanted} w CROSS JOIN annotations a WHERE a.task_id = w.id"
# Ratings that somebody brings are wanted: the task's overlap grows where it has no place left for them.
_FILL = (
    "UPDATE tasks SET num_done = num_done + :done, overlap = CASE WHEN overlap < num_done + num_held + :done "
    "THEN num_done + num_held + :done ELSE overlap END, "
    "is_open = (retired_at IS NULL AND num_done + num_held + :done < overlap) "
    "WHERE task_id IN (SELECT w.id FROM {wanted} w)"
)


@dataclass
class BulkCounts:
    """What became of the answers; `corrected` are new versions of answers that were there."""

    new: int = 0
    known: int = 0
    corrected: int = 0


class _Task(NamedTuple):
    task_id: str
    kind: str
    project_id: str
    pool: str
    repeat_for: str | None
    dispute: str | None
    simulated: bool
    num_done: int


@dataclass(frozen=True)
class _Project:
    flags: tuple[str, ...]
    attributes: list[dict[str, Any]]
    rubric_id: str


@dataclass
class _Batch:
    tasks: dict[str, _Task]
    projects: dict[str, _Project]
    orders: dict[str, tuple[str, ...]]
    answered: set[tuple[str, str]]
    simulated: dict[str, bool] = field(default_factory=dict)


def import_answers(store: Store, submissions: Sequence[Submission]) -> BulkCounts:
    """Store answers in one transaction, idempotent by client key. Raises what `submit` raises."""
    return store.run(lambda connection: _import(connection, submissions))


def canonical_orders(connection: Connection, task_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The completions of each task in canonical order."""
    found: dict[str, list[str]] = defaultdict(list)
    for chunk in chunks(sorted(set(task_ids)), LOOK_UP):
        for task_id, completion_id in look_up(connection, _PLACES, chunk):
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
    query = _TASKS + _LOCKED[connection.dialect.name]
    tasks = {row[0]: _Task(*row) for row in look_up(connection, query, task_ids)}
    projects = {}
    for project in {task.project_id for task in tasks.values()}:
        row = connection.execute(_PROJECT, {"project": project}).one()
        projects[project] = _Project(settings_of(row.settings).flags, row.attributes, row.rubric_id)
    answered: set[tuple[str, str]] = {
        (task, person) for task, person in look_up(connection, _ANSWERED, task_ids)
    }
    return _Batch(tasks, projects, canonical_orders(connection, task_ids), answered)


def _write(connection: Connection, submissions: Sequence[Submission], batch: _Batch) -> None:
    now = time.time()
    leased: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    places: Counter[str] = Counter()
    for submission in submissions:
        judgement = submission.judgement
        task = batch.tasks[judgement.task_id]
        project = batch.projects[task.project_id]
        _check(submission, task, project, batch.orders.get(task.task_id, ()))
        if judgement.annotator_id not in batch.simulated:
            batch.simulated[judgement.annotator_id] = check_annotator(connection, judgement.annotator_id)
        simulated = batch.simulated[judgement.annotator_id] or bool(task.simulated)
        lease, row = _rows(submission, task, project.rubric_id, simulated, now)
        leased.append(lease)
        rows.append(row)
        if judgement.reason or judgement.demonstration is not None:
            words = {"reason": judgement.reason, "demonstration": judgement.demonstration}
            texts.append({"annotation_id": row["annotation_id"], **words})
        places[task.task_id] += 1
    if not rows:
        return
    insert_rows(connection, leases, leased)
    insert_rows(connection, annotations_table, rows)
    insert_rows(connection, annotation_texts, texts)
    for done in sorted(set(places.values())):
        run_for(
            connection, _FILL, [task_id for task_id, number in places.items() if number == done], done=done
        )
    for task_id, number in sorted(places.items()):
        task = batch.tasks[task_id]
        if number + task.num_done > 1:
            note_dispute(connection, task_id, task.kind, task.dispute)


def _check(submission: Submission, task: _Task, project: _Project, order: tuple[str, ...]) -> None:
    judgement = submission.judgement
    check_key_and_time(submission.client_key, submission.seconds)
    check_words("reason", judgement.reason)
    check_words("demonstration", judgement.demonstration or "")
    check_fits(
        judgement,
        kind=task.kind,
        completion_ids=order,
        attributes=project.attributes,
        flags=project.flags,
        imported=submission.origin == "import",
    )


def _rows(
    submission: Submission, task: _Task, rubric_id: str, simulated: bool, now: float
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
        "version": 1,
        **answer_columns(submission, judgement),
        "shown_order": list(judgement.shown_order or judgement.completion_ids),
        "rubric_id": rubric_id,
        "surplus": False,
        "simulated": simulated,
    }
    return lease, row
