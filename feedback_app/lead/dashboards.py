"""The dashboards of a project, computed from its answers and kept until something changes.

Everything that reads all answers is computed at once and cached per project under a key that changes with
every answer, deletion and setting; one thread computes while others wait for it. Where computing takes long, a
result is also kept for ten times as long as it took (at most a minute), so that dashboards of a busy project
cost a tenth of a processor however often they are opened. What is cheap and changes without an answer
(leases, throughput) is read each time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Connection, text

from feedback_app.lead.agreement_panels import agreement_panel, biases_panel, labels_panel
from feedback_app.lead.drift_panels import drift_panels
from feedback_app.lead.model_panels import model_panels
from feedback_app.lead.panels import Panel, View, tile
from feedback_app.lead.people_panels import people_panel
from feedback_app.lead.work_panels import lease_panels, progress_panel, skips_by_person, throughput_panels
from feedback_app.quality.answers import load_answers
from feedback_app.quality.consistency import gold_accuracy, same_answer, self_agreement
from feedback_app.quality.people import people_quality
from feedback_app.store.engine import Store
from feedback_app.store.gold import tally
from feedback_app.store.projects import project_settings
from feedback_app.store.repeats import repeat_pairs
from rlhf.core.stats import Interval

ViewName = Literal["overview", "annotators", "queue", "models", "drift"]
VIEWS: tuple[ViewName, ...] = get_args(ViewName)
MAX_CACHED = 8
LONG_S, KEPT_TIMES, MAX_KEPT_S = 0.25, 10, 60.0

# Answers are append-only: their number and newest time change with each of them, tombstones with each erasure.
_STAMP = text(
    "SELECT (SELECT count(*) FROM annotations WHERE project_id = :project) AS answers, "
    "(SELECT max(created_at) FROM annotations WHERE project_id = :project) AS newest, "
    "(SELECT count(*) FROM tombstones) AS erased"
)


class Dashboards:
    """The views of every project of one store. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._computed: OrderedDict[str, _Computed] = OrderedDict()
        self._lock = threading.Lock()

    def view(self, project: str, name: ViewName) -> View:
        """One view. Raises StoreError for an unknown project."""
        now = time.time()
        with self.store.read() as connection:
            settings = project_settings(connection, project)
            found = self._quality(connection, project, settings.min_seconds)
            if name == "annotators":
                people = people_panel(
                    found["people"],
                    found["names"],
                    found["gold"],
                    found["consistency"],
                    skips_by_person(connection, project),
                )
                return View(panels=[people])
            if name in ("models", "drift"):
                return View(panels=found[name])
            progress_tiles, progress = progress_panel(connection, project)
            if name == "queue":
                return View(progress_tiles, [progress, *lease_panels(connection, project, now)])
            tiles, throughput = throughput_panels(connection, project, now)
        agreement, labels = found["agreement"], found["labels"]
        first = agreement.rows[0] if agreement.rows else None
        return View(
            [
                tile("answers", found["num_answers"], note="current, without gold and repeats"),
                *tiles,
                *progress_tiles,
                tile(first["measure"], first["value"], "number", _range(first))
                if first
                else tile("agreement", None),
            ],
            [throughput[0], agreement, labels, found["biases"], progress, throughput[1]],
        )

    def panel(self, project: str, name: str) -> Panel | None:
        """The panel of that name, wherever it is shown; None where there is none."""
        for view in VIEWS:
            panel = self.view(project, view).panel(name)
            if panel is not None:
                return panel
        return None

    def _quality(self, connection: Connection, project: str, min_seconds: float) -> dict[str, Any]:
        stamp = (*connection.execute(_STAMP, {"project": project}).one(), min_seconds)
        with self._lock:
            known = self._computed.get(project)
            if known is None or not known.holds(stamp):
                began = time.monotonic()
                values = compute(connection, project, min_seconds)
                known = _Computed(stamp, values, time.monotonic(), time.monotonic() - began)
                self._computed[project] = known
            self._computed.move_to_end(project)
            while len(self._computed) > MAX_CACHED:
                self._computed.popitem(last=False)
            return known.values


@dataclass(frozen=True)
class _Computed:
    """What was computed, for which state of the answers, when (monotonic seconds), and how long it took."""

    stamp: tuple[Any, ...]
    values: dict[str, Any]
    at: float
    took_s: float

    def holds(self, stamp: tuple[Any, ...]) -> bool:
        if self.stamp == stamp:
            return True
        settings_changed = self.stamp[-1] != stamp[-1]
        kept_s = min(MAX_KEPT_S, KEPT_TIMES * self.took_s) if self.took_s > LONG_S else 0.0
        return not settings_changed and time.monotonic() - self.at < kept_s


def compute(connection: Connection, project: str, min_seconds: float) -> dict[str, Any]:
    """Everything that needs all answers of a project."""
    answers = load_answers(connection, project)
    gold = {t.annotator_id: gold_accuracy(t.num_correct, t.num_answers) for t in tally(connection, project)}
    return {
        "num_answers": len(answers),
        "names": answers.names,
        "agreement": agreement_panel(answers),
        "labels": labels_panel(answers),
        "biases": biases_panel(answers),
        "people": people_quality(answers, min_seconds=min_seconds),
        "gold": gold,
        "consistency": _consistency(connection, project),
        "models": model_panels(answers),
        "drift": drift_panels(answers),
    }


def _consistency(connection: Connection, project: str) -> dict[str, Interval]:
    same: dict[str, list[bool]] = {}
    for pair in repeat_pairs(connection, project):
        same.setdefault(pair.annotator_id, []).append(same_answer(pair.kind, pair.first, pair.again))
    return {person: interval for person, given in same.items() if (interval := self_agreement(given))}


def _range(row: dict[str, Any]) -> str:
    return f"{row['value_low']:.2f} to {row['value_high']:.2f}"
