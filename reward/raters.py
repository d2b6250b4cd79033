"""Who is reliable, how much their answers count, and where raters contradict each other. Numpy only.

Reliability is the probability of naming the better of two completions, ties aside. Nobody tells it: it is
estimated from answers about the same completions (`rlhf.core.reliability`): by Dawid-Skene from pairs that two
raters judged, or by Crowd-BT where every completion was compared often. Take Dawid-Skene unless each prompt has
many completions: Crowd-BT gives every completion a strength of its own, and with fewer than about five
comparisons of each these explain whatever anybody said (all raters then come out alike).

An answer of a rater who is right with probability p and errs independently of the others counts log(p / (1 - p)),
the weight with which votes add up to the posterior (Nitzan and Paroush, Optimal decision rules in uncertain
dichotomous choice situations, International Economic Review 23, 1982); at chance and below it counts 0. Before
that, reliabilities are drawn towards the mean of all raters as if each had given PRIOR_ANSWERS more answers of
that mean, so that a few answers neither crown nor silence anybody, and nobody is taken for better than
MAX_RELIABILITY. Weights have mean 1 over the answers: they say from whom to learn, not how fast.

With Dawid-Skene each reliability comes with its standard error, from the information that the answers hold about all
reliabilities together (the sum of the items' outer products of the score, Berndt et al., Annals of Economic and Social
Measurement 3, 1974; a score is the mean of the complete data's given the answers, Louis, JRSS B 44, 1982). How often
each rater calls ties is taken as known.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from reward.data import Pair
from reward.evaluate import votes_of
from rlhf.core.reliability import crowd_bt, dawid_skene

Method = Literal["none", "dawid-skene", "crowd-bt"]
PRIOR_ANSWERS = 10.0
MAX_RELIABILITY = 0.95
MIN_COMPARISONS = 5  # of each completion, on the average of a connected part
# With the paper's 0.5 strengths stay near 0, chance explains every error, and all raters come out near 1.
REGULARIZATION = 0.05
UNKNOWN = ""  # the id of answers that nobody signed: one rater, whose weight stays 1
FIRST, SECOND, TIE = range(3)
TURNED = (SECOND, FIRST, TIE)


@dataclass(frozen=True)
class Rater:
    """reliability: None where nothing is known about them; reliability_se: its standard error, None where it is not
    estimated. num_known: the answers that both rest on."""

    annotator_id: str
    num_answers: int
    num_known: float
    reliability: float | None
    reliability_se: float | None
    weight: float


@dataclass(frozen=True)
class RaterReport:
    """Every rater of comparisons, by id. note: why all weigh the same although a method was asked for, or ''.

    nats: the log-odds of being right that a weight of 1 stands for; None where no weights were estimated.
    """

    method: Method
    raters: tuple[Rater, ...]
    note: str = ""
    nats: float | None = None

    @cached_property
    def _weights(self) -> dict[str, float]:
        return {rater.annotator_id: rater.weight for rater in self.raters}

    def weight_of(self, annotator_id: str) -> float:
        """How much an answer of theirs counts; 1 for somebody who compared nothing."""
        return self._weights.get(annotator_id, 1.0)

    def rows(self) -> list[dict[str, Any]]:
        """One row a rater, for a manifest or a page."""
        return [asdict(rater) for rater in self.raters]


def rater_weights(pairs: Sequence[Pair], method: Method) -> RaterReport:
    """What is known about each rater from the answers of one split (take the training split).

    Where a method cannot know anything, all weigh 1 and the note says why.
    """
    answers = _Answers(pairs)
    num_raters = len(answers.names)
    known, note = _Known.nothing(num_raters), ""
    if method == "dawid-skene":
        known = _by_dawid_skene(answers)
        note = "no two raters judged the same two completions"
    elif method == "crowd-bt":
        known = _by_crowd_bt(answers)
        note = f"no prompt has {MIN_COMPARISONS} comparisons of each completion, which Crowd-BT needs"
    weight_A, nats = np.ones(num_raters), None
    if known.num_A.any():
        weight_A, nats = _weights(answers, known)
        note = "" if nats else "no rater is estimated to be better than chance"
    raters = [
        Rater(
            annotator_id=name,
            num_answers=int(answers.counts_A[a]),
            num_known=round(float(known.num_A[a]), 2),
            reliability=float(known.right_A[a] / known.num_A[a]) if known.num_A[a] else None,
            reliability_se=float(known.se_A[a]) if known.num_A[a] and math.isfinite(known.se_A[a]) else None,
            weight=float(weight_A[a]),
        )
        for a, name in enumerate(answers.names)
    ]
    return RaterReport(method, tuple(sorted(raters, key=lambda rater: rater.annotator_id)), note, nats)


@dataclass(frozen=True)
class _Known:
    """Expected right answers, answers of which that is known, and the standard error of their ratio, all [A].

    se_A is NaN where it is not estimated.
    """

    right_A: np.ndarray
    num_A: np.ndarray
    se_A: np.ndarray

    @classmethod
    def nothing(cls, num_raters: int) -> _Known:
        return cls(np.zeros(num_raters), np.zeros(num_raters), np.full(num_raters, np.nan))


class _Answers:
    """Comparisons as codes: of the rater, of the two rows (first < second), and of what was said."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        index: dict[str, int] = {}
        self.rater_N = np.array([index.setdefault(p.preference.annotator_id, len(index)) for p in pairs], int)
        self.names = list(index)
        self.counts_A = np.bincount(self.rater_N, minlength=len(index))
        rows_N2 = np.array([(p.chosen, p.rejected) for p in pairs], int).reshape(len(pairs), 2)
        self.label_N = np.array([_said(p) for p in pairs], int)
        _, self.item_N = np.unique(np.sort(rows_N2, axis=1), axis=0, return_inverse=True)
        self.rows_N2 = rows_N2


