"""Does an answer fit its task? Checked for every answer, whoever made it and by whichever door it comes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf.core.errors import DataError, StoreError
from rlhf.core.records import Judgement
from rlhf.core.validation import problems

MAX_TEXT_LENGTH = 100_000
MAX_SECONDS = 86_400.0
SCORES = range(1, 6)


class Attribute(BaseModel):
    """What a scores task asks for. `anchors` says what a score means: {"1": "useless", "5": "exactly it"}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    definition: str = Field(default="", max_length=10_000)
    anchors: dict[Literal["1", "2", "3", "4", "5"], str] = Field(default_factory=dict)


def checked_judgement(judgement: Judgement) -> Judgement:
    """The judgement, validated again: `model_construct` and `model_copy(update=...)` do not look.

    Raises DataError that says what does not fit.
    """
    try:
        checked = Judgement.model_validate(judgement.model_dump(warnings=False))
    except ValidationError as error:
        path, message = problems(error)[0]
        where = f"'{'.'.join(path)}' " if path else ""
        raise DataError(f"answer to task '{judgement.task_id}': {where}{message}") from error
    for name in ("reason", "demonstration"):
        check_words(name, getattr(checked, name) or "")
    if checked.kind == "demonstration" and not (checked.demonstration or "").strip():
        raise DataError(f"answer to task '{judgement.task_id}': the demonstration is empty")
    return checked


def check_words(name: str, words: str, *, limit: int = MAX_TEXT_LENGTH) -> None:
    """Refuse text that a database cannot hold: too long, with a NUL character or half a character."""
    if len(words) > limit:
        raise DataError(f"'{name}' has {len(words)} characters; at most {limit} are kept")
    if "\x00" in words:
        raise DataError(f"'{name}' holds a NUL character, which a database cannot keep")
    try:
        words.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"'{name}' holds half a character (a lone surrogate) at {error.start}") from error


def check_key_and_time(client_key: str, seconds: float | None) -> None:
    """A client key has 1 to 128 characters; a time is None or 0 to a day, in seconds."""
    if not 1 <= len(client_key) <= 128:
        raise DataError(f"a client key has 1 to 128 characters; found {len(client_key)}")
    check_words("client_key", client_key)
    if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise DataError(f"'seconds' is 0 to {MAX_SECONDS:g}; found {seconds}")


def check_attributes(attributes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A rubric's attributes with every field in place. Raises DataError for what scores cannot name."""
    checked = []
    for attribute in attributes:
        try:
            checked.append(Attribute.model_validate(attribute).model_dump())
        except ValidationError as error:
            path, message = problems(error)[0]
            raise DataError(f"attribute of the rubric: '{'.'.join(path)}' {message}") from error
    names = [attribute["name"] for attribute in checked]
    if len(set(names)) != len(names):
        raise DataError(f"two attributes of the rubric have one name: {', '.join(names)}")
    return checked


def check_fits(
    judgement: Judgement,
    *,
    kind: str,
    completion_ids: tuple[str, ...],
    attributes: Sequence[dict[str, Any]],
    flags: tuple[str, ...],
    imported: bool,
) -> None:
    """Refuse an answer of another kind or about other completions, scores that leave something out, and flags
    that the project does not offer. Imported scores may name any attributes and leave some completions out.
    """
    task_id = judgement.task_id
    if kind != judgement.kind:
        raise StoreError(f"task '{task_id}' is a {kind} task; found a {judgement.kind} answer")
    if completion_ids != judgement.completion_ids:
        raise StoreError(
            f"task '{task_id}' has completions {', '.join(completion_ids) or 'none'} in this order; "
            f"found {', '.join(judgement.completion_ids) or 'none'}"
        )
    for flag in judgement.flags:
        if flag not in flags:
            raise DataError(f"flag '{flag}' is not one of the project's: {', '.join(flags) or 'none'}")
    if len(set(judgement.flags)) != len(judgement.flags):
        raise DataError(f"a flag is set twice: {', '.join(judgement.flags)}")
    if judgement.ranking is not None and not all(judgement.ranking):
        raise DataError("a ranking has no empty group; found one")
    if judgement.scores is not None:
        _check_scores(judgement, [str(a["name"]) for a in attributes], imported)


def _check_scores(judgement: Judgement, attributes: list[str], imported: bool) -> None:
    scores = judgement.scores or {}
    known = set(judgement.completion_ids)
    if imported:
        if not scores or not all(scores.values()):
            raise DataError(
                f"scores of task '{judgement.task_id}' leave an attribute without any; found {scores}"
            )
    elif not attributes:
        raise DataError(
            "the project's rubric names no attributes to score; add a rubric version that has some"
        )
    elif set(scores) != set(attributes):
        raise DataError(
            f"scores must name {', '.join(attributes)}; found {', '.join(sorted(scores)) or 'none'}"
        )
    for attribute, by_completion in scores.items():
        if not (set(by_completion) <= known if imported else set(by_completion) == known):
            raise DataError(
                f"'{attribute}' must score every completion of the task once; "
                f"found {len(by_completion)} scores for {len(known)} completions"
            )
        for score in by_completion.values():
            if score not in SCORES:
                raise DataError(f"a score is 1 to 5; found {score} for '{attribute}'")
