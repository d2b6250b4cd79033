"""Asking more people about a task than was planned, for instance where one answer leaves a reward model unsure."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from feedback_app.store import audit
from feedback_app.store.engine import Store
from feedback_app.store.projects import project_settings
from feedback_app.store.rows import look_up, run_for
from feedback_app.store.tasks import MAX_OVERLAP, chunks
from rlhf.core.errors import DataError, StoreError

_KNOWN = "SELECT t.task_id, t.project_id FROM {wanted} w CROSS JOIN tasks t WHERE t.task_id = w.id"
_RAISE = (
    "UPDATE tasks SET overlap = :overlap, is_open = (num_done + num_held < :overlap) "
    "WHERE task_id IN (SELECT w.id FROM {wanted} w) AND overlap < :overlap "
    "AND pool = 'queue' AND retired_at IS NULL AND (dispute IS NULL OR dispute <> 'decided')"
)


def raise_overlap(
    store: Store,
    project: str,
    task_ids: Collection[str],
    overlap: int,
    *,
    reason: str = "",
    actor: str = "system",
) -> int:
    """Give each of these tasks to `overlap` different people, if fewer were planned; returns how many changed.

    A task that was answered in full is open again and comes to people who have not answered it. Gold items,
    repeats, retired tasks and what a lead decided stay as they are. Audited; the same call again changes nothing.
    Raises StoreError for a task that is not of this project, DataError for an overlap out of bounds.
    """
    if not 1 <= overlap <= MAX_OVERLAP:
        raise DataError(f"overlap must be 1 to {MAX_OVERLAP}; found {overlap}")
    wanted = sorted(set(task_ids))

    def unit(connection: Connection) -> int:
        project_settings(connection, project)
        changed = 0
        for chunk in chunks(wanted):
            owners: dict[str, str] = dict(look_up(connection, _KNOWN, chunk))
            for task_id in chunk:
                if owners.get(task_id) != project:
                    raise StoreError(f"project '{project}' has no task '{task_id}'")
            changed += run_for(connection, _RAISE, chunk, overlap=overlap).rowcount
        if changed:
            details = {"overlap": overlap, "changed": changed, "reason": reason}
            audit.append(connection, actor, "tasks.overlap", project, **details)
        return changed

    return store.run(unit)
