"""Panels about work: how much was done when, what is left, who holds what."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from feedback_app.lead.panels import Column, Panel, tile
from feedback_app.quality.drift import DAY_S

HOUR_S = 3600.0
DAYS_SHOWN, HOURS_SHOWN = 30, 48
MAX_LEASES = 500

_RECENT = text(
    "SELECT created_at, annotator_id FROM annotations "
    "WHERE project_id = :project AND created_at >= :since AND coalesce(supersedes, '') = '' AND origin <> 'import'"
)
_QUEUE = text(
    "SELECT kind, selection, count(*) AS tasks, sum(CASE WHEN is_open THEN 1 ELSE 0 END) AS open_tasks, "
    "sum(overlap) AS places, sum(num_done) AS done, sum(num_held) AS held, "
    "sum(CASE WHEN retired_at IS NOT NULL THEN 1 ELSE 0 END) AS retired FROM tasks "
    "WHERE project_id = :project AND pool = 'queue' GROUP BY kind, selection ORDER BY kind, selection"
)
_HELD = text(
    "SELECT l.lease_id, a.name, t.kind, t.selection, l.purpose, l.created_at, l.heartbeat_at, l.expires_at "
    "FROM leases l JOIN annotators a ON a.annotator_id = l.annotator_id JOIN tasks t ON t.task_id = l.task_id "
    f"WHERE l.project_id = :project AND l.state = 'active' ORDER BY l.expires_at LIMIT {MAX_LEASES}"
)
_ENDED = text(
    "SELECT l.state, count(*) AS number FROM leases l WHERE l.project_id = :project "
    "AND l.created_at >= :since AND l.state <> 'active' GROUP BY l.state ORDER BY l.state"
)
_SKIPS = text(
    "SELECT reason, count(*) AS number FROM skips WHERE project_id = :project "
    "GROUP BY reason ORDER BY count(*) DESC, reason LIMIT 20"
)
_SKIPS_BY_PERSON = text(
    "SELECT annotator_id, count(*) AS number FROM skips WHERE project_id = :project GROUP BY annotator_id"
)


def throughput_panels(
    connection: Connection, project: str, now: float
) -> tuple[list[dict[str, Any]], list[Panel]]:
    """Tiles and panels of what came in lately through the desk and the API; imports are not work done here."""
    start = np.floor(now / DAY_S) * DAY_S - (DAYS_SHOWN - 1) * DAY_S
    rows = connection.execute(_RECENT, {"project": project, "since": start}).tuples().all()
    created = np.array([row[0] for row in rows], dtype=np.float64)
    tiles = [
        tile("answers today", int((created >= np.floor(now / DAY_S) * DAY_S).sum()), note="since 0:00 UTC"),
        tile(
            "people this week", len({person for at, person in rows if at >= now - 7 * DAY_S}), note="7 days"
        ),
    ]
    first_hour = np.floor(now / HOUR_S) * HOUR_S - (HOURS_SHOWN - 1) * HOUR_S
    return tiles, [
        _counted("throughput_days", "Answers per day", "day", created, start, DAY_S, DAYS_SHOWN),
        _counted("throughput_hours", "Answers per hour", "time", created, first_hour, HOUR_S, HOURS_SHOWN),
    ]


def _counted(
    name: str, title: str, kind: Any, created: np.ndarray, start: float, width: float, number: int
) -> Panel:
    place = np.floor((created - start) / width).astype(np.int64)
    counts = np.bincount(place[(place >= 0) & (place < number)], minlength=number)
    rows = [{"from": start + i * width, "answers": int(count)} for i, count in enumerate(counts)]
    return Panel(
        name,
        title,
        (Column("from", "day" if width == DAY_S else "hour", kind), Column("answers", "answers", "count")),
        rows if counts.any() else [],
        {"kind": "bars", "x": "from", "y": "answers"},
        "UTC; without imports.",
        "Nothing came in lately.",
    )


def progress_panel(connection: Connection, project: str) -> tuple[list[dict[str, Any]], Panel]:
    """How far the queue is, by kind of task and by how the tasks were chosen."""
    rows = []
    for row in connection.execute(_QUEUE, {"project": project}):
        done, places = int(row.done), int(row.places)
        rows.append(
            {
                "kind": row.kind,
                "selection": row.selection,
                "tasks": row.tasks,
                "open": int(row.open_tasks),
                "done": done,
                "held": int(row.held),
                "free": max(0, places - done - int(row.held)),
                "retired": int(row.retired),
                "share": round(done / places, 4) if places else 0.0,
            }
        )
    total = {key: sum(row[key] for row in rows) for key in ("tasks", "open", "done", "held", "free")}
    places = total["done"] + total["held"] + total["free"]
    tiles = [
        tile(
            "done", total["done"] / places if places else None, "share", f"{total['done']} of {places} places"
        ),
        tile("open tasks", total["open"]),
        tile("held now", total["held"]),
    ]
    panel = Panel(
        "queue",
        "The queue",
        (
            Column("kind", "kind"),
            Column(
                "selection",
                "chosen by",
                help="uniform: at random; priority: put first, by a reward model or a lead",
            ),
            Column("share", "done", "share"),
            Column("tasks", "tasks", "count"),
            Column("open", "open tasks", "count"),
            Column("done", "places done", "count"),
            Column("held", "held", "count"),
            Column("free", "free", "count"),
            Column("retired", "retired", "count"),
        ),
        rows,
        {"kind": "progress", "label": ["kind", "selection"], "parts": ["done", "held", "free"]},
        "A task has as many places as people are to answer it. Gold items and repeats are not in the queue.",
        "No tasks yet.",
    )
    return tiles, panel


def lease_panels(connection: Connection, project: str, now: float) -> list[Panel]:
    """Who holds what, and how leases ended in the last seven days."""
    held = [
        {
            "name": row.name,
            "kind": row.kind,
            "selection": row.selection,
            "since": row.created_at,
            "heartbeat": row.heartbeat_at,
            "expires": row.expires_at,
            "state": "expired" if row.expires_at < now else "held",
            "lease": row.lease_id,
        }
        for row in connection.execute(_HELD, {"project": project})
    ]
    ended = [
        {"state": row.state, "number": row.number}
        for row in connection.execute(_ENDED, {"project": project, "since": now - 7 * DAY_S})
    ]
    return [
        Panel(
            "leases",
            "Held now",
            (
                Column("name", "by"),
                Column("kind", "kind"),
                Column("selection", "chosen by"),
                Column("since", "since", "time"),
                Column("heartbeat", "last sign of life", "time"),
                Column("expires", "until", "time"),
                Column("state", "state"),
                Column("lease", "lease"),
            ),
            held,
            None,
            "A lease whose time is over is given back when the next person asks for work; an answer to it still "
            "counts.",
            "Nobody holds a task.",
            "release",
        ),
        Panel(
            "lease_ends",
            "How leases ended, 7 days",
            (Column("state", "ended"), Column("number", "leases", "count")),
            ended,
            {"kind": "ranks", "label": ["state"], "y": "number"},
            empty="No lease has ended in the last seven days.",
        ),
        _reasons(connection, project),
    ]


def _reasons(connection: Connection, project: str) -> Panel:
    rows = [
        {"reason": row.reason, "number": row.number}
        for row in connection.execute(_SKIPS, {"project": project})
    ]
    return Panel(
        "skips",
        "Why people skip",
        (Column("reason", "reason"), Column("number", "skips", "count")),
        rows,
        {"kind": "ranks", "label": ["reason"], "y": "number"},
        empty="Nobody has skipped a task.",
    )


def skips_by_person(connection: Connection, project: str) -> dict[str, int]:
    return {
        row.annotator_id: row.number for row in connection.execute(_SKIPS_BY_PERSON, {"project": project})
    }
