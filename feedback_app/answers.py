"""An answer in the page's words, about sides 'a', 'b', ..., and in the store's, about completions.

The page never learns a completion's id: two tasks with the same id would tell which answers one model wrote.
The order in which somebody saw the sides is the lease's `shown_order`; only here are the two translated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from feedback_app.store.leases import TaskView
from rlhf.core.errors import DataError

SIDES = "abcdefghi"
MAX_REASON = 10_000
MAX_WRITTEN = 100_000

Choice = Literal["a", "b", "tie", "both_bad"]
Side = Annotated[str, Field(pattern="^[a-i]$")]
Score = Annotated[int, Field(ge=1, le=5)]
Tier = Annotated[tuple[Side, ...], Field(min_length=1, max_length=9)]
AttributeName = Annotated[str, Field(min_length=1, max_length=128)]


class Given(BaseModel):
    """What somebody has chosen and written so far; only the fields of the task's kind are filled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choice: Choice | None = None
    strength: int | None = Field(default=None, ge=1, le=3)
    ranking: tuple[Tier, ...] | None = Field(default=None, max_length=9)
    scores: dict[AttributeName, dict[Side, Score]] | None = Field(default=None, max_length=32)
    text: str | None = Field(default=None, max_length=MAX_WRITTEN)
    thumb: Literal["up", "down"] | None = None
    reason: str = Field(default="", max_length=MAX_REASON)
    flags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(default=(), max_length=16)


def as_stored(view: TaskView, given: Given) -> dict[str, Any]:
    """The fields of a judgement about the task's completions; whether they fit the project is the store's to say.

    Raises DataError, naming what is missing, for an answer that is not whole or not of the task's kind.
    """
    filled = {"choice", "ranking", "scores", "text", "thumb"} & set(given.model_dump(exclude_none=True))
    wanted = _FIELD_OF_KIND[view.kind]
    if filled != {wanted} or (given.strength is not None and wanted != "choice"):
        found = ", ".join(sorted(filled)) or "nothing"
        raise DataError(f"a {view.kind} task is answered with '{wanted}'; found {found}")
    ids = dict(zip(SIDES, view.shown_order, strict=False))
    fields: dict[str, Any]
    if given.choice is not None:
        fields = _preference(view, given)
    elif given.ranking is not None:
        _whole("ranking", [side for tier in given.ranking for side in tier], ids)
        fields = {"ranking": tuple(tuple(ids[side] for side in tier) for tier in given.ranking)}
    elif given.scores is not None:
        for name, values in given.scores.items():
            _whole(f"scores of '{name}'", list(values), ids)
        fields = {"scores": {n: {ids[side]: s for side, s in v.items()} for n, v in given.scores.items()}}
    elif given.text is not None:
        if not given.text.strip():
            raise DataError("a written answer has at least one word; found none")
        fields = {"demonstration": given.text.strip()}
    else:
        fields = {"thumb": given.thumb}
    return {**fields, "reason": given.reason.strip(), "flags": tuple(dict.fromkeys(given.flags))}


def as_shown(
    completion_ids: Sequence[str], shown_order: Sequence[str], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """The same in the page's words: `stored` holds fields of a judgement, or what a gold item expects.

    `completion_ids` are in canonical order, which "first" and "second" speak of.
    """
    sides = dict(zip(shown_order, SIDES, strict=False))
    given: dict[str, Any] = {}
    preference = stored.get("preference")
    if preference in ("tie", "both_bad"):
        given["choice"] = preference
    elif preference is not None:
        chosen = completion_ids[0 if preference == "first" else 1]
        given |= {"choice": sides[chosen], "strength": stored.get("strength")}
    if stored.get("ranking"):
        given["ranking"] = [sorted(sides[i] for i in tier) for tier in stored["ranking"]]
    elif stored.get("best"):
        given["best"] = sides[stored["best"]]
    if stored.get("scores"):
        given["scores"] = {
            name: {sides[i]: score for i, score in values.items()}
            for name, values in stored["scores"].items()
        }
    if stored.get("demonstration") is not None:
        given["text"] = stored["demonstration"]
    if stored.get("thumb"):
        given["thumb"] = stored["thumb"]
    if stored.get("reason"):
        given["reason"] = stored["reason"]
    if stored.get("flags"):
        given["flags"] = list(stored["flags"])
    return given


_FIELD_OF_KIND = {
    "pairwise": "choice",
    "ranking": "ranking",
    "scores": "scores",
    "demonstration": "text",
    "thumbs": "thumb",
}


def _preference(view: TaskView, given: Given) -> dict[str, Any]:
    if (given.strength is None) != (given.choice in ("tie", "both_bad")):
        raise DataError("a preference has a strength of 1 to 3, a tie and 'both bad' have none")
    if given.choice in ("tie", "both_bad"):
        return {"preference": given.choice, "strength": None}
    chosen = view.shown_order[0 if given.choice == "a" else 1]
    first = chosen == view.completions[0].completion_id
    return {"preference": "first" if first else "second", "strength": given.strength}


def _whole(what: str, sides: Sequence[str], ids: Mapping[str, str]) -> None:
    if sorted(sides) != sorted(ids):
        raise DataError(f"{what}: expected {', '.join(ids)} once each; found {', '.join(sides) or 'none'}")
