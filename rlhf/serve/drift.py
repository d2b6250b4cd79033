"""Do the prompts of today look like those of training? The population-stability index of lengths and of words.

    PSI = sum over bins of (live - reference) ln(live / reference)      shares, with half a count added to each bin

Lengths are binned at the deciles of the reference, words into WORD_BINS by a hash, so that no prompt has to be kept.
By custom 0.1 is worth a look and 0.25 a change, but with few prompts the index is large by chance alone: `level` is
what it exceeds in 5 % of the random divisions of the same prompts into two heaps of these sizes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WORD_BINS = 64
NUM_DIVISIONS = 200
WATCH, CHANGED = 0.1, 0.25
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class PromptFeatures:
    """num_words: of a prompt; bins: the hash bins that its words fall into, one entry a word (at most 200)."""

    num_words: int
    bins: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> PromptFeatures:
        words = _WORD.findall(text[:100_000].lower())
        return cls(
            len(words), tuple(zlib.crc32(word.encode("utf-8", "replace")) % WORD_BINS for word in words[:200])
        )


@dataclass(frozen=True)
class Shift:
    """psi: of the live prompts against the reference; level: the 95 % point of chance; live, reference: prompts."""

    what: str
    psi: float
    level: float
    live: int
    reference: int

    @property
    def is_change(self) -> bool:
        """Beyond both custom and chance."""
        return self.psi > max(CHANGED, self.level)


def psi(reference_K: np.ndarray, live_K: np.ndarray) -> float:
    """The index between two sets of counts over the same bins."""
    reference = (reference_K + 0.5) / (reference_K.sum() + 0.5 * len(reference_K))
    live = (live_K + 0.5) / (live_K.sum() + 0.5 * len(live_K))
    return float(((live - reference) * np.log(live / reference)).sum())


def shifts(
    reference: Sequence[PromptFeatures], live: Sequence[PromptFeatures], *, seed: int = 0
) -> list[Shift]:
    """The shift of lengths and of words; nothing where one side has no prompt."""
    if not reference or not live:
        return []
    both = [*reference, *live]
    deciles = np.unique(np.quantile([f.num_words for f in reference], np.linspace(0.1, 0.9, 9)))
    lengths_NK = np.zeros((len(both), len(deciles) + 1))
    lengths_NK[np.arange(len(both)), np.searchsorted(deciles, [f.num_words for f in both])] = 1
    words_NK = np.stack([np.bincount(f.bins, minlength=WORD_BINS) for f in both]).astype(float)
    return [
        _shift("length", lengths_NK, len(reference), seed),
        _shift("words", words_NK, len(reference), seed),
    ]


def _shift(what: str, counts_NK: np.ndarray, num_reference: int, seed: int) -> Shift:
    generator = np.random.default_rng(seed)
    total_K = counts_NK.sum(0)

    def index(chosen_N: np.ndarray) -> float:
        live_K = counts_NK[chosen_N].sum(0)
        return psi(total_K - live_K, live_K)

    order = np.arange(len(counts_NK))
    found = index(order[num_reference:])
    chance = [index(generator.permutation(order)[num_reference:]) for _ in range(NUM_DIVISIONS)]
    level = float(np.quantile(chance, 0.95))
    return Shift(what, found, level, len(counts_NK) - num_reference, num_reference)
