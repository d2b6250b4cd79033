"""Rewards of the problems whose best policy is known: one additive over tokens, two that are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

PROMPT = [3, 1]


def additive(tokens: Sequence[int]) -> float:
    """A value for each token."""
    return sum({1: 0.54, 2: -0.4, 3: 0.68, 4: -0.27, 5: 0.4}.get(token, 0.0) for token in tokens)


def pattern(tokens: Sequence[int]) -> float:
    """Token 3 directly before token 5, and not too long: not additive."""
    return 2.0 * any(pair == (3, 5) for pair in itertools.pairwise(tokens)) - 0.3 * (len(tokens) > 3)


def variety(tokens: Sequence[int]) -> float:
    """At least three tokens and none twice: not additive."""
    return 2.0 if len(tokens) >= 3 and len(set(tokens)) == len(tokens) else 0.0


REWARDS: dict[str, Callable[[Sequence[int]], float]] = {
    "additive": additive,
    "pattern": pattern,
    "variety": variety,
}
