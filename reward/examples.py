"""What a reward model trains on: every example names its completions and carries a weight and a target.

All that raters said about the same completions becomes one example. The losses are linear in their targets, so the
total is that of the single answers while each completion goes through the model once instead of once a rater.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reward.config import RewardConfig
from reward.data import Pair, Rated, RewardData
from reward.rows import RankingRow, ScoresRow, ThumbRow
from rlhf.core.records import Split

Weigh = Callable[[str], float]  # annotator id -> how much an answer of theirs counts


@dataclass(frozen=True)
class Example:
    """rows: numbers of the completions it is about. family: of its prompt; what an ensemble resamples."""

    rows: tuple[int, ...]
    weight: float
    family: str


@dataclass(frozen=True)
class Comparison(Example):
    """outcome: shares of (first wins, tie, second wins); margin: signed in favour of the first."""

    outcome: tuple[float, float, float]
    margin: float


@dataclass(frozen=True)
class Ranking(Example):
    """tiers: the rank of each row, 0 is best; equal numbers are tied."""

    tiers: tuple[int, ...]


@dataclass(frozen=True)
class Attributes(Example):
    """values: of each attribute, in deviations from its mean; weights: 0 where it was not rated."""

    values: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Thumb(Example):
    """up: share of thumbs up."""

    up: float


@dataclass(frozen=True)
class Attribute:
    """An attribute that completions are scored on, with mean and deviation of its scores in training."""

    name: str
    mean: float
    std: float


def attributes_of(data: RewardData) -> tuple[Attribute, ...]:
    """The attributes in the training split, by name. One that never varies teaches nothing and is left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for rated in data.scores["train"]:
        for name, value in rated.rating.scores.items():
            values[name].append(value)
    found = [Attribute(name, float(np.mean(v)), float(np.std(v))) for name, v in sorted(values.items())]
    return tuple(attribute for attribute in found if attribute.std > 0)


def examples_of(
    data: RewardData,
    split: Split,
    config: RewardConfig,
    weigh: Weigh,
    attributes: Sequence[Attribute],
    nats: float | None = None,
) -> list[Example]:
    """All examples of a split. Validation is told without smoothing and margins: they are means of training.

    nats: with `rater_labels: posterior`, the log-odds that a weight of 1 stands for; None keeps the raters' answers.
    """
    train = split == "train"
    found: list[Example] = []
    how: dict[str, Any] = {
        "use_weights": config.use_weights,
        "with_ties": config.ties == "half",
        "label_smoothing": config.label_smoothing if train else 0.0,
        "margin_scale": config.margin_scale if train else 0.0,
    }
    if nats is not None:
        found += posterior_comparisons(data.pairs[split], data.family, weigh, nats, **how)
    else:
        found += merge_comparisons(data.pairs[split], data.family, weigh, **how)
    found += [ranking for rated in data.rankings[split] if (ranking := _ranking(rated, data.family, weigh))]
    found += merge_scores(data.scores[split], data.family, weigh, attributes, config.scores_coef)
    found += merge_thumbs(data.thumbs[split], data.family, weigh, config.thumbs_coef)
    return found


def merge_comparisons(
    pairs: Sequence[Pair],
    family: Mapping[str, str],
    weigh: Weigh,
    *,
    use_weights: bool,
    with_ties: bool,
    label_smoothing: float,
    margin_scale: float,
) -> list[Comparison]:
    """One example per two completions and margin, its outcome the weighted shares of what was said."""
    sums: dict[tuple[int, int, float], np.ndarray] = {}
    owners: dict[tuple[int, int], str] = {}
    for pair in pairs:
        preference = pair.preference
        weight = weigh(preference.annotator_id) * (preference.weight if use_weights else 1.0)
        if weight <= 0 or (preference.tie and not with_ties):
            continue
        first, second = sorted((pair.chosen, pair.rejected))
        sign = 1.0 if pair.chosen == first else -1.0
        said = np.array([1 - label_smoothing, 0.0, label_smoothing])
        if preference.tie:
            said = np.array([0.0, 1.0, 0.0])
        key = (first, second, sign * margin_scale * preference.margin)
        sums[key] = sums.get(key, 0.0) + weight * (said if sign > 0 else said[::-1])
        owners[first, second] = family[pair.group_id]
    return [
        Comparison(
            (first, second), float(s.sum()), owners[first, second], tuple((s / s.sum()).tolist()), margin
        )
        for (first, second, margin), s in sums.items()
    ]


