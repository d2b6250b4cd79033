"""Cutting work into micro-batches that a token budget bounds and padding does not waste."""

from __future__ import annotations

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row numbers grouped so that rows x longest row <= max_tokens (a longer single row goes alone).

    Rows are taken longest first, so a group holds rows of like length and the largest group comes first:
    if memory does not suffice, that is known at once. Every row is in exactly one group.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; expected at least 1")
    batches: list[list[int]] = []
    # Ties keep their order: the grouping is a function of the lengths alone.
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
