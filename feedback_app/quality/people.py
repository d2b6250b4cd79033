"""Each person's quality: agreement with others, biases, reliability, speed. One pass over arrays for all people.

Intervals of a person's shares are Wilson's. Agreement with others counts items, not pairs of raters: the pairs
of one item share this person's one answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feedback_app.quality.agreement import label_counts
from feedback_app.quality.answers import SECOND, TIE, Answers, Comparisons, Labels
from feedback_app.quality.bias import SideBias, side_bias
from feedback_app.quality.timing import Timing, timing
from rlhf.core.reliability import crowd_bt, dawid_skene
from rlhf.core.stats import Interval, wilson_interval

TURNED = (1, 0, 2)  # first and second swap, even stays


@dataclass(frozen=True)
class PersonQuality:
    """What is known about one person; None where there is nothing to compute it from."""

    annotator_id: str
    num_answers: int
    first_at: float
    last_at: float
    agreement: Interval | None
    reliability: Interval | None
    eta: float | None
    side: SideBias | None
    longer: Interval | None
    even: Interval | None
    timing: Timing | None


def people_quality(answers: Answers, *, min_seconds: float = 0.0) -> list[PersonQuality]:
    """One entry per person with answers, in the order of `answers.people`."""
    num_people = len(answers.people)
    agreement = _agreement_with_others(answers)
    reliability = reliabilities(answers)
    etas = _crowd_bt_weights(answers.comparisons, num_people, answers.num_completions)
    found = []
    comparisons = answers.comparisons
    rows_of = _rows_by(answers.person, num_people)
    compared_of = _rows_by(comparisons.person, num_people)
    for person, annotator_id in enumerate(answers.people):
        rows, compared = rows_of[person], compared_of[person]
        verdict, left = comparisons.verdict[compared], comparisons.left[compared]
        lengths = comparisons.lengths[compared]
        different = (verdict <= SECOND) & (lengths[:, 0] != lengths[:, 1])
        longer = ((lengths[:, 0] > lengths[:, 1]) == (verdict == 0))[different]
        found.append(
            PersonQuality(
                annotator_id=annotator_id,
                num_answers=len(rows),
                first_at=float(answers.created[rows].min()),
                last_at=float(answers.created[rows].max()),
                agreement=agreement[person],
                reliability=reliability[person],
                eta=etas[person],
                side=side_bias(left[left >= 0]),
                longer=wilson_interval(int(longer.sum()), len(longer)) if len(longer) else None,
                even=wilson_interval(int((verdict >= TIE).sum()), len(verdict)) if len(verdict) else None,
                timing=timing(answers.seconds[rows], min_seconds),
            )
        )
    return found


def _rows_by(code_N: np.ndarray, num_codes: int) -> list[np.ndarray]:
    """The rows of each code."""
    order = np.argsort(code_N, kind="stable")
    ends = np.cumsum(np.bincount(code_N, minlength=num_codes))
    return np.split(order, ends[:-1]) if num_codes else []


def _agreement_with_others(answers: Answers) -> list[Interval | None]:
    """Expected share of a person's answers that a randomly chosen other rater of the item gave too.

    Comparisons and thumbs: the same side, among those who took one. Scores: at most one point apart.
    """
    same, items = np.zeros(len(answers.people)), np.zeros(len(answers.people))
    comparisons = answers.comparisons
    preferring = comparisons.preferring
    sides = [
        (comparisons.pair[preferring], comparisons.person[preferring], comparisons.verdict[preferring], 2, 0)
    ] + [(x.unit, x.person, x.label, x.num_labels, int(x.kind == "scores")) for x in answers.labels]
    for unit, person, label, num_labels, reach in sides:
        if not len(unit):
            continue
        counts_UV = label_counts(unit, label, num_labels)
        _, index = np.unique(unit, return_inverse=True)
        near_UV = counts_UV.copy()
        for step in range(1, reach + 1):
            near_UV[:, step:] += counts_UV[:, :-step]
            near_UV[:, :-step] += counts_UV[:, step:]
        others = counts_UV.sum(axis=1)[index] - 1
        shared = others > 0
        agreed = (near_UV[index, label] - 1)[shared] / others[shared]
        same += np.bincount(person[shared], weights=agreed, minlength=len(same))
        items += np.bincount(person[shared], minlength=len(items))
    return [
        wilson_interval(float(min(s, n)), int(n)) if n else None for s, n in zip(same, items, strict=True)
    ]


def reliabilities(answers: Answers) -> list[Interval | None]:
    """Dawid-Skene reliability of each person over items with two raters or more.

    Comparisons (first, second, even) where there are any, otherwise thumbs, otherwise all scores together. The
    interval is Wilson's over the person's answers: it takes the estimated truths for known.
    """
    comparisons = answers.comparisons
    if len(comparisons):
        label = np.minimum(comparisons.verdict, TIE)
        return _reliability(comparisons.pair, comparisons.person, label, 3, len(answers.people), TURNED)
    for kind in ("thumbs", "scores"):
        chosen = [labels for labels in answers.labels if labels.kind == kind]
        if chosen:
            unit, person, label = (_joined(chosen, name) for name in ("unit", "person", "label"))
            return _reliability(unit, person, label, chosen[0].num_labels, len(answers.people), None)
    return [None] * len(answers.people)


def _reliability(
    unit_N: np.ndarray,
    person_N: np.ndarray,
    label_N: np.ndarray,
    num_labels: int,
    num_people: int,
    turned: tuple[int, ...] | None,
) -> list[Interval | None]:
    shared = np.bincount(unit_N)[unit_N] >= 2
    if not shared.any():
        return [None] * num_people
    _, item_N = np.unique(unit_N[shared], return_inverse=True)
    fit = dawid_skene(
        item_N,
        person_N[shared],
        label_N[shared],
        num_items=int(item_N.max()) + 1,
        num_raters=num_people,
        num_labels=num_labels,
        turned=turned,
        max_iterations=50,
        tolerance=1e-3,
    )
    return [
        wilson_interval(float(min(1.0, value)) * int(n), int(n)) if n else None
        for value, n in zip(fit.reliability_A, fit.answers_A, strict=True)
    ]


def _crowd_bt_weights(comparisons: Comparisons, num_people: int, num_completions: int) -> list[float | None]:
    """Crowd-BT's eta of each person, from preferences about completions that several people compared."""
    preferring = comparisons.preferring
    if not preferring.any():
        return [None] * num_people
    pair = comparisons.pair[preferring]
    shared = np.bincount(pair)[pair] >= 2
    completions, verdict = (
        comparisons.completions[preferring][shared],
        comparisons.verdict[preferring][shared],
    )
    person = comparisons.person[preferring][shared]
    if not len(person):
        return [None] * num_people
    rows = np.arange(len(verdict))
    fit = crowd_bt(
        completions[rows, verdict],
        completions[rows, 1 - verdict],
        person,
        num_items=num_completions,
        num_raters=num_people,
        max_iterations=30,
        tolerance=1e-3,
    )
    return [round(float(eta), 4) if n else None for eta, n in zip(fit.eta_A, fit.answers_A, strict=True)]


def _joined(labels: list[Labels], name: str) -> np.ndarray:
    return np.concatenate([getattr(x, name) for x in labels])
