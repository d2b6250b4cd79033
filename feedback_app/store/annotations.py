"""Taking answers: append-only, versioned, idempotent by client key, never over a task's quota.

What happens to an answer:
- the client key is known           -> the stored row is returned, nothing is written (a retry);
- the person answered before        -> a new version that supersedes the old one (a correction);
- the lease is active               -> accepted, its held place becomes a done place;
- the lease ran out, or there is none, and a place is free -> accepted;
- the lease ran out and no place is free -> kept as surplus, never dropped.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import JSON, Connection, Row, delete, insert, text

from feedback_app.store.engine import Store
from feedback_app.store.leases import TaskView, check_annotator, close_lease, get_lease, shuffled
from feedback_app.store.schema import annotation_texts, annotations_table, drafts, leases
from rlhf.core.errors import DataError, StoreError
from rlhf.core.records import Judgement, content_id

MAX_TEXT_LENGTH = 100_000
BATCH = 500


@dataclass(frozen=True)
class Receipt:
    """What became of a submit. `repeated`: the client key was known. `surplus`: over the task's quota."""

    annotation_id: str
    version: int
    repeated: bool
    surplus: bool


@dataclass(frozen=True)
class Submission:
    """One answer on its way in; what `submit` takes, for the bulk path."""

    judgement: Judgement
    client_key: str
    lease_id: str | None = None
    seconds: float | None = None
    origin: str = "api"


_BY_KEY = text(
    "SELECT annotation_id, task_id, annotator_id, version, surplus FROM annotations WHERE client_key = :key"
)
_TASK = (
    "SELECT t.task_id, t.project_id, t.kind, t.overlap, t.num_done, t.num_held, t.simulated, t.retired_at, "
    "(SELECT r.rubric_id FROM rubrics r WHERE r.project_id = t.project_id ORDER BY r.version DESC LIMIT 1) "
    "AS rubric_id FROM tasks t WHERE t.task_id = :task_id"
)
_TASK_COMPLETIONS = text(
    "SELECT completion_id FROM task_completions WHERE task_id = :task_id ORDER BY position"
)
_PREVIOUS = text(
    "SELECT annotation_id, version, surplus FROM annotations "
    "WHERE task_id = :task_id AND annotator_id = :annotator ORDER BY version DESC LIMIT 1"
)
_COUNT_PLACES = text(
    "UPDATE tasks SET num_done = num_done + :done, num_held = num_held - :held, "
    "is_open = (retired_at IS NULL AND num_done + num_held + :done - :held < overlap) "
    "WHERE task_id = :task_id"
)
_CURRENT = (
    "SELECT a.*, t.prompt_id, p.group_id, tc.completion_id {texts} FROM current_annotations a "
    "JOIN tasks t ON t.task_id = a.task_id JOIN prompts p ON p.prompt_id = t.prompt_id "
    "LEFT JOIN task_completions tc ON tc.task_id = a.task_id {joins} "
    "WHERE a.project_id = :project {surplus} ORDER BY a.annotation_id, tc.position"
)
_JSON_COLUMNS = {"ranking": JSON, "scores": JSON, "flags": JSON, "shown_order": JSON}


def submit(
    store: Store,
    judgement: Judgement,
    *,
    lease_id: str | None,
    client_key: str,
    seconds: float | None = None,
    origin: str = "desk",
) -> Receipt:
    """Store one answer in one transaction; when this returns it is on disk.

    The store gives the annotation its id and version: `judgement.judgement_id` and `.version` are not read.
    `client_key` is made by the caller once per answer; sending it again returns the first receipt.
    Raises StoreError for a lease, task or annotator that does not fit, and for a client key that another
    answer used.
    """
    submission = Submission(judgement, client_key, lease_id, seconds, origin)
    return store.run(lambda connection: _submit(connection, submission))


def submit_many(store: Store, submissions: Iterable[Submission]) -> list[Receipt]:
    """Store many answers, some hundreds per transaction; the same rules as `submit` for each."""
    receipts: list[Receipt] = []
    batch: list[Submission] = []

    def unit(connection: Connection) -> list[Receipt]:
        return [_submit(connection, submission) for submission in batch]

    for submission in submissions:
        batch.append(submission)
        if len(batch) == BATCH:
            receipts += store.run(unit)
            batch = []
    if batch:
        receipts += store.run(unit)
    return receipts


