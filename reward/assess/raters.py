"""What the comparisons say about the people behind them: who agrees with whom, and who contradicts themselves.

All comparisons of the snapshot are looked at, whatever split they are in: nothing here is about the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from reward.data import Pair
from reward.evaluate import votes_of
from reward.raters import consistency, rater_weights
from rlhf.core.figures import flat
from rlhf.core.records import Preference
from rlhf.core.stats import Interval, bootstrap_mean

Z_95 = 1.959964


def rater_figures(
    preferences: Sequence[Preference], trained: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    """Contradictions over all comparisons, and one row a rater.

    trained: the rows of `RaterReport` in the manifest of the run that is examined, for the weights it used; none where
    that is not known. Of each rater: answers; how often they chose as another rater of the same completions did; how
    often they chose otherwise when asked again; reliability by Dawid-Skene with the interval of its standard error.
    """
    pairs = numbered(preferences)
    overall = consistency(pairs)
    report = rater_weights(pairs, "dawid-skene")
    agreements = _agreements(pairs, seed)
    own: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        own[pair.preference.annotator_id].append(pair)
    weights = {row["annotator_id"]: row["weight"] for row in trained}
    rows = []
    for rater in report.raters:
        alone = consistency(own[rater.annotator_id])
        rows.append(
            {
                "annotator_id": rater.annotator_id,
                "num_answers": rater.num_answers,
                "weight": weights.get(rater.annotator_id),
                **flat("agreement", agreements.get(rater.annotator_id)),
                "num_shared": agreements[rater.annotator_id].n if rater.annotator_id in agreements else 0,
                "num_repeated": alone.num_repeated,
                "num_contradicted": alone.num_conflicting,
                **flat("reliability", _reliability(rater.reliability, rater.reliability_se, rater.num_known)),
            }
        )
    return {"contradictions": overall.row(), "note": report.note, "rows": rows}


def numbered(preferences: Sequence[Preference]) -> list[Pair]:
    """Comparisons with a number for each distinct completion of a prompt."""
    index: dict[tuple[Any, ...], int] = {}

    def number(preference: Preference, text: str) -> int:
        return index.setdefault((preference.prompt, text), len(index))

    return [Pair(number(p, p.chosen[0].content), number(p, p.rejected[0].content), p) for p in preferences]


def _agreements(pairs: Sequence[Pair], seed: int) -> dict[str, Interval]:
    """How often each rater chose the same completion as another rater who decided, over prompts; ties left out."""
    values: dict[str, list[float]] = defaultdict(list)
    groups: dict[str, list[str]] = defaultdict(list)
    for cast in votes_of([pair for pair in pairs if not pair.preference.tie]).values():
        for one, other in combinations(cast, 2):
            names = one.preference.annotator_id, other.preference.annotator_id
            if names[0] != names[1]:
                for name in names:
                    values[name].append(float(one.chosen == other.chosen))
                    groups[name].append(one.group_id)
    return {
        name: bootstrap_mean(found, groups=groups[name], seed=seed) for name, found in sorted(values.items())
    }


def _reliability(value: float | None, error: float | None, num_known: float) -> Interval | None:
    if value is None or error is None:
        return None
    low, high = np.clip([value - Z_95 * error, value + Z_95 * error], 0.0, 1.0)
    return Interval(value, float(low), float(high), round(num_known))
