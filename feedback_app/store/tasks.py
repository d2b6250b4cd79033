"""Putting work into the store: projects with their rubric, prompts, completions and tasks, in bulk.

Everything is idempotent by content: the same prompt, completion or task added twice is one row, so a
command that was interrupted can simply be run again. Each call is one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, TypeVar

from sqlalchemy import Column, Connection, Table, func, insert, select, update

from feedback_app.store.checks import check_attributes, check_words
from feedback_app.store.engine import Store
from feedback_app.store.leases import TaskView, heartbeat, lease_next, release, skip
from feedback_app.store.rows import insert_rows, look_up
from feedback_app.store.schema import completions as completions_table
from feedback_app.store.schema import projects, rubrics, task_completions
from feedback_app.store.schema import prompts as prompts_table
from feedback_app.store.schema import tasks as tasks_table
from rlhf.core.errors import DataError, StoreError
from rlhf.core.records import Completion, Prompt, TaskKind, content_id
from rlhf.core.validation import nearest

__all__ = [
    "TaskView",
    "add_completions",
    "add_prompts",
    "create_tasks",
    "ensure_project",
    "heartbeat",
    "lease_next",
    "release",
    "set_rubric",
    "skip",
]

CHUNK = 500
LOOK_UP = 5000
MAX_SORT_KEY = 2**31
MAX_OVERLAP = 1000
MAX_WORK_LENGTH = 2_000_000
NUM_COMPLETIONS = {
    "pairwise": (2, 2),
    "ranking": (3, 9),
    "scores": (1, 9),
    "demonstration": (0, 1),
    "thumbs": (1, 1),
}

DEFAULT_RUBRIC_TITLE = "Which answer is better?"
DEFAULT_RUBRIC = """\
Read the prompt, then both answers to the end. Choose the one you would rather receive.
1. **Does it help?** It answers what was asked and gets the person further.
2. **Is it true?** It invents nothing: no facts, promises or sources that it cannot know.
3. **Is it considerate?** Polite, and nothing harmful.
4. **Is it clear?** As short as the matter allows. Longer is not better.

