"""The priority queue: what a reward model is unsure of, or people dispute, comes first, but never alone.

A fixed share of a project's tasks, chosen by a seeded hash of their ids and by nothing else, stays in the
uniform queue: an honest sample of the work, on which agreement and models can be judged without the bias of
asking only what is hard. All other tasks are ordered by rank. When tasks are handed out, the two queues take
turns by the project's `uniform_share` (see `queue`), so the sample is really rated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from sqlalchemy import Connection, bindparam, text, update

from feedback_app.store import audit
from feedback_app.store.draws import draw
from feedback_app.store.engine import Store
from feedback_app.store.projects import change_settings_in, project_settings
from feedback_app.store.schema import tasks
from rlhf.core.errors import DataError, StoreError

CHUNK = 5000


@dataclass(frozen=True)
class Counts:
    """What became of a project's unfinished tasks. num_moved: a rank or a queue that changed."""

    num_uniform: int
    num_priority: int
    num_moved: int


_UNFINISHED = text(
    "SELECT task_id, selection, queue_rank, num_done + num_held AS touched FROM tasks "
    "WHERE project_id = :project AND pool = 'queue' AND retired_at IS NULL AND num_done < overlap "
    "ORDER BY task_id"
)
_MOVE = (
    update(tasks)
    .where(tasks.c.task_id == bindparam("moved"))
    .values(selection=bindparam("selection"), queue_rank=bindparam("queue_rank"))
)
_KNOWN = text("SELECT task_id FROM tasks WHERE project_id = :project")


def prioritise(
    store: Store,
    project: str,
    ranks: Mapping[str, float],
    *,
    uniform_share: float | None = None,
    seed: int = 0,
    actor: str = "system",
) -> Counts:
    """Order a project's unfinished tasks: `ranks` maps task ids to numbers, the smaller the earlier. Audited.

    Of the tasks that nobody has touched yet, `uniform_share` (by default the project's setting) stay in the
    uniform queue whatever their rank; the others go into the priority queue, those without a rank behind
    those with one. A task that somebody answered or holds stays in its queue, since that is how it was
    chosen, and moves within it by its rank. A uniform_share that is given becomes the project's setting. The
    same call again changes nothing. Raises StoreError for an unknown project or task, DataError for a rank
    that is not a number and a share outside 0 to 1.
    """
    if uniform_share is not None and not 0 <= uniform_share <= 1:
        raise DataError(f"uniform_share must be 0 to 1; found {uniform_share}")
    for task_id, rank in ranks.items():
        if not isfinite(rank):
            raise DataError(f"the rank of task '{task_id}' must be a number; found {rank}")
    behind = max(ranks.values(), default=0.0) + 1.0

    def unit(connection: Connection) -> Counts:
        share = project_settings(connection, project).uniform_share
        if uniform_share is not None and uniform_share != share:
            share = uniform_share
            change_settings_in(connection, project, {"uniform_share": share}, actor=actor)
        unfinished = connection.execute(_UNFINISHED, {"project": project}).all()
        _check_known(connection, project, set(ranks) - {row.task_id for row in unfinished})
        moves, num_uniform = [], 0
        for row in unfinished:
            if row.touched:
                selection, rank = row.selection, ranks.get(row.task_id, row.queue_rank)
            elif draw(seed, project, row.task_id, "uniform") < share:
                selection, rank = "uniform", 0.0
            else:
                selection, rank = "priority", ranks.get(row.task_id, behind)
            num_uniform += selection == "uniform"
            if (selection, rank) != (row.selection, row.queue_rank):
                moves.append({"moved": row.task_id, "selection": selection, "queue_rank": rank})
        for start in range(0, len(moves), CHUNK):
            connection.execute(_MOVE, moves[start : start + CHUNK])
        counts = Counts(num_uniform, len(unfinished) - num_uniform, len(moves))
        if moves:
            audit.append(
                connection, actor, "queue.prioritise", project, share=share, seed=seed, moved=counts.num_moved
            )
        return counts

    return store.run(unit)


def _check_known(connection: Connection, project: str, others: set[str]) -> None:
    """Finished and retired tasks may be ranked, to no effect; tasks of nobody or another project may not."""
    if not others:
        return
    unknown = others - set(connection.execute(_KNOWN, {"project": project}).scalars())
    if unknown:
        raise StoreError(f"project '{project}' has no task '{min(unknown)}'")
