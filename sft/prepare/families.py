"""Which of many texts are near-duplicates, in bounded memory: bands on disk, one at a time.

In each band the texts of one bucket are compared with the first of it and with a few neighbours, first by their
signatures, and what could reach the threshold by its true Jaccard similarity (`rlhf.core.near_duplicates`). A text
that failed so often is joined by the estimate from then on: else a million texts of one template would be compared
with each other. Families are connected components, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlhf.core.near_duplicates import similarity
from sft.prepare.signatures import Signatures

NEIGHBOURS = 4
MAX_FAILURES = 32
DEVIATIONS = 3.3  # an estimate further below the threshold happens once in two thousand times


class Components:
    """Union-find over N texts; the root of a component is its first text."""

    def __init__(self, num: int) -> None:
        self.parent = np.arange(num, dtype=np.int64)

    def root(self, i: int) -> int:
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    def join(self, i: int, j: int) -> None:
        a, b = self.root(i), self.root(j)
        if a != b:
            self.parent[max(a, b)] = min(a, b)

    def roots(self) -> np.ndarray:
        """The root of every text, [N]."""
        parent = self.parent
        while True:
            above = parent[parent]
            if np.array_equal(above, parent):
                return parent
            parent = self.parent = above


class Joined:
    """components, and how the pairs were decided: `measured` and `estimated` joins."""

    def __init__(self, num: int) -> None:
        self.components = Components(num)
        self.measured = 0
        self.estimated = 0


def join_near(
    signatures: Signatures, text_of: Callable[[int], str], advance: Callable[[int], None]
) -> Joined:
    """Families of the texts that were hashed. text_of: the text of a number. advance: called after each band."""
    num = len(signatures.low_NK)
    joined = Joined(num)
    failures = np.zeros(num, dtype=np.uint8)
    slack = DEVIATIONS * np.sqrt(signatures.threshold * (1 - signatures.threshold) / signatures.num)
    for band in range(signatures.num_bands):
        first, second = _pairs(signatures, band)
        roots = joined.components.roots()
        apart = roots[first] != roots[second]
        first, second = first[apart], second[apart]
        estimates = signatures.estimate(first, second)
        likely = estimates >= signatures.threshold - slack
        for i, j, estimate in zip(
            first[likely].tolist(), second[likely].tolist(), estimates[likely].tolist(), strict=True
        ):
            _decide(joined, failures, i, j, estimate, signatures.threshold, text_of)
        advance(1)
    return joined


def _decide(
    joined: Joined,
    failures: np.ndarray,
    i: int,
    j: int,
    estimate: float,
    threshold: float,
    text_of: Callable[[int], str],
) -> None:
    if joined.components.root(i) == joined.components.root(j):
        return
    if failures[i] >= MAX_FAILURES and failures[j] >= MAX_FAILURES:
        if estimate >= threshold:
            joined.components.join(i, j)
            joined.estimated += 1
        return
    if similarity(text_of(i), text_of(j)) >= threshold:
        joined.components.join(i, j)
        joined.measured += 1
        return
    for place in (i, j):
        failures[place] = min(255, failures[place] + 1)


def _pairs(signatures: Signatures, band: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of texts of one bucket: each with the first of it and with its neighbours, alike ones side by side."""
    keys = signatures.band(band)
    # within a bucket by 8 bytes of the signature that this band does not rest on
    start = (band + 1) % signatures.num_bands * signatures.length
    columns = np.arange(start, start + 8) % signatures.num
    rest = np.ascontiguousarray(signatures.low_NK[:, columns]).view(np.uint64).ravel()
    order = np.lexsort((rest, keys))
    ordered = keys[order]
    firsts, seconds = [], []
    for step in range(1, NEIGHBOURS + 1):
        same = (
            np.flatnonzero(ordered[step:] == ordered[:-step])
            if len(ordered) > step
            else np.zeros(0, np.int64)
        )
        firsts.append(order[same])
        seconds.append(order[same + step])
    new_bucket = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, bool)
    heads = np.flatnonzero(new_bucket)
    head_of = heads[np.cumsum(new_bucket) - 1] if len(heads) else heads
    others = np.flatnonzero(~new_bucket)
    firsts.append(order[head_of[others]])
    seconds.append(order[others])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    return np.minimum(first, second), np.maximum(first, second)


def near_families(
    folder: Path,
    num: int,
    texts: Callable[[], object],
    text_of: Callable[[int], str],
    *,
    threshold: float,
    seed: int,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, Joined]:
    """(root of each of `num` texts, how they were joined). `texts()` iterates over all of them in order."""
    signatures = Signatures(folder, threshold, seed)
    for done in signatures.fill(texts()):  # type: ignore[arg-type]
        advance(done)
    joined = join_near(signatures, text_of, advance)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    if len(signatures.low_NK) != num:
        raise RuntimeError(f"{len(signatures.low_NK)} texts were hashed; expected {num}")
    return joined.components.roots(), joined
