"""Which task comes next: gold and repeats by the draw, otherwise one of two queues, by the draw again.

The "uniform" queue is a random sample of the work, which honest evaluation needs; the "priority" queue is what
a reward model (or a lead) asked to have first. While both have work, `uniform_share` of the tasks come from
the uniform one, so neither is ever starved.

Finding a task stays fast however many answers there are: first the head of the queue (64 open tasks), where
newly urgent tasks appear; then on from the place where this annotator was last; only then everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from feedback_app.store.draws import draw
from feedback_app.store.gold import next_gold
from feedback_app.store.projects import ProjectSettings
from feedback_app.store.repeats import next_repeat

HEAD_OF_QUEUE = 64
LAST_LEASES = 64


@dataclass(frozen=True)
class Found:
    """A task to hand out, and what its answer will be for."""

    task_id: str
    purpose: str


_NOT_MINE = (
    "NOT EXISTS (SELECT 1 FROM leases l WHERE l.task_id = q.task_id AND l.annotator_id = :annotator "
    "AND l.state IN ('active', 'submitted', 'skipped')) "
)
_OPEN = (
    "SELECT q.task_id FROM tasks q WHERE q.project_id = :project AND q.selection = :selection AND q.is_open "
)
_IN_ORDER = "ORDER BY q.queue_rank, q.sort_key LIMIT 1"
_AT_HEAD = (
    "SELECT q.task_id FROM (SELECT task_id, queue_rank, sort_key FROM tasks WHERE project_id = :project "
    "AND selection = :selection AND is_open "
    f"ORDER BY queue_rank, sort_key LIMIT {HEAD_OF_QUEUE}) q WHERE {_NOT_MINE} {_IN_ORDER}"
)
# Where they were last in this queue. Only some leases are looked at: the place saves time, it decides nothing.
_LAST_PLACE = text(
    "SELECT t.queue_rank, t.sort_key FROM (SELECT task_id, created_at FROM leases "
    "WHERE annotator_id = :annotator AND project_id = :project "
    f"ORDER BY created_at DESC LIMIT {LAST_LEASES}) l JOIN tasks t ON t.task_id = l.task_id "
    "WHERE t.selection = :selection AND t.pool = 'queue' ORDER BY l.created_at DESC LIMIT 1"
)
_AFTER = f"{_OPEN} AND (q.queue_rank, q.sort_key) > (:queue_rank, :sort_key) AND {_NOT_MINE} {_IN_ORDER}"
_ANYWHERE = f"{_OPEN} AND {_NOT_MINE} {_IN_ORDER}"
_SKIP_LOCKED = " FOR UPDATE OF q SKIP LOCKED"
# PostgreSQL locks rows of a table, not of a subquery: the head's candidates are looked up once more.
_AT_HEAD_LOCKED = f"{_OPEN} AND q.task_id IN ({_AT_HEAD[: -len('LIMIT 1')]}) {_IN_ORDER}{_SKIP_LOCKED}"
FINDERS = {
    "sqlite": tuple(text(query) for query in (_AT_HEAD, _AFTER, _ANYWHERE)),
    "postgresql": tuple(text(q) for q in (_AT_HEAD_LOCKED, _AFTER + _SKIP_LOCKED, _ANYWHERE + _SKIP_LOCKED)),
}
# On PostgreSQL: what is open though somebody has it locked, and waiting until they are done with it.
_OPEN_BUT_LOCKED = text(_ANYWHERE)
_WAIT_FOR = text("SELECT is_open FROM tasks WHERE task_id = :task_id FOR UPDATE")
# How far they are, and whether anything is prioritised at all: mostly nothing is, and then nobody looks there.
_POSITION = text(
    "SELECT (SELECT num_answers + num_skips FROM progress WHERE annotator_id = :annotator "
    "AND project_id = :project) AS num_done, EXISTS (SELECT 1 FROM tasks q WHERE q.project_id = :project "
    "AND q.selection = 'priority' AND q.is_open) AS has_priority"
)


def find_task(
    connection: Connection, annotator_id: str, project: str, settings: ProjectSettings, num_held: int
) -> Found | None:
    """The next task for this person, None when nothing is left. `num_held`: how many they hold now."""
    who = {"annotator": annotator_id, "project": project}
    so_far = connection.execute(_POSITION, who).one()
    position = (so_far.num_done or 0) + num_held
    chance = draw(annotator_id, project, position, "what")
    if chance < settings.gold_rate:
        gold = next_gold(connection, annotator_id, project, position)
        if gold is not None:
            return Found(gold, "gold")
    elif chance < settings.gold_rate + settings.repeat_rate:
        again = next_repeat(connection, annotator_id, project, position, repeat_after=settings.repeat_after)
        if again is not None:
            return Found(again, "repeat")
    queues = ["uniform"]
    if so_far.has_priority:
        uniform_first = draw(annotator_id, project, position, "queue") < settings.uniform_share
        queues.insert(1 if uniform_first else 0, "priority")
    for selection in queues:
        found = _in_queue(connection, {**who, "selection": selection})
        if found is not None:
            return Found(found, "rate")
    return None


def _in_queue(connection: Connection, where: dict[str, Any]) -> str | None:
    at_head, after, anywhere = FINDERS[connection.dialect.name]
    found = connection.execute(at_head, where).scalar()
    if found is not None:
        return str(found)
    place = connection.execute(_LAST_PLACE, where).first()
    if place is not None:
        from_there = {**where, "queue_rank": place.queue_rank, "sort_key": place.sort_key}
        found = connection.execute(after, from_there).scalar()
        if found is not None:
            return str(found)
    found = connection.execute(anywhere, where).scalar()
    if found is None and connection.dialect.name == "postgresql":
        found = _after_waiting(connection, where)
    return None if found is None else str(found)


def _after_waiting(connection: Connection, where: dict[str, Any]) -> str | None:
    """A task that was passed over because somebody had locked it, and that is still open once they are done.

    Near the end of a queue a few people look at the same tasks; whoever finds all of them locked would be told
    that nothing is left.
    """
    while (candidate := connection.execute(_OPEN_BUT_LOCKED, where).scalar()) is not None:
        if connection.execute(_WAIT_FOR, {"task_id": candidate}).scalar():
            return str(candidate)
    return None