def _by_dawid_skene(answers: _Answers) -> _Known:
    """From pairs that two raters judged."""
    num_raters = len(answers.names)
    seen = np.unique(np.stack([answers.item_N, answers.rater_N], axis=1), axis=0)
    shared = (np.bincount(seen[:, 0]) >= 2)[answers.item_N] if len(seen) else np.zeros(0, bool)
    if not shared.any():
        return _Known.nothing(num_raters)
    _, item_N = np.unique(answers.item_N[shared], return_inverse=True)
    rater_N, label_N = answers.rater_N[shared], answers.label_N[shared]
    fit = dawid_skene(
        item_N,
        rater_N,
        label_N,
        num_items=int(item_N.max()) + 1,
        num_raters=num_raters,
        num_labels=3,
        turned=TURNED,
    )
    decided = label_N != TIE
    right_N = fit.truth_IK[item_N, label_N][decided]
    wrong_N = fit.truth_IK[item_N, np.array(TURNED)[label_N]][decided]
    rater_N, item_N = rater_N[decided], item_N[decided]
    right_A = np.bincount(rater_N, weights=right_N, minlength=num_raters)
    wrong_A = np.bincount(rater_N, weights=wrong_N, minlength=num_raters)
    return _Known(
        right_A, right_A + wrong_A, _standard_errors(right_A, wrong_A, item_N, rater_N, right_N, wrong_N)
    )


def _standard_errors(
    right_A: np.ndarray,
    wrong_A: np.ndarray,
    item_N: np.ndarray,
    rater_N: np.ndarray,
    right_N: np.ndarray,
    wrong_N: np.ndarray,
) -> np.ndarray:
    """[A] of the reliabilities right / (right + wrong), from the information of the items.

    right_N, wrong_N: the probabilities, given all answers, that each decided answer is right or the reverse of it.
    """
    # Half an answer of either kind, the prior that the fit itself has, keeps the information from being singular.
    p_A = (right_A + 0.5) / (right_A + wrong_A + 1)
    score_N = right_N / p_A[rater_N] - wrong_N / (1 - p_A[rater_N])
    shape = (int(item_N.max(initial=-1)) + 1, len(p_A))
    scores_IA = csr_array((score_N, (item_N, rater_N)), shape=shape)
    information_AA = (scores_IA.T @ scores_IA).toarray() + np.diag(0.5 / p_A**2 + 0.5 / (1 - p_A) ** 2)
    variance_A: np.ndarray = np.diag(np.linalg.inv(information_AA))
    return np.sqrt(variance_A)


def _by_crowd_bt(answers: _Answers) -> _Known:
    """From Crowd-BT (its eta times the answers), over parts of the comparisons that are dense enough."""
    num_raters = len(answers.names)
    decided = answers.label_N != TIE
    rows_N2, rater_N = answers.rows_N2[decided], answers.rater_N[decided]
    if not len(rows_N2):
        return _Known.nothing(num_raters)
    _, row_N2 = np.unique(rows_N2, return_inverse=True)
    row_N2 = row_N2.reshape(rows_N2.shape)
    num_rows = int(row_N2.max()) + 1
    graph = coo_array((np.ones(len(row_N2)), (row_N2[:, 0], row_N2[:, 1])), shape=(num_rows, num_rows))
    _, part_R = connected_components(graph, directed=False)
    part_N = part_R[row_N2[:, 0]]
    used = (2 * np.bincount(part_N) >= MIN_COMPARISONS * np.bincount(part_R))[part_N]
    if not used.any():
        return _Known.nothing(num_raters)
    fit = crowd_bt(
        row_N2[used, 0],
        row_N2[used, 1],
        rater_N[used],
        num_items=num_rows,
        num_raters=num_raters,
        regularization=REGULARIZATION,
    )
    known_A = fit.answers_A.astype(float)
    # Its information about the raters is bound up with every completion's strength; no error is estimated.
    return _Known(fit.eta_A * known_A, known_A, np.full(num_raters, np.nan))


