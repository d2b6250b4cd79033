"""Taking answers: append-only, versioned, idempotent by client key, never over a task's quota.

What happens to an answer:
- the client key is known           -> the stored row is returned, nothing is written (a retry);
- the person answered before        -> a new version that supersedes the old one (a correction);
- the lease is active               -> accepted, its held place becomes a done place;
- the lease ran out, or there is none, and a place is free -> accepted;
- the lease ran out and no place is free -> kept as surplus, never dropped;
- it answers a gold item or a repeat -> kept with that purpose; it takes no place and is never exported.

Which answers are meant, as three views of the database:
- `latest_annotations`: the newest version of each answer that nobody asked to delete, whatever it was for;
- `current_annotations`: of these, what people said about the work itself: agreement is computed from it;
- `final_annotations`: what is exported. A task that a lead decided has one answer there, the newest decision,
  in place of everything the annotators said about it; every other task has its current answers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import JSON, Connection, Row, delete, insert, text

from feedback_app.store import gold
from feedback_app.store.checks import check_fits, check_key_and_time, checked_judgement
from feedback_app.store.disputes import note_dispute
from feedback_app.store.engine import Store
from feedback_app.store.gold import GoldResult
from feedback_app.store.leases import (
    TaskView,
    check_annotator,
    close_lease,
    count_places,
    count_progress,
    get_lease,
    shuffled,
)
from feedback_app.store.projects import settings_of
from feedback_app.store.schema import annotation_texts, annotations_table, drafts, leases
from rlhf.core.errors import DataError, StoreError
from rlhf.core.records import Judgement, content_id

BATCH = 500


@dataclass(frozen=True)
class Receipt:
    """What became of a submit. `repeated`: the client key was known. `surplus`: over the task's quota.

    gold: the verdict on an answer to a gold item, where the project tells people (`gold_feedback`).
    """

    annotation_id: str
    version: int
    repeated: bool
    surplus: bool
    gold: GoldResult | None = None


@dataclass(frozen=True)
class Submission:
    """One answer on its way in; what `submit` takes, for the bulk path."""

    judgement: Judgement
    client_key: str
    lease_id: str | None = None
    seconds: float | None = None
    origin: str = "api"


_BY_KEY = text(
    "SELECT annotation_id, task_id, annotator_id, version, surplus, purpose, gold_correct FROM annotations "
    "WHERE client_key = :key"
)
_TASK = (
    "SELECT t.task_id, t.project_id, t.kind, t.pool, t.overlap, t.num_done, t.num_held, t.simulated, "
    "t.retired_at, t.repeat_for, t.dispute, p.settings, r.rubric_id, r.attributes "
    "FROM tasks t JOIN projects p ON p.project_id = t.project_id "
    "JOIN rubrics r ON r.project_id = t.project_id "
    "AND r.version = (SELECT max(version) FROM rubrics WHERE project_id = t.project_id) "
    "WHERE t.task_id = :task_id"
)
_TASK_COMPLETIONS = text(
    "SELECT completion_id FROM task_completions WHERE task_id = :task_id ORDER BY position"
)
_STATEMENTS = text(
    "SELECT a.annotation_id, a.version, a.surplus, a.purpose, d.annotation_id IS NOT NULL AS erased "
    "FROM annotations a LEFT JOIN tombstones d ON d.annotation_id = a.annotation_id "
    "WHERE a.task_id = :task_id AND a.annotator_id = :annotator ORDER BY a.version DESC"
)
_CURRENT = (
    "SELECT a.*, t.prompt_id, t.selection, p.group_id, tc.completion_id {texts} FROM {view} a "
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
    answer used; DataError for an answer that does not fit its kind, its completions, or what the project
    offers (attributes of the rubric, flags).
    """
    submission = Submission(judgement, client_key, lease_id, seconds, origin)
    return store.run(lambda connection: submit_in(connection, submission))


def submit_many(store: Store, submissions: Iterable[Submission]) -> list[Receipt]:
    """Store many answers, some hundreds per transaction; the same rules as `submit` for each."""
    receipts: list[Receipt] = []
    batch: list[Submission] = []

    def unit(connection: Connection) -> list[Receipt]:
        return [submit_in(connection, submission) for submission in batch]

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
    """What a project holds for training, streamed, ordered by id: `final_annotations`.

    That is the current version of every answer, without gold and repeats; where a lead decided a task, their
    decision alone.
    """
    with store.read() as connection:
        for judgement, _ in current_rows(connection, project, include_surplus=include_surplus):
            yield judgement


