"""Counterfactual pairs of outputs, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlhf.core.terms import Terms
from sft.assess.bias import (
    TEMPLATES,
    TEXTS,
    answer_figures,
    answer_rows,
    asked_pairs,
    from_items,
    from_templates,
    gap_figures,
    largest_gap,
    likelihood_gaps,
    scored_pairs,
    shared_places,
)
from sft.assess.rows import Item
from sft.assess.subjects import Answer
from tests.sft.assess.word_codec import WordCodec

ItemMaker = Callable[..., Item]

TERMS = Terms.model_validate(
    {
        "articles": True,
        "sets": [
            {
                "kind": "gender",
                "name": "persons",
                "in_texts": True,
                "pairs": [["uncle", "aunt"]],
                "templates": [
                    {"prompt": "An {term} asks .", "completion": "say hello"},
                    {"prompt": "who ?", "completion": "it was a {term} who came"},
                ],
            }
        ],
    }
)


def test_shared_places_leave_out_what_differs() -> None:
    assert shared_places([1, 2, 3, 4], [1, 9, 8, 3, 4]) == ([0, 2, 3], [0, 3, 4])
    assert shared_places([1, 2], [1, 2]) == ([0, 1], [0, 1])
    # one is the beginning of the other: its tokens are shared once
    assert shared_places([1, 1], [1, 1, 1]) == ([0, 1], [0, 1])
    assert shared_places([1], [2]) == ([], [])


def test_a_gap_is_how_much_likelier_the_shared_words_are_with_the_second_term() -> None:
    codec: Any = WordCodec()
    scored = scored_pairs(from_templates(TERMS), codec)
    assert [one.pair.asks for one in scored] == [True, False]
    # "say hello" is shared as a whole; of "it was an uncle who came" all but "uncle"
    assert scored[0].places == ([0, 1], [0, 1])
    assert scored[1].places == ([0, 1, 2, 4, 5], [0, 1, 2, 4, 5])
    nlls = [np.array(row) for row in ([2.0, 4.0], [1.0, 2.0], [1, 1, 1, 9, 1, 1.0], [1, 1, 1, 0, 2, 2.0])]
    # (2 + 4)/2 - (1 + 2)/2 = 1.5; 1 - (1 + 1 + 1 + 2 + 2)/5 = -0.4: the term's own rarity counts nowhere
    assert likelihood_gaps(scored, nlls).tolist() == pytest.approx([1.5, -0.4])


def test_held_out_rows_are_swapped_where_their_words_allow_it(item: ItemMaker) -> None:
    items = [
        item("my uncle came", "an uncle ?"),
        item("nobody", "came"),
        item("ask my aunt", "why"),
        item("x", "uncle"),
    ]
    made = from_items(items, TERMS, 2)  # at most 2 of a set
    assert [(pair.first.prompt[0].content, pair.second.prompt[0].content) for pair in made] == [
        ("my uncle came", "my aunt came"),
        ("ask my uncle", "ask my aunt"),
    ]
    assert made[0].second.completion == "an aunt ?"
    assert {pair.source for pair in made} == {TEXTS}


def test_answers_are_compared_after_the_term_is_swapped_back() -> None:
    scored = asked_pairs(scored_pairs(from_templates(TERMS), WordCodec()), 4, 40, 10)  # type: ignore[arg-type]
    assert len(scored) == 1  # the other template has no term in its prompt
    same = [Answer("hello uncle", [5, 6], True), Answer("hello aunt", [5, 7], True)]
    (row,) = answer_rows(scored, same)
    assert (row["changed"], row["word_distance"], row["longer"]) == (0, 0, 0)
    other = [Answer("hello uncle", [5, 6], True), Answer("go away aunt now", [1, 2, 3, 4], True)]
    (row,) = answer_rows(scored, other)
    # "go away uncle now" against "hello uncle": 1 word in common, F1 = 2/6
    assert row["word_distance"] == pytest.approx(1 - 2 / 6)
    assert (row["changed"], row["longer"]) == (1, 2)
    figures = answer_figures(answer_rows(scored, same), [row], seed=0)
    assert (figures["bias_answers_changed"], figures["bias_answers_changed_base"]) == (1, 0)
    assert figures["bias_longer_change"] == 2
    assert answer_figures([], [], seed=0) == {}


def test_the_largest_mean_gap_counts_where_there_are_enough_pairs(item: ItemMaker) -> None:
    pairs = from_templates(TERMS) + from_items([item("my uncle", "came home")], TERMS, 5)
    scored = scored_pairs(pairs, WordCodec())  # type: ignore[arg-type]
    before, after = np.array([0.0, 0.0, 0.0]), np.array([-0.5, -0.1, 4.0])
    rows = gap_figures(scored, before, after, seed=0)
    assert [(row["source"], row["n"], row["counted"]) for row in rows] == [
        (TEMPLATES, 2, True),
        (TEXTS, 1, False),
    ]
    assert rows[0]["gap"] == pytest.approx(-0.3)
    assert rows[0]["gap_change"] == pytest.approx(-0.3)
    found = largest_gap(rows)  # one held-out pair of 4 nats is no evidence
    assert found["bias_gap"] == pytest.approx(0.3)
    assert found["bias_gap_kind"] == "gender, templates"
    assert largest_gap([rows[1]])["bias_gap"] is None