def answer(view: TaskView, annotator_id: str, **fields: Any) -> Judgement:
    """The judgement for a leased task: `answer(view, me, preference="first", strength=2)`."""
    return Judgement(
        judgement_id="",
        task_id=view.task_id,
        prompt_id=view.prompt.prompt_id,
        annotator_id=annotator_id,
        kind=view.kind,
        completion_ids=tuple(completion.completion_id for completion in view.completions),
        shown_order=view.shown_order,
        **fields,
    )


def judgements(store: Store, project: str, *, include_surplus: bool = False) -> Iterator[Judgement]:
    """The current version of every answer of a project, streamed, ordered by id."""
    with store.read() as connection:
        for judgement, _ in current_rows(connection, project, include_surplus=include_surplus):
            yield judgement


def current_rows(
    connection: Connection, project: str, *, include_surplus: bool = False, with_texts: bool = False
) -> Iterator[tuple[Judgement, list[Row[Any]]]]:
    """Current answers in the caller's transaction, each with its rows: one per completion.

    The rows carry what a judgement does not (simulated, seconds, rubric_id, group_id, ...) and, with
    `with_texts`, the prompt's messages and the completion's text.
    """
    query = _CURRENT.format(
        surplus="" if include_surplus else "AND NOT a.surplus",
        texts=", p.messages, c.text AS completion_text" if with_texts else "",
        joins="LEFT JOIN completions c ON c.completion_id = tc.completion_id" if with_texts else "",
    )
    columns = {**_JSON_COLUMNS, "messages": JSON} if with_texts else _JSON_COLUMNS
    statement = text(query).columns(**columns)
    result = connection.execution_options(yield_per=1000).execute(statement, {"project": project})
    for annotation_id, group in groupby(result, key=lambda row: row.annotation_id):
        rows = list(group)
        row = rows[0]
        yield (
            Judgement.model_construct(
                judgement_id=annotation_id,
                task_id=row.task_id,
                prompt_id=row.prompt_id,
                annotator_id=row.annotator_id,
                kind=row.kind,
                completion_ids=tuple(r.completion_id for r in rows if r.completion_id is not None),
                shown_order=tuple(row.shown_order),
                preference=row.preference,
                strength=row.strength,
                ranking=tuple(tuple(tier) for tier in row.ranking) if row.ranking else None,
                scores=row.scores,
                demonstration=row.demonstration,
                thumb=row.thumb,
                reason=row.reason,
                flags=tuple(row.flags),
                version=row.version,
            ),
            rows,
        )


def _submit(connection: Connection, submission: Submission) -> Receipt:
    judgement, client_key = submission.judgement, submission.client_key
    _check_texts(judgement, client_key)
    task = _locked_task(connection, judgement)
    known = connection.execute(_BY_KEY, {"key": client_key}).first()
    if known is not None:
        if known.task_id != judgement.task_id or known.annotator_id != judgement.annotator_id:
            raise StoreError(f"client key '{client_key}' was used for another answer")
        return Receipt(known.annotation_id, known.version, True, bool(known.surplus))
    simulated = check_annotator(connection, judgement.annotator_id)
    now = time.time()
    lease = None
    if submission.lease_id is not None:
        lease = get_lease(connection, submission.lease_id, judgement.annotator_id)
        if lease.task_id != judgement.task_id:
            raise StoreError(f"lease '{submission.lease_id}' is for another task than '{judgement.task_id}'")
    key = {"task_id": judgement.task_id, "annotator": judgement.annotator_id}
    previous = connection.execute(_PREVIOUS, key).first()
    held = 1 if lease is not None and lease.state == "active" else 0
    if previous is not None:
        accepted, surplus = 0, bool(previous.surplus)
    else:
        has_place = bool(held) or task.num_done + task.num_held < task.overlap
        accepted, surplus = int(has_place), not has_place
    if accepted or held:
        connection.execute(_COUNT_PLACES, {"task_id": task.task_id, "done": accepted, "held": held})
    lease_id = _settle_lease(connection, submission, task, lease, now)
    version = previous.version + 1 if previous is not None else 1
    annotation_id = content_id("j", judgement.task_id, judgement.annotator_id, version)
    row = _annotation_row(submission, task, lease)
    row |= {
        "annotation_id": annotation_id,
        "lease_id": lease_id,
        "version": version,
        "supersedes": previous.annotation_id if previous is not None else None,
        "surplus": surplus,
        "simulated": simulated or bool(task.simulated),
        "created_at": now,
    }
    connection.execute(insert(annotations_table), row)
    if judgement.reason or judgement.demonstration is not None:
        texts = {"reason": judgement.reason, "demonstration": judgement.demonstration}
        connection.execute(insert(annotation_texts), {"annotation_id": annotation_id, **texts})
    if submission.origin == "desk":
        connection.execute(
            delete(drafts).where(
                drafts.c.task_id == task.task_id, drafts.c.annotator_id == judgement.annotator_id
            )
        )
    return Receipt(annotation_id, version, False, surplus)