def current_rows(
    connection: Connection, project: str, *, include_surplus: bool = False, with_texts: bool = False
) -> Iterator[tuple[Judgement, list[Row[Any]]]]:
    """Final answers in the caller's transaction, each with its rows: one per completion.

    The rows carry what a judgement does not (purpose, simulated, seconds, rubric_id, group_id, selection, ...)
    and, with `with_texts`, the prompt's messages and the completion's text.
    """
    query = _CURRENT.format(
        view="final_annotations",
        surplus="" if include_surplus else "AND NOT a.surplus",
        texts=", p.messages, c.text AS completion_text" if with_texts else "",
        joins="LEFT JOIN completions c ON c.completion_id = tc.completion_id" if with_texts else "",
    )
    columns = {**_JSON_COLUMNS, "messages": JSON} if with_texts else _JSON_COLUMNS
    statement = text(query).columns(**columns)
    result = connection.execution_options(yield_per=1000).execute(statement, {"project": project})
    for _, group in groupby(result, key=lambda row: row.annotation_id):
        rows = list(group)
        row = rows[0]
        yield (
            judgement_of(row, tuple(r.completion_id for r in rows if r.completion_id is not None)),
            rows,
        )


def judgement_of(row: Row[Any], completion_ids: tuple[str, ...]) -> Judgement:
    """The judgement in a stored row, which was validated when it came in. completion_ids: in canonical order."""
    return Judgement.model_construct(
        judgement_id=row.annotation_id,
        task_id=row.task_id,
        prompt_id=row.prompt_id,
        annotator_id=row.annotator_id,
        kind=row.kind,
        completion_ids=completion_ids,
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
    )


def submit_in(connection: Connection, submission: Submission, *, adjudicates: bool = False) -> Receipt:
    """`submit` within the caller's transaction. `adjudicates`: it is a lead's decision on the task."""
    check_key_and_time(submission.client_key, submission.seconds)
    judgement = checked_judgement(submission.judgement)
    task = _locked_task(connection, judgement, submission.origin)
    known = connection.execute(_BY_KEY, {"key": submission.client_key}).first()
    if known is not None:
        return _first_receipt(connection, submission, task, known)
    simulated = check_annotator(connection, judgement.annotator_id)
    lease = _own_lease(connection, submission)
    statements = connection.execute(
        _STATEMENTS, {"task_id": task.task_id, "annotator": judgement.annotator_id}
    ).all()
    previous = next(
        (row for row in statements if not row.erased and (row.purpose == "adjudicate") == adjudicates), None
    )
    purpose = "adjudicate" if adjudicates else _purpose(task, lease, previous)
    held = lease is not None and lease.state == "active" and lease.purpose == "rate"
    accepted, surplus = False, previous is not None and bool(previous.surplus)
    if previous is None and purpose == "rate":
        accepted = held or task.num_done + task.num_held < task.overlap
        surplus = not accepted
    if accepted or held:
        count_places(connection, task.task_id, done=int(accepted), held=-int(held))
    now = time.time()
    result = gold.judge(connection, judgement) if purpose == "gold" else None
    settings = settings_of(task.settings)
    version = statements[0].version + 1 if statements else 1
    row = _annotation_row(submission, judgement, task, lease) | {
        "annotation_id": content_id("j", task.task_id, judgement.annotator_id, version),
        "lease_id": _settle_lease(connection, submission, judgement, purpose, task, lease, now),
        "version": version,
        "supersedes": previous.annotation_id if previous is not None else None,
        "purpose": purpose,
        "surplus": surplus,
        "simulated": simulated or bool(task.simulated),
        "too_fast": submission.seconds is not None and submission.seconds < settings.min_seconds,
        "gold_correct": result.correct if result is not None else None,
        "created_at": now,
    }
    connection.execute(insert(annotations_table), row)
    if judgement.reason or judgement.demonstration is not None:
        texts = {"reason": judgement.reason, "demonstration": judgement.demonstration}
        connection.execute(insert(annotation_texts), {"annotation_id": row["annotation_id"], **texts})
    if submission.origin == "desk":
        mine = (drafts.c.task_id == task.task_id, drafts.c.annotator_id == judgement.annotator_id)
        connection.execute(delete(drafts).where(*mine))
    if previous is None and not adjudicates and submission.origin != "import":
        count_progress(
            connection, judgement.annotator_id, task.project_id, answers=1, seconds=submission.seconds, at=now
        )
    if purpose == "rate":
        note_dispute(connection, task.task_id, task.kind, task.dispute)
    told = result if settings.gold_feedback else None
    return Receipt(str(row["annotation_id"]), version, False, surplus, told)