def _weights(answers: _Answers, known: _Known) -> tuple[np.ndarray, float | None]:
    """Log-odds of the reliabilities, drawn towards their mean and capped, in units of their mean over the signed
    answers; and that unit. All 1 and None where nobody is better than chance."""
    mean = known.right_A.sum() / known.num_A.sum()
    right_A, num_A = known.right_A + PRIOR_ANSWERS * mean, known.num_A + PRIOR_ANSWERS
    p_A = np.minimum(right_A / num_A, MAX_RELIABILITY)
    odds_A = np.maximum(0.0, np.log(np.maximum(p_A, 1e-9) / (1 - p_A)))
    signed_A = np.array([name != UNKNOWN for name in answers.names])
    total = float((odds_A * answers.counts_A)[signed_A].sum())
    if not total:
        return np.ones(len(odds_A)), None
    nats = total / float(answers.counts_A[signed_A].sum())
    weight_A: np.ndarray = odds_A / nats
    weight_A[~signed_A] = 1.0
    return weight_A, nats


# ---- contradictions -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conflict:
    """Two completions of which some found the first better, others the second. By whom: ids, one an answer."""

    prompt: str
    prompt_id: str
    group_id: str
    first_id: str
    second_id: str
    first_by: tuple[str, ...]
    second_by: tuple[str, ...]
    tie_by: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """For a file of lines."""
        return asdict(self)


@dataclass(frozen=True)
class Consistency:
    """How often answers about the same completions contradict each other.

    num_repeated: twos of completions that two answers or more decided; num_conflicting of them in both ways.
    num_triples: threes of completions that were compared in all three ways and decided by majority; num_cycles of
    them go round (A over B, B over C, C over A): three coins would make a quarter.
    """

    num_repeated: int
    num_conflicting: int
    num_triples: int
    num_cycles: int

    @property
    def conflict_share(self) -> float:
        """Of the twos that were decided twice; NaN where there are none."""
        return self.num_conflicting / self.num_repeated if self.num_repeated else math.nan

    @property
    def cycle_share(self) -> float:
        """Of the triples; NaN where there are none."""
        return self.num_cycles / self.num_triples if self.num_triples else math.nan

    def row(self) -> dict[str, Any]:
        """For JSON: shares of nothing are None."""
        return asdict(self) | {
            "conflict_share": self.conflict_share if self.num_repeated else None,
            "cycle_share": self.cycle_share if self.num_triples else None,
        }


def conflicts(pairs: Sequence[Pair]) -> list[Conflict]:
    """The same two completions judged in opposite ways, the most contested first."""
    found = []
    for (first, _), given in votes_of(pairs).items():
        by: dict[int, list[str]] = {FIRST: [], SECOND: [], TIE: []}
        for pair in given:
            by[_said(pair)].append(pair.preference.annotator_id)
        if by[FIRST] and by[SECOND]:
            one = given[0].preference
            ids = (one.chosen_id, one.rejected_id)
            found.append(
                Conflict(
                    prompt="\n".join(message.content for message in one.prompt),
                    prompt_id=one.prompt_id,
                    group_id=one.group_id,
                    first_id=ids[0] if given[0].chosen == first else ids[1],
                    second_id=ids[1] if given[0].chosen == first else ids[0],
                    first_by=tuple(sorted(by[FIRST])),
                    second_by=tuple(sorted(by[SECOND])),
                    tie_by=tuple(sorted(by[TIE])),
                )
            )
    return sorted(found, key=lambda c: (-min(len(c.first_by), len(c.second_by)), c.prompt_id, c.first_id))


def consistency(pairs: Sequence[Pair]) -> Consistency:
    """Counts over the answers of one split."""
    num_repeated = num_conflicting = 0
    better: dict[int, set[int]] = defaultdict(set)
    beside: dict[int, set[int]] = defaultdict(set)
    decided: list[tuple[int, int]] = []
    for (first, second), given in votes_of(pairs).items():
        said = [_said(pair) for pair in given]
        wins, losses = said.count(FIRST), said.count(SECOND)
        num_repeated += wins + losses >= 2
        num_conflicting += wins > 0 and losses > 0
        if wins != losses:
            winner, loser = (first, second) if wins > losses else (second, first)
            better[winner].add(loser)
            beside[first].add(second)
            beside[second].add(first)
            decided.append((winner, loser))
    # Every triple is met at its three edges, and a cycle at all three of them.
    num_triples = sum(len(beside[a] & beside[b]) for a, b in decided) // 3
    num_cycles = sum(a in better[c] for a, b in decided for c in better[b]) // 3
    return Consistency(num_repeated, num_conflicting, num_triples, num_cycles)


def _said(pair: Pair) -> int:
    """Texts that are the same in the model's tokens are as good as each other, whatever was said."""
    if pair.preference.tie or pair.chosen == pair.rejected:
        return TIE
    return FIRST if pair.chosen < pair.rejected else SECOND