def posterior_comparisons(
    pairs: Sequence[Pair],
    family: Mapping[str, str],
    weigh: Weigh,
    nats: float,
    *,
    use_weights: bool,
    with_ties: bool,
    label_smoothing: float,
    margin_scale: float,
) -> list[Comparison]:
    """One example per two completions: the verdict that the answers together make likely, and how likely.

    nats: the log-odds of being right that a weight of 1 stands for, so that nats x weight of the answers for one side
    less those for the other are the log-odds L that it is the better one (Nitzan and Paroush 1982). P(better) is then
    split into tanh(|L| / 2) of a sure win and a rest that both sides have alike; the rest says nothing and is left out,
    where a soft label would pull the scores together. Ties keep their share of the weight. The margin is the weighted
    mean of the raters', signed, as far as it speaks for the winner. All weights add up to those of the answers.
    """
    said: dict[tuple[int, int], list[tuple[float, float, float, Pair]]] = defaultdict(list)
    total = 0.0
    for pair in pairs:
        preference = pair.preference
        weight = weigh(preference.annotator_id)
        if weight <= 0 or (preference.tie and not with_ties):
            continue
        first, second = sorted((pair.chosen, pair.rejected))
        side = 0.0 if preference.tie or first == second else 1.0 if pair.chosen == first else -1.0
        counts = preference.weight if use_weights else 1.0
        said[first, second].append((weight, side, counts, pair))
        total += weight * counts
    found = []
    for (first, second), answers in said.items():
        weight_N, side_N, counts_N = np.array([answer[:3] for answer in answers]).T
        lead = float(weight_N @ side_N)
        tie = float(weight_N @ (side_N == 0) / weight_N.sum())
        sure = (1 - tie) * abs(math.tanh(nats * lead / 2))
        if tie + sure <= 0:
            continue
        winner = math.copysign(1.0, lead)
        shares = np.array([sure * (1 - label_smoothing), tie, sure * label_smoothing])[:: int(winner)]
        margin_N = np.array([answer[3].preference.margin for answer in answers])
        margin = winner * max(0.0, winner * float(weight_N @ (side_N * margin_N) / weight_N.sum()))
        found.append(
            Comparison(
                (first, second),
                float(tie + sure) * float(counts_N.mean()),
                family[answers[0][3].group_id],
                tuple((shares / shares.sum()).tolist()),
                margin_scale * margin,
            )
        )
    unit = total / sum(example.weight for example in found) if found else 1.0
    return [replace(example, weight=example.weight * unit) for example in found]


def _ranking(rated: Rated[RankingRow], family: Mapping[str, str], weigh: Weigh) -> Ranking | None:
    """The example of a ranking, or None where it says nothing or its rater does not count."""
    rating = rated.rating
    places = {rank: place for place, rank in enumerate(sorted(set(rating.ranks)))}
    weight = weigh(rating.annotator_id)
    if len(places) < 2 or weight <= 0:
        return None
    return Ranking(rated.rows, weight, family[rating.group_id], tuple(places[rank] for rank in rating.ranks))


def merge_scores(
    rated: Sequence[Rated[ScoresRow]],
    family: Mapping[str, str],
    weigh: Weigh,
    attributes: Sequence[Attribute],
    coef: float,
) -> list[Attributes]:
    """One example a completion: the raters' mean of every attribute, and how many answers it stands for."""
    place = {attribute.name: number for number, attribute in enumerate(attributes)}
    sums: dict[int, np.ndarray] = {}
    owners: dict[int, str] = {}
    for entry in rated:
        weight = weigh(entry.rating.annotator_id)
        known = {place[name]: value for name, value in entry.rating.scores.items() if name in place}
        if weight <= 0 or not known:
            continue
        (row,) = entry.rows
        total = sums.setdefault(row, np.zeros((2, len(attributes))))
        for number, value in known.items():
            total[:, number] += weight * (value - attributes[number].mean) / attributes[number].std, weight
        owners[row] = family[entry.rating.group_id]
    return [
        Attributes(
            (row,),
            coef * float(weights.max()),
            owners[row],
            tuple(np.divide(values, weights, out=np.zeros_like(values), where=weights > 0).tolist()),
            tuple(weights.tolist()),
        )
        for row, (values, weights) in sums.items()
    ]


def merge_thumbs(
    rated: Sequence[Rated[ThumbRow]], family: Mapping[str, str], weigh: Weigh, coef: float
) -> list[Thumb]:
    """One example a completion: the share of thumbs up."""
    sums: dict[int, list[float]] = {}
    owners: dict[int, str] = {}
    for entry in rated:
        weight = weigh(entry.rating.annotator_id)
        if weight <= 0:
            continue
        (row,) = entry.rows
        total = sums.setdefault(row, [0.0, 0.0])
        total[0] += weight * entry.rating.label
        total[1] += weight
        owners[row] = family[entry.rating.group_id]
    return [Thumb((row,), coef * weight, owners[row], up / weight) for row, (up, weight) in sums.items()]