def _first_receipt(
    connection: Connection, submission: Submission, task: Row[Any], known: Row[Any]
) -> Receipt:
    """What the first submit with this client key was told."""
    judgement = submission.judgement
    if known.task_id != judgement.task_id or known.annotator_id != judgement.annotator_id:
        raise StoreError(f"client key '{submission.client_key}' was used for another answer")
    told = None
    if known.purpose == "gold" and settings_of(task.settings).gold_feedback:
        item = gold.judge(connection, judgement)
        told = GoldResult(bool(known.gold_correct), item.expected, item.explanation)
    return Receipt(known.annotation_id, known.version, True, bool(known.surplus), told)


def _locked_task(connection: Connection, judgement: Judgement, origin: str) -> Row[Any]:
    """The task that is answered, locked on PostgreSQL; the answer fits it, or this raises."""
    locking = " FOR UPDATE OF t" if connection.dialect.name == "postgresql" else ""
    statement = text(_TASK + locking).columns(settings=JSON, attributes=JSON)
    task = connection.execute(statement, {"task_id": judgement.task_id}).first()
    if task is None:
        raise StoreError(f"there is no task '{judgement.task_id}'")
    if task.repeat_for is not None and task.repeat_for != judgement.annotator_id:
        raise StoreError(f"task '{task.task_id}' is another person's repeat")
    canonical = tuple(connection.execute(_TASK_COMPLETIONS, {"task_id": task.task_id}).scalars())
    check_fits(
        judgement,
        kind=task.kind,
        completion_ids=canonical,
        attributes=task.attributes,
        flags=settings_of(task.settings).flags,
        imported=origin == "import",
    )
    return task


def _own_lease(connection: Connection, submission: Submission) -> Row[Any] | None:
    """The lease that the answer came with, if it is this person's and for this task in this order."""
    if submission.lease_id is None:
        return None
    judgement = submission.judgement
    lease = get_lease(connection, submission.lease_id, judgement.annotator_id)
    if lease.task_id != judgement.task_id:
        raise StoreError(f"lease '{submission.lease_id}' is for another task than '{judgement.task_id}'")
    if judgement.shown_order and list(judgement.shown_order) != list(lease.shown_order):
        raise DataError(
            f"the completions of task '{judgement.task_id}' were shown in the order "
            f"{', '.join(lease.shown_order)}; found {', '.join(judgement.shown_order)}"
        )
    return lease


def _purpose(task: Row[Any], lease: Row[Any] | None, previous: Row[Any] | None) -> str:
    """What an answer is for: a correction keeps its purpose, otherwise what it was leased for decides."""
    if previous is not None:
        return str(previous.purpose)
    if lease is not None:
        return str(lease.purpose)
    return {"queue": "rate"}.get(task.pool, str(task.pool))


def _settle_lease(
    connection: Connection,
    submission: Submission,
    judgement: Judgement,
    purpose: str,
    task: Row[Any],
    lease: Row[Any] | None,
    now: float,
) -> str:
    """Close the lease that was used; an answer without one gets a closed lease of its own."""
    if lease is not None:
        close_lease(connection, lease.lease_id, "submitted", now)
        return str(lease.lease_id)
    order = judgement.shown_order or shuffled(task.task_id, judgement.annotator_id, judgement.completion_ids)
    row = {
        "lease_id": f"l-{secrets.token_hex(12)}",
        "task_id": task.task_id,
        "project_id": task.project_id,
        "annotator_id": judgement.annotator_id,
        "state": "submitted",
        "purpose": purpose,
        "shown_order": list(order),
        "created_at": now,
        "heartbeat_at": now,
        "expires_at": now,
        "closed_at": now,
    }
    connection.execute(insert(leases), row)
    return str(row["lease_id"])


def _annotation_row(
    submission: Submission, judgement: Judgement, task: Row[Any], lease: Row[Any] | None
) -> dict[str, Any]:
    shown = judgement.shown_order or (lease.shown_order if lease is not None else ())
    return {
        "task_id": task.task_id,
        "project_id": task.project_id,
        "annotator_id": judgement.annotator_id,
        **answer_columns(submission, judgement),
        "shown_order": list(shown or judgement.completion_ids),
        "rubric_id": task.rubric_id,
    }


def answer_columns(submission: Submission, judgement: Judgement) -> dict[str, Any]:
    """The columns of an annotation that say what was answered, and how it came in."""
    return {
        "client_key": submission.client_key,
        "kind": judgement.kind,
        "preference": judgement.preference,
        "strength": judgement.strength,
        "ranking": [list(tier) for tier in judgement.ranking] if judgement.ranking else None,
        "scores": judgement.scores,
        "thumb": judgement.thumb,
        "flags": list(judgement.flags),
        "seconds": submission.seconds,
        "origin": submission.origin,
    }
