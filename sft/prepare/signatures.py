"""MinHash signatures of many texts at once, and the bands of them on disk (Broder 1997; Indyk and Motwani 1998).

`rlhf.core.near_duplicates` keeps 11 KB a text and takes 0.4 ms for it, which is right for thousands of prompts. For
millions of rows the hashing is done for a block of texts in one go (30 us a text of 200 characters) and 8 bits of
each minimum are kept (Li and Konig, b-bit minwise hashing, WWW 2010): about 100 bytes a text. The hash functions are
a * x + b modulo 2^32 of a mixed code of each run of 5 characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from rlhf.core.near_duplicates import SHINGLE_CHARS, folded

MAX_PERMUTATIONS = 128
MAX_MISSED = 1e-3
BLOCK_CHARS = 1 << 18  # of one block: times 4 bytes for each of a few arrays
_BASE = np.uint64(0x9E3779B97F4A7C15)


def bands_for(threshold: float) -> tuple[int, int]:
    """(number of bands, their length): the longest that miss a pair at the threshold once in a thousand times."""
    for length in range(MAX_PERMUTATIONS // 2, 1, -1):
        num_bands = int(np.ceil(np.log(MAX_MISSED) / np.log1p(-(threshold**length)))) if threshold < 1 else 1
        if num_bands * length <= MAX_PERMUTATIONS:
            return num_bands, length
    return MAX_PERMUTATIONS, 1


class Signatures:
    """Bytes of the minima of N texts, and the keys of each band in a file of its own under `folder`."""

    def __init__(self, folder: Path, threshold: float, seed: int) -> None:
        self.folder, self.threshold = folder, threshold
        self.num_bands, self.length = bands_for(threshold)
        self.num = self.num_bands * self.length
        rng = np.random.default_rng(seed)
        self._a = rng.integers(0, 1 << 31, self.num, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._b = rng.integers(0, 1 << 32, self.num, dtype=np.uint32)
        self._low: list[np.ndarray] = []
        folder.mkdir()

    def fill(self, texts: Iterable[str]) -> Iterator[int]:
        """Hash the texts, in order; yields how many were done with each block."""
        paths = [self.folder / f"band-{i}" for i in range(self.num_bands)]
        files = [open(path, "wb") for path in paths]  # noqa: SIM115
        try:
            for block in _blocks(texts):
                minima_KN = self._minima(block)
                self._low.append((minima_KN >> np.uint32(24)).astype(np.uint8).T.copy())
                for i, file in enumerate(files):
                    rows = minima_KN[i * self.length : (i + 1) * self.length].astype(np.uint64)
                    key = np.zeros(len(block), dtype=np.uint64)
                    for row in rows:
                        key = (key ^ (key >> np.uint64(29))) * _BASE + row
                    file.write(key.tobytes())
                yield len(block)
        finally:
            for file in files:
                file.close()
        self.low_NK = np.concatenate(self._low) if self._low else np.zeros((0, self.num), np.uint8)
        self._low = []

    def band(self, number: int) -> np.ndarray:
        """The keys of one band, [N] of uint64."""
        return np.fromfile(self.folder / f"band-{number}", dtype=np.uint64)

    def estimate(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Estimated Jaccard similarity of pairs of texts; its deviation is at most 0.5 / sqrt(num)."""
        found = np.empty(len(first))
        for start in range(0, len(first), 1 << 16):
            part = slice(start, start + (1 << 16))
            equal = (self.low_NK[first[part]] == self.low_NK[second[part]]).mean(axis=1)
            found[part] = (equal - 1 / 256) / (1 - 1 / 256)
        return found

    def _minima(self, texts: list[str]) -> np.ndarray:
        """[num, len(texts)] of uint32."""
        # A text shorter than a shingle is padded with what no text holds, so that each has one shingle at least.
        padded = [text if len(text) >= SHINGLE_CHARS else text.ljust(SHINGLE_CHARS, "\0") for text in texts]
        points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(
            np.uint64
        )
        num = len(points) - SHINGLE_CHARS + 1
        codes = np.zeros(num, dtype=np.uint64)
        for k in range(SHINGLE_CHARS):
            codes = (codes ^ (codes >> np.uint64(29))) * _BASE + points[k : k + num]
        codes ^= codes >> np.uint64(32)
        lengths = np.array([len(text) for text in padded])
        ends = np.cumsum(lengths)
        # runs that reach into the next text belong to nobody
        starts = ends - lengths
        owned = np.ones(num + SHINGLE_CHARS - 1, dtype=bool)
        for k in range(1, SHINGLE_CHARS):
            owned[ends - k] = False
        x = codes[owned[:num]].astype(np.uint32)
        begins = starts - np.arange(len(texts)) * (SHINGLE_CHARS - 1)
        minima = np.empty((self.num, len(texts)), dtype=np.uint32)
        buffer = np.empty_like(x)
        for i in range(self.num):
            np.multiply(x, self._a[i], out=buffer)
            np.add(buffer, self._b[i], out=buffer)
            minima[i] = np.minimum.reduceat(buffer, begins)
        return minima


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(folded(text))
        size += len(block[-1])
        if size >= BLOCK_CHARS:
            yield block
            block, size = [], 0
    if block:
        yield block
