"""When do the answers to one task contradict each other? Decided as they come, kept at the task.

    pairwise   somebody prefers the first completion and somebody the second
    ranking    two people order the completions more against each other than alike (Kendall's tau-b below 0)
    scores     on some attribute of some completion the scores are 3 or more apart (of 1 to 5)
    thumbs     one up, one down
Demonstrations cannot contradict each other. A tie against a preference is a difference, not a contradiction.

A dispute may also be one of a reward model with the raters (see `doubts`); it lasts while a doubted answer stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from sqlalchemy import JSON, Connection, text

from feedback_app.store.doubts import doubts_of
from feedback_app.store.gold import tau

FAR_APART = 3

_OPINIONS = text(
    "SELECT preference, ranking, scores, thumb FROM current_annotations WHERE task_id = :task_id"
).columns(ranking=JSON, scores=JSON)
_MARK = text(
    "UPDATE tasks SET dispute = :state WHERE task_id = :task_id AND (dispute IS NULL OR dispute = 'open')"
)


def note_dispute(connection: Connection, task_id: str, kind: str, known: str | None) -> None:
    """Look at a task's answers again after one came or went; a lead's decision stays a decision."""
    if known == "decided" or kind == "demonstration":
        return
    opinions = connection.execute(_OPINIONS, {"task_id": task_id}).all()
    state = "open" if contradict(kind, opinions) else None
    if state is None and known == "open" and doubts_of(connection, task_id) is not None:
        state = "open"
    if state != known:
        connection.execute(_MARK, {"task_id": task_id, "state": state})


def contradict(kind: str, opinions: Sequence[Any]) -> bool:
    """Whether answers (with `preference`, `ranking`, `scores`, `thumb`) contradict each other."""
    if len(opinions) < 2:
        return False
    if kind == "pairwise":
        return {"first", "second"} <= {opinion.preference for opinion in opinions}
    if kind == "thumbs":
        return len({opinion.thumb for opinion in opinions}) > 1
    if kind == "ranking":
        rankings = [tuple(tuple(group) for group in opinion.ranking) for opinion in opinions]
        return any(tau(one, other) < 0 for one, other in combinations(rankings, 2))
    if kind == "scores":
        return any(max(given) - min(given) >= FAR_APART for given in _scores(opinions).values())
    return False


def describe(kind: str, opinions: Sequence[Any]) -> str:
    """How the answers differ, in a line: '2 first, 1 second' or 'helpfulness 1 to 5'."""
    if kind == "scores":
        spreads = {
            f"{attribute} {min(given)} to {max(given)}": None
            for (attribute, _), given in _scores(opinions).items()
            if max(given) - min(given) >= FAR_APART
        }
        return ", ".join(spreads)
    if kind == "ranking":
        orders = Counter(" > ".join(" = ".join(group) for group in opinion.ranking) for opinion in opinions)
        return f"{len(orders)} different orders of {len(opinions)}"
    said = Counter(opinion.preference or opinion.thumb for opinion in opinions)
    return ", ".join(f"{number} {verdict.replace('_', ' ')}" for verdict, number in said.most_common())


def _scores(opinions: Sequence[Any]) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for opinion in opinions:
        for attribute, by_completion in (opinion.scores or {}).items():
            for completion_id, score in by_completion.items():
                found.setdefault((attribute, completion_id), []).append(score)
    return found
