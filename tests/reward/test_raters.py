"""Weights of raters by hand and on raters whose reliability is known; contradictions counted."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from reward.data import Pair
from reward.raters import Conflict, Consistency, RaterReport, conflicts, consistency, rater_weights
from rlhf.core.records import Preference

METHODS = ("dawid-skene", "crowd-bt")


def said(better: int, worse: int, rater: str = "", *, tie: bool = False, prompt: str = "p") -> Pair:
    values = {
        "prompt": prompt,
        "chosen": f"text {better}",
        "rejected": f"text {worse}",
        "annotator_id": rater,
    }
    values |= {"chosen_id": f"c{better}", "rejected_id": f"c{worse}", "prompt_id": prompt}
    return Pair(better, worse, Preference.model_validate({**values, "tie": tie, "margin": 0 if tie else 1}))


def skilled(skills: dict[str, float], num_pairs: int, overlap: int, seed: int) -> list[Pair]:
    """Each pair of rows is judged by `overlap` raters, each right with their probability; 10 % are called ties."""
    rng = np.random.default_rng(seed)
    names, found = list(skills), []
    for i in range(num_pairs):
        first, second = (2 * i, 2 * i + 1) if rng.random() < 0.5 else (2 * i + 1, 2 * i)
        for name in rng.choice(names, overlap, replace=False):
            right = rng.random() < skills[name]
            better, worse = (first, second) if right else (second, first)
            found.append(said(better, worse, str(name), tie=bool(rng.random() < 0.1)))
    return found


def test_weights_by_hand():
    """Three always agree on 30 pairs, a fourth always says the opposite, a fifth judged 10 pairs alone.

    Right answers: 3 * 30 of 4 * 30 known, mean 3/4. With 10 answers of that mean each of the three has
    (30 + 7.5) / 40 = 15/16, log-odds ln 15; the fourth 7.5 / 40, below chance; the fifth the mean, ln 3.
    Sum over answers: 90 ln 15 + 10 ln 3; the mean over 130 answers is to be 1.
    """
    pairs = []
    for i in range(30):
        pairs += [said(2 * i, 2 * i + 1, name) for name in "abc"] + [said(2 * i + 1, 2 * i, "d")]
    pairs += [said(100 + 2 * i, 101 + 2 * i, "e") for i in range(10)]
    report = rater_weights(pairs, "dawid-skene")
    scale = 130 / (90 * math.log(15) + 10 * math.log(3))
    expected = {"a": math.log(15), "b": math.log(15), "c": math.log(15), "d": 0.0, "e": math.log(3)}
    for rater in report.raters:
        assert rater.weight == pytest.approx(scale * expected[rater.annotator_id], abs=1e-3)
        assert rater.num_known == pytest.approx(0 if rater.annotator_id == "e" else 30, abs=0.01)
    reliability = [rater.reliability for rater in report.raters]
    assert reliability[:4] == pytest.approx([1, 1, 1, 0], abs=1e-3)
    assert reliability[4] is None
    assert report.note == ""
    # a weight of 1 stands for the mean log-odds
    assert report.nats == pytest.approx(1 / scale, abs=1e-3)
    assert sum(r.weight * r.num_answers for r in report.raters) / 130 == pytest.approx(1)
    assert report.weight_of("somebody else") == 1.0
    assert report.rows()[3]["annotator_id"] == "d"


def test_nobody_is_taken_for_better_than_the_cap():
    """200 right answers make (200 + 10 m) / 210 > 0.95 of two, so both weigh the same whatever the cap; the third
    has 100 of 200: m = 500/600, (100 + 8.33) / 210 = 0.516, log-odds 0.0635, against ln 19 = 2.944 at 0.95."""
    pairs = []
    for i in range(200):
        pairs += [said(2 * i, 2 * i + 1, "a"), said(2 * i, 2 * i + 1, "b")]
        pairs.append(said(2 * i, 2 * i + 1, "c") if i % 2 else said(2 * i + 1, 2 * i, "c"))
    report = rater_weights(pairs, "dawid-skene")
    p = (100 + 10 * 500 / 600) / 210
    assert report.weight_of("c") / report.weight_of("a") == pytest.approx(
        math.log(p / (1 - p)) / math.log(19), abs=2e-3
    )
    assert report.weight_of("a") == report.weight_of("b")


SKILLS = {"a": 0.95, "b": 0.85, "c": 0.75, "d": 0.6, "e": 0.15}


def assert_in_order(report: RaterReport) -> None:
    found = {rater.annotator_id: rater for rater in report.raters}
    assert sorted(found, key=lambda name: -(found[name].reliability or 0)) == list(SKILLS)
    a, b, c, d, e = (report.weight_of(name) for name in SKILLS)
    assert a >= b > c > d > e == 0
    num_answers = sum(rater.num_answers for rater in report.raters)
    assert sum(r.weight * r.num_answers for r in report.raters) == pytest.approx(num_answers)


def test_dawid_skene_finds_the_order_of_the_raters():
    report = rater_weights(skilled(SKILLS, 1500, 2, seed=0), "dawid-skene")
    assert_in_order(report)
    assert [r.reliability for r in report.raters] == pytest.approx(list(SKILLS.values()), abs=0.06)


def test_standard_errors_by_hand():
    """Two raters agree on 60 pairs and disagree on 20. Both are right with p where p^2 + (1 - p)^2 = 3/4, so that
    p (1 - p) = 1/8 and p = 0.854; with the half answers of either kind that the fit adds, a little less.

    Where they agree, they are right with p^2 / (3/4), and each one's score is (that - p) / (p (1 - p)), the same for
    both; where they disagree either is right with one half, (1/2 - p) / (p (1 - p)). The scores of the two are always
    equal, so that only the sum of the reliabilities is known: all but the prior's information lies in one direction.
    With J = 60 s1^2 + 20 s2^2 in every cell and the prior's c on the diagonal the variance is (c + J) / (c (c + 2 J)).
    """
    pairs = []
    for i in range(80):
        pairs.append(said(2 * i, 2 * i + 1, "a"))
        pairs.append(said(2 * i, 2 * i + 1, "b") if i % 4 else said(2 * i + 1, 2 * i, "b"))
    one, other = rater_weights(pairs, "dawid-skene").raters
    assert one.reliability == pytest.approx(0.854, abs=0.01)
    p = (one.reliability * 80 + 0.5) / 81
    agree = p * p / (p * p + (1 - p) * (1 - p))
    s1, s2 = (agree - p) / (p * (1 - p)), (0.5 - p) / (p * (1 - p))
    J, c = 60 * s1 * s1 + 20 * s2 * s2, 0.5 / p**2 + 0.5 / (1 - p) ** 2
    expected = math.sqrt((c + J) / (c * (c + 2 * J)))
    assert one.reliability_se == pytest.approx(expected, rel=0.03)
    assert other.reliability_se == pytest.approx(one.reliability_se, rel=1e-6)


def test_standard_errors_are_how_far_the_estimates_stray():
    """15 draws of four raters: (estimate - truth) / standard error has deviation 1, within 3 of its own errors."""
    skills = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}
    moves = []
    for seed in range(15):
        for rater in rater_weights(skilled(skills, 200, 3, seed), "dawid-skene").raters:
            moves.append((rater.reliability - skills[rater.annotator_id]) / rater.reliability_se)
    # 60 values: the error of a deviation is 1 / sqrt(120) = 0.09, a little more since raters of a draw move together
    assert np.std(moves) == pytest.approx(1.0, abs=0.3)
    assert abs(np.mean(moves)) < 0.5


def test_crowd_bt_finds_the_order_where_completions_are_compared_often():
    """Eight completions a prompt, each two compared once: seven comparisons of each, none of a pair twice."""
    rng = np.random.default_rng(0)
    pairs = []
    for prompt in range(120):
        strength = rng.normal(0, 3, 8)
        for i, j in combinations(range(8), 2):
            first_wins = rng.random() < 1 / (1 + np.exp(strength[j] - strength[i]))
            name = str(rng.choice(list(SKILLS)))
            i, j = (i, j) if first_wins == (rng.random() < SKILLS[name]) else (j, i)
            pairs.append(said(8 * prompt + i, 8 * prompt + j, name))
    report = rater_weights(pairs, "crowd-bt")
    assert_in_order(report)
    assert {rater.reliability_se for rater in report.raters} == {None}
    nothing = rater_weights(pairs, "dawid-skene")
    assert "no two raters judged the same" in nothing.note
    assert {rater.weight for rater in nothing.raters} == {1.0}


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_is_known_all_weigh_the_same(method):
    """No answers; one a pair; chains; one rater who repeats themselves; only ties."""
    single = [said(2 * i, 2 * i + 1, "ab"[i % 2]) for i in range(20)]
    chains = [*single, *[said(2 * i + 1, 2 * i + 2, "c") for i in range(19)]]
    repeats = [said(0, 1, "a"), said(0, 1, "a"), said(2, 3, "b")]
    for pairs in ([], single, chains, repeats, [said(0, 1, "a", tie=True), said(0, 1, "b", tie=True)]):
        report = rater_weights(pairs, method)
        assert all((r.weight, r.reliability) == (1.0, None) for r in report.raters)
        assert report.note
    needed = {
        "dawid-skene": "no two raters judged the same two",
        "crowd-bt": "5 comparisons of each completion",
    }
    assert needed[method] in rater_weights(single, method).note


def test_where_all_are_at_chance_or_no_method_is_asked_for():
    pairs = [said(0, 1, "a"), said(1, 0, "b"), said(2, 3, "a"), said(3, 2, "b")]
    report = rater_weights(pairs, "dawid-skene")
    assert [r.weight for r in report.raters] == [1, 1]
    assert "better than chance" in report.note
    assert report.nats is None
    plain = rater_weights(pairs, "none")
    assert [(r.weight, r.reliability, r.num_answers) for r in plain.raters] == [(1, None, 2)] * 2
    assert plain.note == ""


def test_unsigned_answers_are_one_rater_who_weighs_one():
    pairs = []
    for i in range(20):
        pairs += [said(2 * i, 2 * i + 1, name) for name in "ab"] + [said(2 * i + 1, 2 * i, "")]
    report = rater_weights(pairs, "dawid-skene")
    assert report.weight_of("") == 1.0
    assert report.weight_of("a") == report.weight_of("b") == pytest.approx(1.0)
    assert report.raters[0].reliability == pytest.approx(0, abs=1e-3)


def test_equal_texts_tell_nothing_about_anybody():
    pairs = [said(5, 5, name) for name in "ab" for _ in range(30)]
    assert rater_weights(pairs, "dawid-skene").raters[0].reliability is None
    assert conflicts(pairs) == []
    assert consistency(pairs) == Consistency(0, 0, 0, 0)


def test_conflicts_name_who_said_what():
    pairs = [
        *[said(1, 2, "a"), said(2, 1, "b"), said(2, 1, "c"), said(1, 2, "d", tie=True), said(1, 2, "e")],
        *[said(8, 9, "a"), said(9, 8, "a")],
        *[said(3, 4, "a"), said(3, 4, "b", tie=True)],
    ]
    most, other = conflicts(pairs)
    assert most == Conflict("p", "p", "p", "c1", "c2", ("a", "e"), ("b", "c"), ("d",))
    assert (other.first_id, other.second_id, other.first_by, other.second_by) == ("c8", "c9", ("a",), ("a",))
    assert most.row()["first_by"] == ("a", "e")
    # three twos of completions; of the last one a tie and one decision
    assert consistency(pairs) == Consistency(num_repeated=2, num_conflicting=2, num_triples=0, num_cycles=0)


def test_cycles_by_hand():
    """0 > 1 > 2 > 0 goes round; 3 > 4, 4 > 5, 3 > 5 does not; 6 and 7 are level, so 6, 7, 8 is no triple."""
    cycle = [said(0, 1), said(1, 2), said(2, 0)]
    chain = [said(3, 4), said(4, 5), said(3, 5)]
    level = [said(6, 7), said(7, 6), said(7, 8), said(6, 8)]
    found = consistency([*cycle, *chain, *level])
    assert found == Consistency(num_repeated=1, num_conflicting=1, num_triples=2, num_cycles=1)
    assert found.conflict_share == 1.0
    assert math.isnan(consistency(cycle).conflict_share)
    assert consistency(cycle).row()["conflict_share"] is None
    # the majority turns the circle: 0 over 2 twice, 2 over 0 once
    assert consistency([*cycle, said(0, 2), said(0, 2)]).num_cycles == 0
    # all four of a round robin in which everybody beats the next two: 0>1>2>3>0, 0>2, 1>3
    four = [said(0, 1), said(1, 2), said(2, 3), said(3, 0), said(0, 2), said(1, 3)]
    # 013: 0>1>3>0; 023: 0>2>3>0 are cycles; 012 and 123 are not
    assert consistency(four) == Consistency(0, 0, 4, 2)


def test_coins_make_a_quarter_of_all_triples_cycles():
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(400):
        for a, b in ((0, 1), (1, 2), (0, 2)):
            a, b = (a, b) if rng.random() < 0.5 else (b, a)
            pairs.append(said(3 * i + a, 3 * i + b))
    found = consistency(pairs)
    assert found.num_triples == 400
    # 3 standard deviations of a share of 400 draws: 0.065
    assert found.num_cycles / 400 == pytest.approx(0.25, abs=0.065)