def _locked_task(connection: Connection, judgement: Judgement) -> Row[Any]:
    locking = " FOR UPDATE OF t" if connection.dialect.name == "postgresql" else ""
    task = connection.execute(text(_TASK + locking), {"task_id": judgement.task_id}).first()
    if task is None:
        raise StoreError(f"there is no task '{judgement.task_id}'")
    if task.kind != judgement.kind:
        raise StoreError(f"task '{task.task_id}' is a {task.kind} task; found a {judgement.kind} answer")
    canonical = tuple(connection.execute(_TASK_COMPLETIONS, {"task_id": task.task_id}).scalars())
    if canonical != judgement.completion_ids:
        raise StoreError(
            f"task '{task.task_id}' has completions {', '.join(canonical)} in this order; "
            f"found {', '.join(judgement.completion_ids)}"
        )
    return task


def _settle_lease(
    connection: Connection, submission: Submission, task: Row[Any], lease: Row[Any] | None, now: float
) -> str:
    """Close the lease that was used; an answer without one gets a closed lease of its own."""
    if lease is not None:
        close_lease(connection, lease.lease_id, "submitted", now)
        return str(lease.lease_id)
    judgement = submission.judgement
    order = judgement.shown_order or shuffled(task.task_id, judgement.annotator_id, judgement.completion_ids)
    row = {
        "lease_id": f"l-{secrets.token_hex(12)}",
        "task_id": task.task_id,
        "project_id": task.project_id,
        "annotator_id": judgement.annotator_id,
        "state": "submitted",
        "purpose": submission.origin,
        "shown_order": list(order),
        "created_at": now,
        "heartbeat_at": now,
        "expires_at": now,
        "closed_at": now,
    }
    connection.execute(insert(leases), row)
    return str(row["lease_id"])


def _annotation_row(submission: Submission, task: Row[Any], lease: Row[Any] | None) -> dict[str, Any]:
    judgement = submission.judgement
    shown = judgement.shown_order or (lease.shown_order if lease is not None else ())
    return {
        "task_id": task.task_id,
        "project_id": task.project_id,
        "annotator_id": judgement.annotator_id,
        "client_key": submission.client_key,
        "kind": judgement.kind,
        "preference": judgement.preference,
        "strength": judgement.strength,
        "ranking": [list(tier) for tier in judgement.ranking] if judgement.ranking else None,
        "scores": judgement.scores,
        "thumb": judgement.thumb,
        "flags": list(judgement.flags),
        "shown_order": list(shown or judgement.completion_ids),
        "seconds": submission.seconds,
        "rubric_id": task.rubric_id,
        "origin": submission.origin,
    }


def _check_texts(judgement: Judgement, client_key: str) -> None:
    if not 1 <= len(client_key) <= 128:
        raise DataError(f"a client key has 1 to 128 characters; found {len(client_key)}")
    for name in ("reason", "demonstration"):
        value = getattr(judgement, name) or ""
        if len(value) > MAX_TEXT_LENGTH:
            raise DataError(f"'{name}' has {len(value)} characters; at most {MAX_TEXT_LENGTH} are kept")
