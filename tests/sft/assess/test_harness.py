"""Figures from what lm-evaluation-harness hands back, in the shape of its 0.4.13."""

from __future__ import annotations

from typing import Any

import pytest

from sft.assess.harness import aggregated, figures, single_values


def handed_back(right: list[float], perplexity: float) -> tuple[Any, Any]:
    """`samples` and `results` of simple_evaluate: one task of questions, one with a metric of its whole corpus."""
    questions = [
        {"doc_id": i, "filter": "none", "metrics": ["acc"], "acc": value, "target": 0}
        for i, value in enumerate(right)
    ]
    corpus = [{"doc_id": 0, "filter": "none", "metrics": ["word_perplexity"], "word_perplexity": (-9.0, 4)}]
    mean = sum(right) / len(right)
    results = {
        "colours": {"alias": "colours", "acc,none": mean, "acc_stderr,none": 0.1, "sample_len": len(right)},
        "stories": {
            "alias": "stories",
            "word_perplexity,none": perplexity,
            "word_perplexity_stderr,none": "N/A",
        },
    }
    return {"colours": questions, "stories": corpus}, results


def read(right: list[float], perplexity: float) -> tuple[Any, Any]:
    samples, results = handed_back(right, perplexity)
    return single_values(samples), aggregated(results)


def test_questions_are_compared_in_pairs_and_corpora_as_they_are() -> None:
    rows = figures(read([1, 1, 0, 1], 9.5), read([0, 1, 0, 1], 12.0), seed=0)
    acc, perplexity = rows
    assert (acc["task"], acc["n"]) == ("colours", 4)
    assert (acc["value"], acc["value_base"], acc["value_gain"]) == (0.75, 0.5, 0.25)
    assert acc["value_gain_low"] == 0  # one question more: a resample may miss it
    # a tuple of one document is no figure of a question; the whole corpus has no pairs and, here, no error
    assert (perplexity["n"], perplexity["value"], perplexity["value_base"]) == (None, 9.5, 12.0)
    assert perplexity["value_low"] == perplexity["value_high"] == 9.5
    assert perplexity["value_gain"] is None


def test_without_a_base_there_is_no_gain() -> None:
    acc = figures(read([1, 0], 9.5), None, seed=0)[0]
    assert (acc["value"], acc["value_base"], acc["value_gain"]) == (0.5, None, None)


def test_an_aggregate_that_is_no_mean_keeps_the_harnesses_error() -> None:
    samples, results = handed_back([1, 0], 9.5)
    results["colours"] |= {"acc,none": 0.9, "acc_stderr,none": 0.1}  # a metric that weighs questions
    acc = figures((single_values(samples), aggregated(results)), None, seed=0)[0]
    assert acc["n"] is None
    assert (acc["value_low"], acc["value_high"]) == pytest.approx((0.9 - 0.196, 0.9 + 0.196))
