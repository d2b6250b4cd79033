"""What needs no language model: predictors fitted on the training comparisons and measured on the held-out ones.

A reward model that is not clearly better than the length of an answer, or than which words are in it, has learned
little else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from reward.assess.heldout import HeldOut
from reward.data import Pair
from rlhf.core.records import Preference
from rlhf.core.stats import Interval, bootstrap_mean

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C, the inverse of the L2 penalty
MAX_WORDS = 50_000
WORD = r"(?u)\w+|[^\w\s]"


@dataclass(frozen=True)
class Baseline:
    """name; what it is in words; and for each held-out decided comparison 1, 0.5 or 0 as it ordered them [P]."""

    name: str
    text: str
    correct: np.ndarray

    def accuracy(self, groups: Sequence[str], seed: int) -> Interval:
        return bootstrap_mean(self.correct, groups=groups, seed=seed)

    def lead(self, correct: np.ndarray, groups: Sequence[str], seed: int) -> Interval:
        """Accuracy of `correct` minus that of the baseline, on the same comparisons (paired bootstrap)."""
        return bootstrap_mean(correct - self.correct, groups=groups, seed=seed)


def baselines(heldout: HeldOut, num_tokens: Callable[[str], int], tokens_N: Sequence[int]) -> list[Baseline]:
    """Length, bag of words and chance. Those that the training split cannot fit are missing.

    num_tokens: length of a completion. tokens_N: the same for each row of the pool.
    """
    decided = heldout.decided
    found = [
        by_length(heldout.train, decided, num_tokens, tokens_N),
        by_words(heldout.train, heldout.validation, decided),
        Baseline("random", "chance, one half by construction", np.full(len(decided), 0.5)),
    ]
    return [baseline for baseline in found if baseline is not None]


def by_length(
    train: Sequence[Preference],
    decided: Sequence[Pair],
    num_tokens: Callable[[str], int],
    tokens_N: Sequence[int],
) -> Baseline | None:
    """'Longer wins', or 'shorter wins' where that was so in training; equal lengths count half."""
    known: dict[str, int] = {}

    def length(text: str) -> int:
        if text not in known:
            known[text] = num_tokens(text)
        return known[text]

    signs = [
        np.sign(length(row.chosen[0].content) - length(row.rejected[0].content))
        for row in train
        if not row.tie
    ]
    if not any(signs):
        return None
    longer_wins = sum(signs) >= 0
    delta = np.array([tokens_N[pair.chosen] - tokens_N[pair.rejected] for pair in decided])
    correct = 0.5 + 0.5 * np.sign(delta if longer_wins else -delta)
    name = "longer wins" if longer_wins else "shorter wins"
    return Baseline("length", f"{name} (as in the training comparisons)", correct)


def by_words(
    train: Sequence[Preference], validation: Sequence[Preference], decided: Sequence[Pair]
) -> Baseline | None:
    """Logistic regression on the difference of word counts, without intercept; C by log-loss on validation.

    None where the training comparisons are all ties or hold no word twice.
    """
    fit = [row for row in train if not row.tie]
    if not fit:
        return None
    vectorizer = CountVectorizer(token_pattern=WORD, min_df=2, max_features=MAX_WORDS)
    try:
        vectorizer.fit([text for row in fit for text in (row.chosen[0].content, row.rejected[0].content)])
    except ValueError:  # scikit-learn's way to say that no word is left
        return None
    deltas = _word_differences(vectorizer, fit)
    if not deltas.nnz:
        return None
    # Every second comparison from the other side: the classifier needs both labels, and without an intercept
    # a comparison and its mirror image have the same loss.
    signs = np.where(np.arange(len(fit)) % 2 == 0, 1.0, -1.0)
    if len(fit) == 1:
        deltas, signs = csr_matrix(np.vstack([deltas.toarray(), -deltas.toarray()])), np.array([1.0, -1.0])
    else:
        deltas = deltas.multiply(signs[:, None]).tocsr()
    check = _word_differences(vectorizer, [row for row in validation if not row.tie])
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in STRENGTHS if check.shape[0] else STRENGTHS[2:3]:
        model = LogisticRegression(C=strength, fit_intercept=False, max_iter=500).fit(deltas, signs)
        loss = float(np.mean(np.logaddexp(0, -model.decision_function(check)))) if check.shape[0] else 0.0
        if best is None or loss < best[0]:
            best = (loss, strength, model)
    assert best is not None
    held = _word_differences(vectorizer, [pair.preference for pair in decided])
    correct = 0.5 + 0.5 * np.sign(best[2].decision_function(held))
    num_words = len(vectorizer.vocabulary_)
    return Baseline(
        "bow", f"bag of words, logistic regression on {num_words} words, C = {best[1]:g}", correct
    )


def _word_differences(vectorizer: CountVectorizer, rows: Sequence[Preference]) -> csr_matrix:
    """Word counts of chosen minus those of rejected [N, V]."""
    if not rows:
        return csr_matrix((0, len(vectorizer.vocabulary_)))
    chosen = vectorizer.transform([row.chosen[0].content for row in rows])
    rejected = vectorizer.transform([row.rejected[0].content for row in rows])
    return csr_matrix((chosen - rejected).astype(np.float64))
