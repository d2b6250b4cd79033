"""Cutting work into micro-batches that a token budget bounds and padding does not waste."""

from __future__ import annotations

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row numbers in as few groups as possible with rows x longest row <= max_tokens, and those of like size.

    A row longer than the budget goes alone. Rows are taken longest first, so a group holds rows of like length
    and the largest groups come first: if memory does not suffice, that is known at once. The groups are as even
    as a smaller budget can make them, since a small last group would cost a pass and fill no machine. Every row
    is in exactly one group.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; expected at least 1")
    # Ties keep their order: the grouping is a function of the lengths alone.
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = _filled(order, lengths, max_tokens)
    # The smallest budget that needs no more groups, found by bisection.
    low, high = 1, max_tokens
    while low < high:
        middle = (low + high) // 2
        smaller = _filled(order, lengths, middle)
        if len(smaller) > len(batches):
            low = middle + 1
        else:
            high, batches = middle, smaller
    return batches


def _filled(order: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups filled one after the other, each up to the budget."""
    batches: list[list[int]] = []
    for row in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
