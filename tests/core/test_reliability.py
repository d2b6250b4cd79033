"""Dawid-Skene and Crowd-BT: by hand, against a general optimiser, and on raters whose skill is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from rlhf.core.reliability import crowd_bt, dawid_skene


def test_one_step_of_dawid_and_skene_by_hand():
    """Raters 0 and 1 say 0 of item 0 and 1 of item 1; rater 2 always says 1. Votes: (2/3, 1/3) and (0, 1).

    Prior (1/3, 2/3). Raters 0, 1: truth 0 -> always 0; truth 1 -> 0 with (1/3)/(4/3) = 1/4. Item 0 then:
    1/3 * 1 * 1 * 1 against 2/3 * 1/16 * 1, that is 8 : 1.
    """
    found = dawid_skene(
        np.array([0, 0, 0, 1, 1, 1]),
        np.array([0, 1, 2, 0, 1, 2]),
        np.array([0, 0, 1, 1, 1, 1]),
        num_items=2,
        num_raters=3,
        num_labels=2,
        smoothing=0.0,
        max_iterations=1,
    )
    assert found.truth_IK == pytest.approx(np.array([[8 / 9, 1 / 9], [0, 1]]))


SKILLS = np.array([0.95, 0.9, 0.8, 0.7, 0.5, 0.1])  # the last two: careless, adversarial


def test_dawid_skene_finds_known_raters():
    rng = np.random.default_rng(1)
    num_items = 600
    truth = rng.integers(0, 2, num_items)
    item, rater = (x.ravel() for x in np.meshgrid(np.arange(num_items), np.arange(len(SKILLS))))
    right = rng.random(len(item)) < SKILLS[rater]
    label = np.where(right, truth[item], 1 - truth[item])
    found = dawid_skene(item, rater, label, num_items=num_items, num_raters=6, num_labels=2, turned=(1, 0))
    assert (np.argsort(-found.reliability_A) == np.arange(6)).all()
    assert found.reliability_A == pytest.approx(SKILLS, abs=0.05)
    assert (found.truth_IK.argmax(axis=1) == truth).mean() > 0.97


def test_crowd_bt_finds_known_raters_and_strengths():
    rng = np.random.default_rng(2)
    strengths, num = np.linspace(-2, 2, 12), 4000
    first, second = rng.integers(0, 12, num), rng.integers(0, 12, num)
    first, second = first[first != second], second[first != second]
    rater = rng.integers(0, 6, len(first))
    first_better = rng.random(len(first)) < 1 / (1 + np.exp(strengths[second] - strengths[first]))
    said_first = np.where(rng.random(len(first)) < SKILLS[rater], first_better, ~first_better)
    winner, loser = np.where(said_first, first, second), np.where(said_first, second, first)
    found = crowd_bt(winner, loser, rater, num_items=12, num_raters=6)
    assert (np.argsort(-found.eta_A)[-2:] == [4, 5]).all()
    assert found.eta_A == pytest.approx(SKILLS, abs=0.1)
    assert np.corrcoef(found.strength_I, strengths)[0, 1] > 0.98


def test_crowd_bt_is_the_maximum_of_its_likelihood():
    """Against a general optimiser of the same penalised likelihood on a small case."""
    winner, loser = np.array([0, 0, 1, 0, 2, 1, 0, 2]), np.array([1, 1, 2, 2, 0, 2, 1, 1])
    rater = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = crowd_bt(winner, loser, rater, num_items=3, num_raters=2, max_iterations=5000, tolerance=1e-10)

    def loss(x):
        s, eta = x[:3], 1 / (1 + np.exp(-x[3:]))
        p, virtual = 1 / (1 + np.exp(s[loser] - s[winner])), 1 / (1 + np.exp(-s))
        value = np.log(eta[rater] * p + (1 - eta[rater]) * (1 - p)).sum()
        value += 0.5 * np.log(virtual * (1 - virtual)).sum()
        return -(value + (2 * np.log(eta) + np.log(1 - eta)).sum())

    best = minimize(loss, np.array([0, 0, 0, 0.7, 0.7]), tol=1e-12).x
    assert found.strength_I == pytest.approx(best[:3] - best[:3].mean(), abs=1e-3)
    assert found.eta_A == pytest.approx(1 / (1 + np.exp(-best[3:])), abs=1e-3)
