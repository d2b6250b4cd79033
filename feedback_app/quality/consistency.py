"""Does a person agree with themselves, and with items whose answer is known?"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.core.stats import Interval, wilson_interval


def self_agreement(pairs: Sequence[tuple[object, object]]) -> Interval | None:
    """Share of repeated tasks on which a person gave the same answer twice, with Wilson's interval.

    pairs: (first answer, answer to the repeat), in the task's own terms and not by side. None without any.
    """
    if not pairs:
        return None
    return wilson_interval(sum(first == again for first, again in pairs), len(pairs))


def gold_accuracy(correct: Sequence[bool]) -> Interval | None:
    """Share of gold items answered as expected, with Wilson's interval. None without any."""
    return wilson_interval(sum(correct), len(correct)) if correct else None
