"""Rows that an evaluation file would find again in training, by runs of 13 words.

As in GPT-3 (Brown et al., arXiv:2005.14165, appendix C): words are lower-cased and freed of punctuation, a run of 13
words that stands in both is a leak, and one that more than 10 rows hold is a template and none. Other than there the
row is dropped as a whole. A text of fewer than 13 words leaks by its prompt or as a whole only, exactly or nearly.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np

NGRAM_WORDS = 13
MAX_ROWS_OF_NGRAM = 10
_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MAX_KNOWN_WORDS = 500_000


class NgramIndex:
    """The runs of 13 words of the evaluation texts, and which rows hold them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._words: dict[str, int] = {}
        codes = [self._codes(text) for text in texts]
        found = np.concatenate(codes) if codes else np.zeros(0, np.uint64)
        self.known = np.unique(found)
        self._rows_of = np.zeros(len(self.known), dtype=np.int64)
        self._hits: list[tuple[int, int]] = []

    def look(self, row: int, text: str) -> None:
        """Note which runs the text of a row shares with the evaluation texts."""
        if not len(self.known):
            return
        codes = np.unique(self._codes(text))
        if not len(codes):
            return
        place = np.minimum(np.searchsorted(self.known, codes), len(self.known) - 1)
        for ngram in place[self.known[place] == codes].tolist():
            self._rows_of[ngram] += 1
            if self._rows_of[ngram] <= MAX_ROWS_OF_NGRAM:
                self._hits.append((row, ngram))

    def leaking(self) -> set[int]:
        """The rows that share a run which is no template."""
        return {row for row, ngram in self._hits if self._rows_of[ngram] <= MAX_ROWS_OF_NGRAM}

    def num_templates(self) -> int:
        """Shared runs that were passed over, since so many rows hold them."""
        return int((self._rows_of > MAX_ROWS_OF_NGRAM).sum())

    def _codes(self, text: str) -> np.ndarray:
        words = _WORD.findall(text.lower())
        num = len(words) - NGRAM_WORDS + 1
        if num < 1:
            return np.zeros(0, dtype=np.uint64)
        points = np.fromiter(map(self._word, words), dtype=np.uint64, count=len(words))
        codes = np.zeros(num, dtype=np.uint64)
        for k in range(NGRAM_WORDS):
            codes = (codes ^ (codes >> np.uint64(29))) * _BASE + points[k : k + num]
        return codes

    def _word(self, word: str) -> int:
        code = self._words.get(word)
        if code is None:
            code = int.from_bytes(
                hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            )
            if len(self._words) < _MAX_KNOWN_WORDS:
                self._words[word] = code
        return code
