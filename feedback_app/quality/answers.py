"""A project's current answers as arrays: two streamed queries, from which every measure is computed.

Comparisons are what pairs and rankings say about two completions: a pair is one comparison, a ranking of K
gives K (K - 1) / 2. Ratings are single labels: a thumb, or one score of one completion on one attribute.
Scores are never turned into comparisons: people who rate and people who compare disagree with each other
(arXiv:2308.15812).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any

import numpy as np
from sqlalchemy import JSON, Connection, Row, text

from feedback_app.quality.agreement import VERDICTS

FIRST, SECOND, TIE, BOTH_BAD = range(4)

_ANSWERS = text(
    "SELECT task_id, annotator_id, kind, preference, strength, thumb, ranking, scores, shown_order, seconds, "
    "created_at FROM current_annotations WHERE project_id = :project AND purpose = 'rate'"
).columns(ranking=JSON, scores=JSON, shown_order=JSON)
_COMPLETIONS = text(
    "SELECT tc.task_id, tc.completion_id, c.model_id, length(c.text) AS length FROM task_completions tc "
    "JOIN tasks t ON t.task_id = tc.task_id JOIN completions c ON c.completion_id = tc.completion_id "
    "WHERE t.project_id = :project ORDER BY tc.task_id, tc.position"
)
_PEOPLE = text("SELECT annotator_id, name, simulated FROM annotators")


@dataclass(frozen=True)
class Comparisons:
    """N statements about two completions. verdict: FIRST, SECOND, TIE or BOTH_BAD, in canonical order.

    strength: 1 to 3, nan where none was given. left: 1 where the chosen one stood left, 0 right, -1 elsewhere.
    pair: code of the two completions; answer: row of the answer; models, completions and lengths [N, 2].
    """

    answer: np.ndarray
    pair: np.ndarray
    task: np.ndarray
    person: np.ndarray
    verdict: np.ndarray
    strength: np.ndarray
    left: np.ndarray
    completions: np.ndarray
    models: np.ndarray
    lengths: np.ndarray
    created: np.ndarray

    def __len__(self) -> int:
        return len(self.verdict)

    def where(self, chosen_N: np.ndarray) -> Comparisons:
        """Those of a mask."""
        return Comparisons(**{f.name: getattr(self, f.name)[chosen_N] for f in fields(self)})

    @property
    def preferring(self) -> np.ndarray:
        """Which of them prefer one side."""
        result: np.ndarray = self.verdict <= SECOND
        return result


@dataclass(frozen=True)
class Labels:
    """N single labels 0 .. num_labels - 1 under one name: thumbs, or the scores on one attribute."""

    name: str
    kind: str
    num_labels: int
    unit: np.ndarray
    task: np.ndarray
    person: np.ndarray
    label: np.ndarray
    created: np.ndarray


@dataclass(frozen=True)
class Answers:
    """Everything that was loaded. people: ids in the order of the codes; models: names likewise."""

    people: list[str]
    names: dict[str, str]
    tasks: list[str]
    models: list[str]
    num_completions: int
    person: np.ndarray
    task: np.ndarray
    seconds: np.ndarray
    created: np.ndarray
    comparisons: Comparisons
    labels: list[Labels]

    def __len__(self) -> int:
        return len(self.person)


@dataclass
class _Codes:
    """Small numbers for names, in the order in which they are met."""

    index: dict[Any, int] = field(default_factory=dict)

    def __call__(self, name: Any) -> int:
        return self.index.setdefault(name, len(self.index))


@dataclass
class _Loader:
    """Collects rows; kept apart from the query so that each answer is looked at once."""

    people: _Codes = field(default_factory=_Codes)
    tasks: _Codes = field(default_factory=_Codes)
    models: _Codes = field(default_factory=_Codes)
    completions: _Codes = field(default_factory=_Codes)
    pairs: _Codes = field(default_factory=_Codes)
    units: _Codes = field(default_factory=_Codes)
    places: dict[str, list[tuple[str, int, int, int]]] = field(default_factory=dict)
    rows: list[tuple[int, int, float, float]] = field(default_factory=list)
    compared: list[tuple[Any, ...]] = field(default_factory=list)
    labelled: dict[tuple[str, str], list[tuple[int, int, int, int, float]]] = field(default_factory=dict)

    def add(self, row: Row[Any]) -> None:
        person, task, created = self.people(row.annotator_id), self.tasks(row.task_id), row.created_at
        index = len(self.rows)
        self.rows.append((person, task, np.nan if row.seconds is None else row.seconds, created))
        places = self.places.get(row.task_id, [])
        if row.preference is not None and len(places) == 2:
            verdict = VERDICTS.index(row.preference)
            left = -1
            if verdict <= SECOND and row.shown_order:
                left = int(row.shown_order[0] == places[verdict][0])
            strength = np.nan if row.strength is None else float(row.strength)
            self._compare(index, task, person, places[0], places[1], verdict, strength, left, created)
        elif row.ranking is not None:
            rank = {i: place for place, group in enumerate(row.ranking) for i in group}
            for one, other in combinations(places, 2):
                a, b = rank[one[0]], rank[other[0]]
                verdict = TIE if a == b else FIRST if a < b else SECOND
                self._compare(index, task, person, one, other, verdict, np.nan, -1, created)
        elif row.thumb is not None:
            unit = self.units(("thumb", task))
            said = (unit, task, person, int(row.thumb == "up"), created)
            self.labelled.setdefault(("thumbs", "thumb"), []).append(said)
        elif row.scores is not None:
            for attribute, by_completion in row.scores.items():
                for completion_id, score in by_completion.items():
                    unit = self.units((attribute, task, completion_id))
                    said = (unit, task, person, min(5, max(1, int(score))) - 1, created)
                    self.labelled.setdefault(("scores", attribute), []).append(said)

    def _compare(
        self,
        index: int,
        task: int,
        person: int,
        one: tuple[str, int, int, int],
        other: tuple[str, int, int, int],
        verdict: int,
        strength: float,
        left: int,
        created: float,
    ) -> None:
        pair = self.pairs((task, one[0], other[0]))
        completions, models, lengths = zip(one[1:], other[1:], strict=True)
        self.compared.append(
            (index, pair, task, person, verdict, strength, left, created, *completions, *models, *lengths)
        )


def load_answers(connection: Connection, project: str) -> Answers:
    """Read a project's current answers. Gold items, repeats and decisions are not among them."""
    loader = _Loader()
    for row in _stream(connection, _COMPLETIONS, project):
        place = (
            row.completion_id,
            loader.completions(row.completion_id),
            loader.models(row.model_id),
            row.length,
        )
        loader.places.setdefault(row.task_id, []).append(place)
    for row in _stream(connection, _ANSWERS, project):
        loader.add(row)
    names = {row.annotator_id: row.name for row in connection.execute(_PEOPLE)}
    columns = _columns(loader.rows, 4)
    return Answers(
        people=list(loader.people.index),
        names=names,
        tasks=list(loader.tasks.index),
        models=list(loader.models.index),
        num_completions=len(loader.completions.index),
        person=columns[0].astype(np.int64),
        task=columns[1].astype(np.int64),
        seconds=columns[2],
        created=columns[3],
        comparisons=_comparisons(loader.compared),
        labels=list(_labels(loader.labelled)),
    )


