"""Which split a prompt group belongs to: a function of the group and the seed alone.

So a group never crosses splits, and keeps its split while data grows.
"""

from __future__ import annotations

import hashlib

from rlhf.core.records import Split

DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)


def split_of(group_id: str, seed: int, fractions: tuple[float, float, float] = DEFAULT_FRACTIONS) -> Split:
    """train, validation or test, by a seeded hash of the group. `fractions` add up to 1."""
    digest = hashlib.sha256(f"{seed}\0{group_id}".encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < fractions[0]:
        return "train"
    return "validation" if place < fractions[0] + fractions[1] else "test"
