"""Comparison, forgetting, facts and groundedness, with every number worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sft.assess.compare import Spoken, columns, compare, standing
from sft.assess.facts import Answered, drift, groundedness
from sft.assess.forgetting import Remembered, by_source, most_lost, rise
from sft.assess.rows import Item, Text, read_held_out
from sft.assess.subjects import TokenRow

ItemMaker = Callable[..., Item]


def test_perplexity_weighs_texts_by_their_tokens_and_gains_are_nats_saved() -> None:
    references = [["a b"], ["c"]]
    base = Spoken([np.array([2.0, 2.0, 2.0]), np.array([0.0])], ["x", "c"])
    tuned = Spoken([np.array([1.0, 1.0, 1.0]), np.array([1.0])], ["a b", "c"])
    systems = {"base": columns(base, references), "tuned": columns(tuned, references)}
    found = compare(systems, ["p", "q"], seed=0)
    # base: 6 nats over 4 tokens; tuned: 4 over 4
    assert found["nll_base"] == pytest.approx(1.5)
    assert found["perplexity_base"] == pytest.approx(math.exp(1.5))
    assert found["perplexity"] == pytest.approx(math.e)
    assert found["nll_gain"] == pytest.approx(0.5)
    # resampled twice the first prompt saves 1 nat a token, twice the second costs 1
    assert (found["nll_gain_low"], found["nll_gain_high"]) == pytest.approx((-1.0, 1.0))
    assert standing(found, "nll_gain") == "open"
    # the first answer is right now and was wrong, the second is as it was
    assert found["exact_match_gain"] == pytest.approx(0.5)
    assert "nll_gain_over_few_shot" not in found
    assert standing(found, "nll_gain_over_few_shot") is None


def test_a_gain_is_told_by_its_interval() -> None:
    assert standing({"g_low": 0.01, "g_high": 0.2}, "g") == "better"
    assert standing({"g_low": -0.2, "g_high": -0.01}, "g") == "worse"


def remembered() -> tuple[Remembered, list[Text]]:
    """Three texts, the first of two pieces: before 1 nat a token everywhere, after 2, 2, 1 and 0.5."""
    texts = [
        Text(i, f"t{i}", name, source)
        for i, (name, source) in enumerate([("x", "s"), ("y", "s"), ("z", "r")])
    ]
    rows = [TokenRow([0, 1, 2], 1)] * 4
    before = [np.ones(2)] * 4
    after = [np.full(2, 2.0), np.full(2, 2.0), np.full(2, 1.0), np.full(2, 0.5)]
    return Remembered(rows, ["t0", "t0", "t1", "t2"], before, after), texts


def test_forgetting_is_the_rise_in_nats_per_token() -> None:
    found, texts = remembered()
    figures = rise(found, "general", seed=0)
    assert figures["general_base"] == pytest.approx(math.e)
    assert figures["general_rise"] == pytest.approx((4 + 4 + 2 + 1) / 8 - 1)
    sources = by_source(found, texts, seed=0)
    # source s: 10 nats over 6 tokens; r: 1 over 2
    assert [(row["source"], row["num_texts"]) for row in sources] == [("s", 2), ("r", 1)]
    assert sources[0]["perplexity_rise"] == pytest.approx(10 / 6 - 1)
    assert sources[1]["perplexity_rise"] == pytest.approx(-0.5)
    # only what was lost is shown, a text as a whole
    assert [(row["text"], row["nats_after"]) for row in most_lost(found, texts)] == [("x", 2.0)]


def test_one_source_is_no_comparison_of_sources() -> None:
    found, texts = remembered()
    same = [Text(text.line, text.group_id, text.text, "") for text in texts]
    assert by_source(found, same, seed=0) == []


def test_answers_that_changed_sides_are_listed_wrong_ones_first(item: ItemMaker) -> None:
    items = [
        item("capital of France?", "Paris", line=1),
        item("2 + 2?", "4", "four", line=2),
        item("sky?", "blue", line=3),
    ]
    found = Answered(items, ["It is Paris.", "five", "red"], ["Rome", "It is four", "red"])
    figures, turned = drift(found, "contains", seed=0)
    assert (figures["facts_base"], figures["facts"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (figures["facts_lost"], figures["facts_won"]) == (1, 1)
    assert figures["facts_changed"] == pytest.approx(2 / 3)
    assert [(row["line"], row["turned"]) for row in turned] == [(1, "wrong"), (2, "right")]
    # as a whole "It is Paris." is no right answer, so it cannot turn wrong
    figures, turned = drift(found, "exact", seed=0)
    assert (figures["facts_lost"], figures["facts_won"], turned) == (0, 0, [])


def test_groundedness_of_items_with_a_context(item: ItemMaker) -> None:
    context = "The store opens at 9:30 on weekdays."
    items = [item("when?", "at 9:30", context=context), item("who?", "nobody")]
    found = groundedness(Answered(items, ["at 8:15", "x"], ["The store opens at 9:30", "x"]), seed=0)
    assert found is not None
    # 8:15 stands nowhere: 0; all of "store opens 9:30" stands there in order: 1; so does the reference's 9:30
    assert (found["grounded_base"], found["grounded"], found["grounded_reference"]) == (0, 1, 1)
    assert found["num_contexts"] == 1
    assert groundedness(Answered(items[1:], ["x"], ["x"]), seed=0) is None


def test_held_out_rows_are_demonstrations_with_more_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "held.jsonl"
    path.write_text(
        '{"prompt": "q", "completion": "a", "references": ["b", "a"], "context": "c"}\n{"text": "only text"}\n'
    )
    items, texts = read_held_out(path)
    assert (items[0].references, items[0].context) == (("a", "b"), "c")
    assert [text.text for text in texts] == ["only text"]