If they differ in several ways, the earlier point weighs more. Use *tie* only when you could toss a coin, \
*both bad* when you would send neither."""

Item = TypeVar("Item")

_OWNERS = "SELECT c.completion_id, c.prompt_id FROM {wanted} w CROSS JOIN completions c WHERE c.completion_id = w.id"


def ensure_project(
    store: Store,
    project: str,
    *,
    title: str | None = None,
    rubric: str | None = None,
    rubric_title: str = DEFAULT_RUBRIC_TITLE,
    purpose: Literal["collect", "evaluate"] = "collect",
    simulated: bool = False,
) -> None:
    """Make the project, with its rubric, unless it exists. An existing project keeps what it has."""

    def unit(connection: Connection) -> None:
        _ensure_project(connection, project, title, rubric, rubric_title, purpose, simulated)

    store.run(unit)


def set_rubric(
    store: Store,
    project: str,
    text: str,
    *,
    title: str = DEFAULT_RUBRIC_TITLE,
    attributes: Sequence[dict[str, Any]] = (),
    created_by: str | None = None,
) -> int:
    """Add a new version of the project's rubric and return its number; old answers keep their version.

    attributes: what scores tasks ask for, each {"name", "definition", "anchors": {"1": ..., "5": ...}}; only
    the name is needed. Raises StoreError for an unknown project, DataError for attributes that cannot be
    asked for.
    """
    checked = check_attributes(attributes)

    def unit(connection: Connection) -> int:
        found = connection.execute(
            select(projects.c.project_id).where(projects.c.project_id == project)
        ).first()
        if found is None:
            raise StoreError(f"there is no project '{project}'")
        return _add_rubric(connection, project, title, text, checked, created_by)

    return store.run(unit)


def add_prompts(store: Store, prompts: Iterable[Prompt]) -> int:
    """Add prompts and return how many were new. Text that a database cannot hold -> DataError."""
    prompts = list(prompts)
    for p in prompts:
        for message in p.messages:
            check_words(f"message of prompt {p.prompt_id}", message.content, limit=MAX_WORK_LENGTH)
        check_words(f"context of prompt {p.prompt_id}", p.context or "", limit=MAX_WORK_LENGTH)
    rows = [
        {
            "prompt_id": p.prompt_id,
            "messages": [{"role": m.role, "content": m.content} for m in p.messages],
            "source": p.source,
            "group_id": p.group_id,
            "context": p.context,
            "metadata": p.metadata,
        }
        for p in prompts
    ]
    return store.run(lambda connection: len(insert_new(connection, prompts_table, "prompt_id", rows)))


def add_completions(store: Store, completions: Iterable[Completion]) -> int:
    """Add completions of known prompts and return how many were new.

    Unknown prompt, or text that a database cannot hold -> DataError.
    """
    completions = list(completions)
    for c in completions:
        check_words(f"completion {c.completion_id}", c.text, limit=MAX_WORK_LENGTH)
    rows: list[dict[str, Any]] = [
        {
            "completion_id": c.completion_id,
            "prompt_id": c.prompt_id,
            "text": c.text,
            "model_id": c.model_id,
            "sampling": c.sampling,
        }
        for c in completions
    ]

    def unit(connection: Connection) -> int:
        wanted = {row["prompt_id"] for row in rows}
        missing = wanted - existing(connection, prompts_table.c.prompt_id, wanted)
        if missing:
            raise DataError(f"completion of unknown prompt '{min(missing)}'; add its prompt first")
        return len(insert_new(connection, completions_table, "completion_id", rows))

    return store.run(unit)


def create_tasks(
    store: Store,
    *,
    project: str,
    kind: TaskKind,
    items: Iterable[tuple[str, tuple[str, ...]]],
    overlap: int = 1,
    simulated: bool = False,
    queue_rank: float = 0.0,
    selection: Literal["uniform", "priority"] = "uniform",
) -> list[str]:
    """Make one task per (prompt_id, completion_ids) and return all their ids, in order.

    The order of completion_ids is the task's canonical order; the same completions in another order are the
    same task. The project is made on demand with the default rubric. Each task is given to `overlap`
    different annotators. Raises DataError for unknown ids and for a wrong number of completions.
    """
    if kind not in NUM_COMPLETIONS:
        raise DataError(f"'{kind}' is not a kind of task{nearest(kind, NUM_COMPLETIONS)}")
    if not 1 <= overlap <= MAX_OVERLAP:
        raise DataError(f"overlap must be 1 to {MAX_OVERLAP}; found {overlap}")
    wanted = [(prompt_id, tuple(ids)) for prompt_id, ids in items]
    task_ids = [content_id("t", project, kind, prompt_id, sorted(ids)) for prompt_id, ids in wanted]

    def unit(connection: Connection) -> list[str]:
        _check_items(connection, kind, wanted)
        _ensure_project(connection, project, None, None, DEFAULT_RUBRIC_TITLE, "collect", simulated)
        rows = [
            {
                "task_id": task_id,
                "project_id": project,
                "kind": kind,
                "prompt_id": prompt_id,
                "overlap": overlap,
                "queue_rank": queue_rank,
                "selection": selection,
                # Shuffled by content: related items do not follow each other, a rerun gives the same order.
                "sort_key": int(task_id[-8:], 16) % MAX_SORT_KEY,
                "simulated": simulated,
            }
            for task_id, (prompt_id, _) in zip(task_ids, wanted, strict=True)
        ]
        new = insert_new(connection, tasks_table, "task_id", rows)
        places, placed = [], set()
        for task_id, (_, ids) in zip(task_ids, wanted, strict=True):
            if task_id in new and task_id not in placed:
                placed.add(task_id)
                places += [{"task_id": task_id, "position": i, "completion_id": c} for i, c in enumerate(ids)]
        insert_rows(connection, task_completions, places)
        return task_ids

    return store.run(unit)


def chunks(items: Iterable[Item], size: int = CHUNK) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def existing(connection: Connection, column: Column[Any], values: Iterable[str]) -> set[str]:
    """Those of `values` that the column holds already."""
    query = f"SELECT t.{column.name} FROM {{wanted}} w CROSS JOIN {column.table.name} t WHERE t.{column.name} = w.id"
    found: set[str] = set()
    for chunk in chunks(sorted(set(values)), LOOK_UP):
        found.update(value for (value,) in look_up(connection, query, chunk))
    return found


def insert_new(connection: Connection, table: Table, key: str, rows: list[dict[str, Any]]) -> set[str]:
    """Insert the rows whose key is not there yet, stamped with the time; return the new keys."""
    now = time.time()
    known = existing(connection, table.c[key], (row[key] for row in rows))
    fresh: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row[key] not in known and row[key] not in fresh:
            fresh[row[key]] = {**row, "created_at": now}
    insert_rows(connection, table, fresh.values())
    return set(fresh)


def _check_items(connection: Connection, kind: str, items: list[tuple[str, tuple[str, ...]]]) -> None:
    low, high = NUM_COMPLETIONS[kind]
    owner: dict[str, str] = {}
    for chunk in chunks(sorted({c for _, ids in items for c in ids}), LOOK_UP):
        owner.update(look_up(connection, _OWNERS, chunk))
    prompt_ids = {prompt_id for prompt_id, _ in items}
    unknown = prompt_ids - existing(connection, prompts_table.c.prompt_id, prompt_ids)
    if unknown:
        raise DataError(f"task for unknown prompt '{min(unknown)}'; add the prompt first")
    for prompt_id, ids in items:
        if not low <= len(ids) <= high or len(set(ids)) != len(ids):
            needed = str(low) if low == high else f"{low} to {high}"
            raise DataError(f"a {kind} task needs {needed} different completions; found {len(set(ids))}")
        for completion_id in ids:
            if owner.get(completion_id) != prompt_id:
                raise DataError(
                    f"completion '{completion_id}' is not a known completion of prompt '{prompt_id}'"
                )


def _ensure_project(
    connection: Connection,
    project: str,
    title: str | None,
    rubric: str | None,
    rubric_title: str,
    purpose: str,
    simulated: bool,
) -> None:
    found = connection.execute(select(projects.c.simulated).where(projects.c.project_id == project)).first()
    if found is None:
        if not project or len(project) > 128 or not project.isprintable():
            raise DataError(f"a project name has 1 to 128 printable characters; found {project[:130]!r}")
        row = {
            "project_id": project,
            "title": title or project,
            "purpose": purpose,
            "simulated": simulated,
            "created_at": time.time(),
        }
        connection.execute(insert(projects), row)
        _add_rubric(connection, project, rubric_title, rubric or DEFAULT_RUBRIC, [], None)
    elif simulated and not found.simulated:
        connection.execute(update(projects).where(projects.c.project_id == project).values(simulated=True))


def _add_rubric(
    connection: Connection,
    project: str,
    title: str,
    text: str,
    attributes: list[dict[str, Any]],
    created_by: str | None,
) -> int:
    last = connection.execute(
        select(func.max(rubrics.c.version)).where(rubrics.c.project_id == project)
    ).scalar()
    version = (last or 0) + 1
    row = {
        "rubric_id": content_id("r", project, version, title, text),
        "project_id": project,
        "version": version,
        "title": title,
        "text": text,
        "attributes": attributes,
        "created_at": time.time(),
        "created_by": created_by,
    }
    connection.execute(insert(rubrics), row)
    return version
