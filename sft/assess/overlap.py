"""How near an answer comes to a reference: exact match, token F1, BLEU, ROUGE. Torch-free.

    exact match, token F1   on SQuAD's normalised words (lower case, without punctuation and articles), the best of
                            several references (Rajpurkar et al., arXiv:1606.05250)
    ROUGE-1, -2, -L         F1 of word n-grams, and of the longest common subsequence (Lin 2004), the best of several
                            references; words as in Google's rouge-score without stemming, of any script
    BLEU                    of the whole corpus, sacrebleu's 13a words and its smoothing (Post, arXiv:1804.08771)

Every measure is a row of numbers per answer and a function of their sums over answers, so that a bootstrap can draw
answers anew: means for all but BLEU, which is no mean.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU

MAX_ORDER = 4
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")

# sums [R, K] over the answers of R resamples -> [R]
Statistic = Callable[[np.ndarray], np.ndarray]


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and surplus spaces: SQuAD's `normalize_answer`."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer is one of the references, normalised; else 0."""
    return float(normalised(answer) in {normalised(reference) for reference in references})


def holds_answer(answer: str, references: Sequence[str]) -> bool:
    """True where a reference stands in the answer as whole words, both normalised."""
    words = f" {normalised(answer)} "
    return any(f" {normalised(reference)} " in words for reference in references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """The best F1 of normalised words over the references; two empty texts agree."""
    found = normalised(answer).split()
    return max(_word_f1(found, normalised(reference).split()) for reference in references)


def _word_f1(found: list[str], expected: list[str]) -> float:
    if not found or not expected:
        return float(found == expected)
    return _f1(sum((Counter(found) & Counter(expected)).values()), len(found), len(expected))


def _f1(common: int, found: int, expected: int) -> float:
    """Harmonic mean of common / found and common / expected."""
    return 2 * common / (found + expected) if common else 0.0


def rouge(answer: str, references: Sequence[str]) -> tuple[float, float, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1, each the best over the references."""
    found = _WORD.findall(answer.lower())
    scores = [_rouge(found, _WORD.findall(reference.lower())) for reference in references]
    one, two, longest = (max(column) for column in zip(*scores, strict=True))
    return one, two, longest


def _rouge(found: list[str], expected: list[str]) -> tuple[float, float, float]:
    scores = []
    for n in (1, 2):
        grams, wanted = _ngrams(found, n), _ngrams(expected, n)
        scores.append(_f1(sum((grams & wanted).values()), sum(grams.values()), sum(wanted.values())))
    return scores[0], scores[1], _f1(common_subsequence(found, expected), len(found), len(expected))


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of one number
    (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()


_BLEU = BLEU(effective_order=True)  # concerns the score of one text, which is not read; silences a warning


def bleu_counts(answer: str, references: Sequence[str]) -> list[float]:
    """[length, length of the nearest reference, matching n-grams of 1 to 4, all n-grams of 1 to 4] of one answer."""
    score = _BLEU.sentence_score(answer, list(references))
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def bleu(sums_RK: np.ndarray) -> np.ndarray:
    """Corpus BLEU, 0 to 100, of sums of `bleu_counts`."""
    return np.array([_corpus_bleu(row) for row in sums_RK.round().astype(int).tolist()])


def _corpus_bleu(counts: list[int]) -> float:
    length, reference_length = counts[:2]
    matches, totals = counts[2 : 2 + MAX_ORDER], counts[2 + MAX_ORDER :]
    score = BLEU.compute_bleu(
        matches,
        totals,
        sys_len=length,
        ref_len=reference_length,
        smooth_method="exp",
        max_ngram_order=MAX_ORDER,
    )
    return float(score.score)


def ratio(sums_RK: np.ndarray) -> np.ndarray:
    """The first sum over the second."""
    found: np.ndarray = sums_RK[:, 0] / sums_RK[:, 1]
    return found


TEXT_STATISTICS: dict[str, Statistic] = {
    "exact_match": ratio,
    "token_f1": ratio,
    "bleu": bleu,
    "rouge_1": ratio,
    "rouge_2": ratio,
    "rouge_l": ratio,
}


def text_columns(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Per measure the numbers [N, K] of N answers whose sums its statistic reads."""
    means: dict[str, list[float]] = {name: [] for name in TEXT_STATISTICS if name != "bleu"}
    counts = []
    for answer, accepted in zip(answers, references, strict=True):
        one, two, longest = rouge(answer, accepted)
        values = (exact_match(answer, accepted), token_f1(answer, accepted), one, two, longest)
        for column, value in zip(means.values(), values, strict=True):
            column.append(value)
        counts.append(bleu_counts(answer, accepted))
    columns = {name: np.column_stack([column, np.ones(len(column))]) for name, column in means.items()}
    return columns | {"bleu": np.array(counts, dtype=np.float64)}
