"""What a sample of the rows is about: TF-IDF, clusters, and the words that tell one from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer

MAX_SAMPLE = 2000
MIN_SAMPLE = 40
MAX_TOPICS = 8
MAX_TERMS = 6
MAX_TEXT = 2000


def topics(texts: Sequence[str], sources: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Clusters, largest first: share, top terms, share of each source in it. Empty for few or wordless texts."""
    if len(texts) < MIN_SAMPLE:
        return []
    vectorizer = TfidfVectorizer(
        max_features=5000,
        min_df=3,
        max_df=0.5,
        stop_words="english",
        sublinear_tf=True,
        token_pattern=r"(?u)\b[^\W\d_]{3,}\b",
    )
    try:
        matrix = vectorizer.fit_transform([text[:MAX_TEXT] for text in texts])
    except ValueError:  # no word is in three texts
        return []
    num = min(MAX_TOPICS, len(texts) // 20)
    clusters = KMeans(num, n_init=1, max_iter=50, random_state=seed).fit(matrix)
    terms = vectorizer.get_feature_names_out()
    found = []
    for cluster in range(num):
        members = np.flatnonzero(clusters.labels_ == cluster)
        center = clusters.cluster_centers_[cluster]
        top = [str(terms[i]) for i in np.argsort(-center)[:MAX_TERMS] if center[i] > 0]
        if not len(members) or not top:
            continue
        of = Counter(sources[i] for i in members.tolist())
        found.append(
            {
                "share": len(members) / len(texts),
                "terms": top,
                "sources": {name: number / len(members) for name, number in of.most_common(5)},
            }
        )
    return sorted(found, key=lambda topic: -topic["share"])