def _stream(connection: Connection, query: Any, project: str) -> Any:
    return connection.execution_options(yield_per=2000).execute(query, {"project": project})


def _columns(rows: list[tuple[Any, ...]], width: int) -> np.ndarray:
    """[width, N]: the columns of N rows of numbers."""
    return np.array(rows, dtype=np.float64).reshape(len(rows), width).T


def _comparisons(rows: list[tuple[Any, ...]]) -> Comparisons:
    columns = _columns(rows, 14)
    answer, pair, task, person, verdict, left = columns[[0, 1, 2, 3, 4, 6]].astype(np.int64)
    whole = columns[8:].astype(np.int64)
    return Comparisons(
        answer=answer,
        pair=pair,
        task=task,
        person=person,
        verdict=verdict,
        strength=columns[5],
        left=left,
        created=columns[7],
        completions=whole[0:2].T,
        models=whole[2:4].T,
        lengths=whole[4:6].T,
    )


def _labels(labelled: dict[tuple[str, str], list[tuple[int, int, int, int, float]]]) -> Iterator[Labels]:
    for (kind, name), rows in labelled.items():
        columns = _columns(rows, 5)
        unit, task, person, label = columns[:4].astype(np.int64)
        yield Labels(name, kind, 2 if kind == "thumbs" else 5, unit, task, person, label, columns[4])
