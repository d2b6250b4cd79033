"""How well raters agree: the ceiling of what a reward model can learn from them.

- alpha: Krippendorff's alpha (Computing Krippendorff's alpha-reliability, 2011) over the four verdicts first,
  second, tie, both_bad as nominal values: 1 is perfect, 0 is what chance gives. Which completion of a pair is
  "first" is arbitrary, and where it follows the answers chance agreement is overrated (on PandaLM's ratings
  0.68 instead of 0.86), so every item is counted both ways round.
- raw: of all pairs of raters on one item who both had a preference, the share that preferred the same one.
  It compares directly with a reward model's accuracy. Its interval resamples items, since the pairs of one
  item are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import krippendorff
import numpy as np
from sqlalchemy import text

from feedback_app.store.engine import Store
from rlhf.core.records import Verdict
from rlhf.core.stats import Interval, bootstrap_mean

VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie", "both_bad")
_VERDICTS_QUERY = text(
    "SELECT task_id, annotator_id, preference FROM current_annotations "
    "WHERE project_id = :project AND kind = 'pairwise' ORDER BY task_id, annotator_id"
)


@dataclass(frozen=True)
class Agreement:
    """Agreement of raters. None where it is undefined: fewer than two raters on every item, or no spread.

    n_items: items with at least two raters. n_pairs: pairs of raters behind `raw` (ties left out).
    """

    alpha: float | None
    raw: float | None
    interval: Interval | None
    n_items: int
    n_pairs: int
    n_annotators: int


def pairwise_agreement(store: Store, project: str, *, num_resamples: int = 2000, seed: int = 0) -> Agreement:
    """Agreement over a project's current pairwise answers; surplus ones are opinions too and count."""
    with store.read() as connection:
        found = connection.execute(_VERDICTS_QUERY, {"project": project}).tuples().all()
    return agreement(found, num_resamples=num_resamples, seed=seed)


def agreement(
    verdicts: Iterable[tuple[str, str, str]], *, num_resamples: int = 2000, seed: int = 0
) -> Agreement:
    """Agreement of (item, annotator, verdict) triples, one per item and annotator."""
    items: dict[str, list[str]] = {}
    annotators: set[str] = set()
    for item, annotator, verdict in verdicts:
        items.setdefault(item, []).append(verdict)
        annotators.add(annotator)
    shared = {item: given for item, given in items.items() if len(given) >= 2}
    agreed, groups = [], []
    for item, given in shared.items():
        preferring = [verdict for verdict in given if verdict in ("first", "second")]
        for one, other in combinations(preferring, 2):
            agreed.append(float(one == other))
            groups.append(item)
    interval = (
        bootstrap_mean(agreed, groups=groups, num_resamples=num_resamples, seed=seed) if agreed else None
    )
    return Agreement(
        alpha=_alpha(list(shared.values())),
        raw=interval.mean if interval else None,
        interval=interval,
        n_items=len(shared),
        n_pairs=len(agreed),
        n_annotators=len(annotators),
    )


def _alpha(items: list[list[str]]) -> float | None:
    if not items:
        return None
    counts_IV = np.array([[Counter(given)[verdict] for verdict in VERDICTS] for given in items])
    counts_IV = np.concatenate([counts_IV, counts_IV[:, [1, 0, 2, 3]]])
    counts_IV = counts_IV[:, counts_IV.sum(axis=0) > 0]
    if counts_IV.shape[1] < 2:
        return None  # nothing but ties: there is no disagreement that chance could explain
    return float(krippendorff.alpha(value_counts=counts_IV, level_of_measurement="nominal"))
