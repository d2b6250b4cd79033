"""What the page says about raters, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reward.assess.raters import rater_figures
from reward.assess.words import rater_words
from reward.data import Pair

Compare = Callable[..., Pair]


def test_agreement_and_contradictions_of_each_rater(compare: Compare) -> None:
    """Ten prompts that x and y judge, alike but for the last; z says the reverse of x three times, and of herself
    once; w judged alone."""
    pairs = []
    for i in range(10):
        pairs.append(compare("a", "b", prompt=f"p{i}", annotator_id="x"))
        sides = ("b", "a") if i == 9 else ("a", "b")
        pairs.append(compare(*sides, prompt=f"p{i}", annotator_id="y"))
    pairs += [compare("b", "a", prompt=f"p{i}", annotator_id="z") for i in (0, 1, 2)]
    pairs.append(compare("a", "b", prompt="p0", annotator_id="z"))
    pairs.append(compare("a", "b", prompt="alone", annotator_id="w"))
    found = rater_figures([pair.preference for pair in pairs], [{"annotator_id": "x", "weight": 1.5}], seed=0)
    w, x, y, z = found["rows"]
    # x: beside y ten times, alike in nine; beside z four times, alike once
    assert (x["agreement"], x["num_shared"]) == (pytest.approx(10 / 14), 14)
    assert (y["agreement"], y["num_shared"]) == (pytest.approx(10 / 14), 14)
    # z: beside x and y in p0 twice each, once as they; in p1 and p2 never
    assert (z["agreement"], z["num_shared"]) == (pytest.approx(2 / 8), 8)
    assert (z["num_repeated"], z["num_contradicted"]) == (1, 1)
    assert (x["num_repeated"], x["num_contradicted"]) == (0, 0)
    assert (w["agreement"], w["reliability"], w["num_answers"]) == (None, None, 1)
    assert [row["weight"] for row in (w, x)] == [None, 1.5]
    assert x["reliability"] > 0.5 > z["reliability"]
    assert x["reliability_low"] < x["reliability"] < x["reliability_high"] <= 1
    # p0, p1, p2 and p9 were decided in both ways, of ten that were decided twice
    assert found["contradictions"]["conflict_share"] == pytest.approx(0.4)
    assert "Of 10 pairs of completions that were decided more than once, 40.0 %" in rater_words(
        {"raters": found}
    )


def test_raters_who_never_met(compare: Compare) -> None:
    pairs = [compare("a", "b", prompt="p", annotator_id="x"), compare("a", "b", prompt="q", annotator_id="y")]
    found = rater_figures([pair.preference for pair in pairs], [], seed=0)
    assert [row["reliability"] for row in found["rows"]] == [None, None]
    text = rater_words({"raters": found})
    assert "is not known" in text
    assert "no two raters judged the same two completions" in text


def test_circles_are_named_where_there_are_triples(compare: Compare) -> None:
    pairs = [compare(*sides, prompt="p", annotator_id="x") for sides in (("a", "b"), ("b", "c"), ("c", "a"))]
    text = rater_words({"raters": rater_figures([pair.preference for pair in pairs], [], seed=0)})
    assert "Of 1 triples that were compared in all three ways 1 go round (100.0 %" in text
