"""What needs no language model: the most frequent label, and a bag of words.

A classifier that is not clearly better than which words are in a text has learned little else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # scikit-learn's C, the inverse of the L2 penalty
MAX_WORDS = 50_000
WORD = r"(?u)\w+|[^\w\s]"


@dataclass(frozen=True)
class Baseline:
    """name; what it is in words; and the number of the label that it gives each held-out text [N]."""

    name: str
    text: str
    predicted: np.ndarray


@dataclass(frozen=True)
class Texts:
    """Texts and the numbers of their labels."""

    texts: Sequence[str]
    targets: Sequence[int]


def baselines(
    train: Texts, validation: Texts, heldout: Texts, labels: Sequence[str], *, balanced: bool
) -> list[Baseline]:
    """Fitted on the training texts. The bag of words is missing where they hold no word."""
    most = Counter(train.targets).most_common(1)[0][0]
    size = len(heldout.texts)
    found = [Baseline("majority", f"always {labels[most]!r}, the most frequent label", np.full(size, most))]
    words = by_words(train, validation, heldout, balanced=balanced)
    return [*found, words] if words is not None else found


def by_words(train: Texts, validation: Texts, heldout: Texts, *, balanced: bool) -> Baseline | None:
    """Logistic regression on tf-idf of words and pairs of words; C by log-loss on validation."""
    vectorizer = TfidfVectorizer(
        token_pattern=WORD, ngram_range=(1, 2), max_features=MAX_WORDS, sublinear_tf=True
    )
    try:
        fitted = vectorizer.fit_transform(train.texts)
    except ValueError:  # scikit-learn's way to say that no word is left
        return None
    checked = vectorizer.transform(validation.texts)
    targets = np.asarray(validation.targets)
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in STRENGTHS:
        model = LogisticRegression(
            C=strength, max_iter=1000, class_weight="balanced" if balanced else None
        ).fit(fitted, train.targets)
        # every label is trained, so the columns are the labels in their order
        chances = model.predict_proba(checked)[np.arange(len(targets)), targets]
        loss = -float(np.log(np.maximum(chances, 1e-12)).mean())
        if best is None or loss < best[0]:
            best = (loss, strength, model)
    assert best is not None
    predicted = np.asarray(best[2].predict(vectorizer.transform(heldout.texts)))
    text = f"bag of words: logistic regression on {fitted.shape[1]} words and pairs of words, C = {best[1]:g}"
    return Baseline("bow", text, predicted)
