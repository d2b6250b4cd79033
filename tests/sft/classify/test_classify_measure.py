"""Scores, intervals and calibration by hand, and beside scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from sft.classify.baselines import Texts, baselines
from sft.classify.measure import (
    calibration,
    classification,
    confusion_matrix,
    fit_temperature,
    lead,
    probabilities,
    resampled_scores,
    scores_of,
)


def test_scores_by_hand() -> None:
    # true a a a a b b, said a a a b b a: F1 of a = 2*3/(4+4) = 3/4, of b = 2*1/(2+2) = 1/2
    table = confusion_matrix(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0]), 2)
    assert table.tolist() == [[3, 1], [1, 1]]
    found = scores_of(table[None])
    assert found["accuracy"][0] == pytest.approx(4 / 6)
    assert found["macro_f1"][0] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["weighted_f1"][0] == pytest.approx((4 * 3 / 4 + 2 * 1 / 2) / 6)
    assert found["precision"][0].tolist() == pytest.approx([3 / 4, 1 / 2])
    assert found["recall"][0].tolist() == pytest.approx([3 / 4, 1 / 2])


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    true, said = (
        rng.integers(0, 4, 200),
        rng.integers(0, 5, 200),
    )  # nobody has the label 4, and it is predicted
    found = scores_of(confusion_matrix(true, said, 5)[None])
    present = [0, 1, 2, 3]
    assert found["macro_f1"][0] == pytest.approx(f1_score(true, said, labels=present, average="macro"))
    assert found["weighted_f1"][0] == pytest.approx(f1_score(true, said, labels=present, average="weighted"))
    expected = precision_recall_fscore_support(true, said, labels=present)
    for name, values in zip(("precision", "recall", "f1"), expected[:3], strict=True):
        assert found[name][0, :4].tolist() == pytest.approx(values.tolist()), name
    assert np.isnan(found["f1"][0, 4])


def test_intervals_draw_families_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # 40 texts, each four times: the same 60 % right, but a fourth of the evidence, so twice the width
    right = np.array([1] * 24 + [0] * 16)
    true = np.zeros(160, dtype=int)
    said = np.repeat(1 - right, 4)
    copies = [str(i) for i in np.repeat(np.arange(40), 4)]
    alone = [str(i) for i in range(160)]
    wide = classification(true, said, ["a", "b"], copies, 0)
    narrow = classification(true, said, ["a", "b"], alone, 0)
    assert wide["accuracy"] == narrow["accuracy"] == pytest.approx(0.6)
    widths = [found["accuracy_high"] - found["accuracy_low"] for found in (wide, narrow)]
    assert widths[0] / widths[1] == pytest.approx(2.0, abs=0.3)
    # binomial: 0.6 +- 1.96 sqrt(0.6 * 0.4 / 40) = 0.6 +- 0.152
    assert wide["accuracy_low"] == pytest.approx(0.6 - 0.152, abs=0.03)
    whole = resampled_scores(true, said, 2, copies, 0)
    assert len(whole["accuracy"]) == 2000
    # A thousand labels have tables of 8 MB each: what is drawn at a time changes nothing.
    monkeypatch.setattr("sft.classify.measure.MAX_RESAMPLE_CELLS", 400)
    for name, drawn in resampled_scores(true, said, 2, copies, 0).items():
        np.testing.assert_array_equal(drawn, whole[name])


def test_the_lead_is_paired() -> None:
    # Two predictors that are wrong on the same texts: the lead is 0 in every sample.
    rng = np.random.default_rng(1)
    true, said = rng.integers(0, 3, 90), rng.integers(0, 3, 90)
    families = [str(i) for i in range(90)]
    same = lead(true, said, said.copy(), 3, families, 0)
    assert (same["macro_f1"], same["macro_f1_low"], same["macro_f1_high"]) == (0, 0, 0)
    better = lead(true, true, said, 3, families, 0)
    assert better["accuracy"] == pytest.approx(1 - (true == said).mean())
    assert better["accuracy_low"] > 0.4


def test_temperature_by_hand() -> None:
    # Logit 4 for the label that is right in 3 of 4 cases: the best probability is 3/4, whose logit is ln 3.
    logits = np.array([[4.0, 0.0]] * 4)
    temperature = fit_temperature(logits, np.array([0, 0, 0, 1]))
    assert temperature == pytest.approx(4 / math.log(3), rel=1e-3)
    assert probabilities(logits, temperature)[0].tolist() == pytest.approx([0.75, 0.25], abs=1e-3)


def test_calibration_by_hand() -> None:
    chances = np.array([[0.8, 0.2, 0.0], [0.6, 0.3, 0.1]])
    found = calibration(chances, np.array([0, 1]))
    # 0.8 is right, 0.6 is wrong; each has a bin of its own
    assert found["ece"] == pytest.approx((0.2 + 0.6) / 2)
    assert found["overconfidence"] == pytest.approx(0.7 - 0.5)
    # (0.2^2 + 0.2^2) and (0.6^2 + 0.7^2 + 0.1^2)
    assert found["brier"] == pytest.approx((0.08 + 0.86) / 2)
    assert found["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.3)) / 2)


def test_a_bag_of_words_learns_words_and_the_majority_is_the_majority() -> None:
    texts = ["the red cat", "the blue cat", "a red dog", "a blue dog"] * 6
    targets = [0, 1, 0, 1] * 6
    train = Texts(["red red", *texts], [0, *targets])
    heldout = Texts(["one red bird", "one blue bird"], [0, 1])
    majority, words = baselines(train, Texts(texts[:4], targets[:4]), heldout, ["r", "b"], balanced=False)
    assert majority.predicted.tolist() == [0, 0]
    assert words.predicted.tolist() == [0, 1]
    assert len(baselines(Texts(["", " "], [0, 1]), heldout, heldout, ["r", "b"], balanced=True)) == 1
