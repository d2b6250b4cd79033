"""How far somebody is: answers, this sitting, days in a row, time per task, what is left.

These figures go with every task, so they must not slow down with the number of answers: the store keeps the
count, and only the last answers are looked at. Corrections are not counted: they are the same answer.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from sqlalchemy import Connection, text

SITTING_GAP_S = 30 * 60.0
LAST_ANSWERS = 200
MAX_OPEN = 500

_COUNT = text("SELECT num_answers FROM progress WHERE annotator_id = :annotator AND project_id = :project")
# coalesce: without it SQLite walks the index of `supersedes`, where nearly every answer of everybody is NULL.
_LAST = text(
    "SELECT created_at, seconds FROM annotations WHERE annotator_id = :annotator AND project_id = :project "
    f"AND coalesce(supersedes, '') = '' AND origin <> 'import' ORDER BY created_at DESC LIMIT {LAST_ANSWERS}"
)
# What is left for this person: open tasks they have not met, and the tasks they hold already.
_OPEN = text(
    "SELECT (SELECT count(*) FROM (SELECT task_id FROM tasks WHERE project_id = :project AND is_open "
    f"LIMIT {MAX_OPEN}) q WHERE NOT EXISTS (SELECT 1 FROM leases l WHERE l.task_id = q.task_id "
    "AND l.annotator_id = :annotator AND l.state IN ('active', 'submitted', 'skipped'))) "
    "+ (SELECT count(*) FROM leases l WHERE l.annotator_id = :annotator AND l.project_id = :project "
    "AND l.state = 'active')"
)
# round(x - 0.5) is floor(x) on both databases; an index holds both columns.
_DAYS = text(
    "SELECT DISTINCT round((created_at + :shift) / 86400 - 0.5) FROM annotations "
    "WHERE annotator_id = :annotator AND created_at <= :now"
)


def progress_of(
    connection: Connection, annotator_id: str, project: str, *, now: float | None = None
) -> dict[str, Any]:
    """{mine, sitting, seconds}: answers in all, answers since the last break, median seconds per task.

    `sitting` and `seconds` look at the last 200 answers.
    """
    who = {"annotator": annotator_id, "project": project}
    last = connection.execute(_LAST, who).all()
    sitting, later = 0, time.time() if now is None else now
    for row in last:
        if later - row.created_at > SITTING_GAP_S:
            break
        sitting, later = sitting + 1, row.created_at
    times = [row.seconds for row in last if row.seconds is not None]
    return {
        "mine": connection.execute(_COUNT, who).scalar() or 0,
        "sitting": sitting,
        "seconds": round(median(times), 1) if times else None,
    }


def open_tasks(connection: Connection, annotator_id: str, project: str) -> dict[str, Any]:
    """{open, more}: tasks left for this person; `more` when there are so many that counting stopped."""
    count = connection.execute(_OPEN, {"annotator": annotator_id, "project": project}).scalar_one()
    return {"open": count, "more": count >= MAX_OPEN}


def days_in_a_row(
    connection: Connection, annotator_id: str, *, shift_s: float, now: float | None = None
) -> int:
    """Days with an answer, ending today (or yesterday: today is not over). `shift_s`: local time minus UTC."""
    now = time.time() if now is None else now
    keys = {"annotator": annotator_id, "shift": shift_s, "now": now}
    days = {int(day) for day in connection.execute(_DAYS, keys).scalars()}
    today = int((now + shift_s) // 86400)
    day = today if today in days else today - 1
    streak = 0
    while day - streak in days:
        streak += 1
    return streak
