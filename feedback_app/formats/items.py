"""What a row of an imported file means, whatever it looked like: a prompt, its completions, what was said.

An `Answer` speaks about the item's completions by their place in it, since their canonical order in the store
is decided by their ids ('chosen comes first' would put the answer into the order).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import ValidationError

from rlhf.core.files import BadRow
from rlhf.core.records import Completion, Prompt, TaskKind, content_id
from rlhf.core.turns import messages, named, text
from rlhf.core.validation import problems

ItemKind = Literal["prompts", "completions", "ratings"]
MAX_COMPLETIONS = 9


@dataclass(frozen=True, slots=True)
class Answer:
    """What one annotator said. Exactly one of choice, tiers, scores, demonstration and thumb is given.

    choice: place of the better completion, 'tie' or 'both_bad'. tiers: places, best first, equals together.
    scores: attribute -> place -> 1..5. annotator '': nobody is named. explanation: for gold items.
    """

    kind: TaskKind
    choice: int | str | None = None
    strength: int | None = None
    tiers: tuple[tuple[int, ...], ...] | None = None
    scores: Mapping[str, Mapping[int, int]] | None = None
    demonstration: str | None = None
    thumb: Literal["up", "down"] | None = None
    annotator: str = ""
    reason: str = ""
    explanation: str = ""
    about: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One imported row. Answers are about `completions`, or about those at the places in `Answer.about`."""

    prompt: Prompt
    completions: tuple[Completion, ...] = ()
    answers: tuple[Answer, ...] = ()

    @property
    def kind(self) -> ItemKind:
        return "ratings" if self.answers else "completions" if self.completions else "prompts"


def make_prompt(row: Mapping[str, Any], value: Any, source: str) -> Prompt:
    """The prompt of a row: text or messages, with the ids and the context that the row may carry."""
    fields: dict[str, Any] = {"messages": messages(value), "source": row.get("source") or source}
    for name in ("prompt_id", "group_id", "context"):
        if row.get(name) is not None:
            fields[name] = text(row[name], name)
    if isinstance(row.get("metadata"), dict):
        fields["metadata"] = row["metadata"]
    return validated(Prompt, fields)


def make_completion(
    prompt: Prompt, value: Any, *, model: Any = "", completion_id: Any = "", name: str = "completion"
) -> Completion:
    """A completion, which may be one assistant message or the whole conversation up to it."""
    content = completion_text(prompt, value, name)
    model_id = text(model, "model") if model else ""
    return Completion(
        completion_id=text(completion_id, "completion_id")
        if completion_id
        else content_id("c", prompt.prompt_id, content, model_id, "import"),
        prompt_id=prompt.prompt_id,
        text=content,
        model_id=model_id,
        sampling={"imported": True},
    )


def completion_text(prompt: Prompt, value: Any, name: str) -> str:
    """The text of one side; the prompt's turns in front of it are taken off."""
    if not isinstance(value, list):
        return text(value, name)
    turns = messages(value)
    known = [m.model_dump() for m in prompt.messages]
    if len(turns) > len(known) and turns[: len(known)] == known:
        turns = turns[len(known) :]
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns)
        raise BadRow(f"'{name}' must be one assistant turn after the prompt; found {roles}")
    return str(turns[0]["content"])


def number(value: Any, name: str) -> float:
    """A number, also where a CSV or an export has it as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadRow(f"'{name}' is {named(value)}; expected a number")
    try:
        found = float(value)
    except ValueError as error:
        raise BadRow(f"'{name}' is {named(value)}; expected a number") from error
    if found != found or abs(found) == float("inf"):
        raise BadRow(f"'{name}' is {value}; expected a finite number")
    return found


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number between two bounds."""
    found = number(value, name)
    if found != int(found) or not low <= found <= high:
        raise BadRow(f"'{name}' is {named(value)}; expected a whole number from {low} to {high}")
    return int(found)


def truth(value: Any, name: str) -> bool:
    """A yes or no, also where a CSV has it as text."""
    if isinstance(value, bool):
        return value
    said = str(value).strip().lower()
    if said in ("true", "1", "1.0", "yes", "up", "good"):
        return True
    if said in ("false", "0", "0.0", "no", "down", "bad", "-1"):
        return False
    raise BadRow(f"'{name}' is {named(value)}; expected true or false")


def signed(value: Any, name: str) -> dict[str, Any]:
    """A preference from -3 (the first is much better) to 3 (the second is) as an answer's fields."""
    found = whole(value, name, -3, 3)
    if found == 0:
        return {"kind": "pairwise", "choice": "tie"}
    return {"kind": "pairwise", "choice": int(found > 0), "strength": abs(found)}


def on_scale(value: Any, name: str, scale: tuple[float, float]) -> int:
    """A score on somebody's scale as the nearest of ours, 1 to 5."""
    low, high = scale
    found = number(value, name)
    if not low <= found <= high:
        raise BadRow(f"'{name}' is {found:g}; expected {low:g} to {high:g} (--scale says otherwise)")
    return 1 + int((found - low) / (high - low) * 4 + 0.5)


def refuse_same(completions: Sequence[Completion]) -> tuple[Completion, ...]:
    """The completions, unless two are the same text by the same model: then nothing is compared."""
    ids = [completion.completion_id for completion in completions]
    if len(set(ids)) != len(ids):
        raise BadRow("two completions are the same text; nothing is compared")
    if not 1 <= len(ids) <= MAX_COMPLETIONS:
        raise BadRow(f"found {len(ids)} completions; expected 1 to {MAX_COMPLETIONS}")
    return tuple(completions)


def refuse_unknown(row: Mapping[str, Any], known: frozenset[str], ignored: frozenset[str]) -> None:
    """A column that nobody asked for may be a misspelt one; `--ignore` says that it is not."""
    for name in row:
        if name not in known and name not in ignored and "*" not in ignored:
            raise BadRow(_unknown(name, known))


@lru_cache(maxsize=256)
def _unknown(name: str, known: frozenset[str]) -> str:
    return (
        f"'{name}' is not a known column; known: {', '.join(sorted(known))} (--ignore '{name}' leaves it out)"
    )


def validated(model: type[Any], fields: dict[str, Any]) -> Any:
    """A record of these fields; pydantic's complaint becomes the reason why the row is bad."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        path, message = problems(error)[0]
        raise BadRow(f"'{'.'.join(path)}' {message}" if path else message) from error
