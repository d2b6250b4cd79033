"""Does a person agree with themselves, and with items whose answer is known?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.core.stats import Interval, wilson_interval


def self_agreement(same: Sequence[bool]) -> Interval | None:
    """Share of repeated tasks on which a person said the same twice, with Wilson's interval. None without any."""
    return wilson_interval(sum(same), len(same)) if same else None


def gold_accuracy(num_correct: int, num_answers: int) -> Interval | None:
    """Share of gold items answered as expected, with Wilson's interval. None without any."""
    return wilson_interval(num_correct, num_answers) if num_answers else None


def same_answer(kind: str, first: Mapping[str, Any], again: Mapping[str, Any]) -> bool:
    """Whether two answers of a person to one thing say the same, in the task's own terms and not by side.

    A pair: the same verdict, whatever its strength. A ranking: the same first place. Scores: none moved by
    more than a point. A thumb: the same.
    """
    if kind == "scores":
        one, other = first["scores"] or {}, again["scores"] or {}
        return one.keys() == other.keys() and all(
            abs(score - other[attribute].get(completion, 99)) <= 1
            for attribute, by_completion in one.items()
            for completion, score in by_completion.items()
        )
    if kind == "ranking":
        return sorted(first["ranking"][0]) == sorted(again["ranking"][0])
    name = "thumb" if kind == "thumbs" else "preference"
    return bool(first[name] == again[name])
