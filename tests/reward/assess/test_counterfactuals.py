"""Term lists, the swaps made with them, and the gaps that follow from scores."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward.assess.bias import TEMPLATES, TEXTS, from_templates, from_texts, gaps
from reward.assess.heldout import Probe
from reward.data import Pair
from rlhf.core.errors import ConfigError
from rlhf.core.terms import Swapper, Terms, TermSet, fill, load_terms

WORDS = TermSet(
    kind="gender",
    name="words",
    in_texts=True,
    pairs=(("he", "she"), ("man", "woman"), ("uncle", "aunt"), ("young man", "young lady")),
    one_way=(("him", "her"), ("his", "her")),
)


@pytest.mark.parametrize(
    ("text", "direction", "swapped"),
    [
        ("He gave his man a hat.", 1, "She gave her woman a hat."),
        ("HE left", 1, "SHE left"),
        ("She is an aunt", -1, "He is an uncle"),
        ("A young man came", 1, "A young lady came"),
        ("the human himself", None, ""),  # neither 'man' nor 'him' as whole words
        ("he and she", None, ""),  # both sides
        ("he told her", None, ""),
        ("she took her hat", None, ""),  # her: his or him?
    ],
)
def test_whole_words_are_swapped_with_their_capitals(text: str, direction: int | None, swapped: str) -> None:
    found = Swapper(WORDS, articles=True).swap(text)
    assert found == (None if direction is None else (direction, (swapped,)))


def test_prompt_and_completion_are_swapped_together() -> None:
    swapper = Swapper(WORDS, articles=True)
    assert swapper.swap("Who is the man?", "No idea.") == (1, ("Who is the woman?", "No idea."))
    assert swapper.swap("Who is the man?", "She is tall.") is None


def test_articles_follow_the_word_only_where_that_is_asked_for() -> None:
    words = TermSet(kind="age", name="w", in_texts=True, pairs=(("teenager", "old man"),))
    assert Swapper(words, articles=True).swap("A teenager came") == (1, ("An old man came",))
    assert Swapper(words, articles=True).swap("an old man") == (-1, ("a teenager",))
    assert Swapper(words, articles=False).swap("A teenager came") == (1, ("A old man came",))
    assert fill("It was a {term}, a {term}.", "aunt", articles=True) == "It was an aunt, an aunt."
    assert fill("It was a {term}.", "aunt", articles=False) == "It was a aunt."


def test_the_list_that_comes_along_is_sound() -> None:
    terms = load_terms()
    assert {words.kind for words in terms.sets} == {"gender", "origin", "religion", "age"}
    for kind in ("gender", "origin", "religion", "age"):
        assert any(words.templates for words in terms.sets if words.kind == kind)
        assert any(words.in_texts for words in terms.sets if words.kind == kind)
    for words in terms.sets:
        for first, second in words.pairs:
            for template in words.templates:
                both = [without_term(template.prompt + "|" + template.completion, t) for t in (first, second)]
                assert both[0] == both[1]
                assert "#" in both[0]


def without_term(template: str, term: str) -> str:
    """The filled template with '#' for the term and 'a' for its article."""
    filled = fill(template, term, articles=True)
    filled = re.sub(rf"\b([Aa])n? {re.escape(term)}\b", r"\1 #", filled)
    return re.sub(rf"\b{re.escape(term)}\b", "#", filled)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sets: is missing"),
        ("sets: [", "broken YAML"),
        ("- a", "sets: is missing"),
        ("sets:\n  - {kind: Gender, name: x, pairs: [[a, b]]}", "sets.0.kind: String should match pattern"),
        ("sets:\n  - {kind: g, name: x, pairs: []}", "sets.0.pairs:"),
        ("sets:\n  - {kind: g, name: x, pairs: [[a]]}", "sets.0.pairs.0.1: is missing"),
        ("sets:\n  - {kind: g, name: x, pears: [[a, b]]}", "sets.0.pairs: is missing"),
        (
            "sets:\n  - {kind: g, name: x, pairs: [[a, b], [c, A]], in_texts: true}",
            "sets.0: 'a' is in two pairs; expected one partner a word",
        ),
        (
            "sets:\n  - {kind: g, name: x, pairs: [[a, b]], templates: [{prompt: p, completion: c}]}",
            "sets.0.templates.0: holds no {term}",
        ),
    ],
)
def test_a_bad_list_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "terms.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_terms(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file of terms"):
        load_terms(tmp_path / "no.yaml")


TERMS = Terms.model_validate(
    {
        "sets": [
            {
                "kind": "gender",
                "name": "words",
                "in_texts": True,
                "pairs": [["he", "she"], ["man", "woman"]],
                "templates": [{"prompt": "Who?", "completion": "The {term} left."}],
            },
            {
                "kind": "age",
                "name": "ages",
                "pairs": [["young", "old"]],
                "templates": [{"prompt": "The {term} one?", "completion": "Yes."}],
            },
        ]
    }
)


def test_gaps_by_hand(pool: Any) -> None:
    pairs = from_templates(TERMS, pool)
    assert [(pair.kind, pool.texts[pair.first], pool.texts[pair.second]) for pair in pairs] == [
        ("gender", "The he left.", "The she left."),
        ("gender", "The man left.", "The woman left."),
        ("age", "Yes.", "Yes."),
    ]
    # she +1, woman -4: a mean gap of -1.5, in units of 3 -0.5; the prompts of 'age' score alike
    scores = pool.scored(lambda text: {"The she left.": 1.0, "The woman left.": -4.0}.get(text, 0.0))
    found = gaps(scores, pairs, unit=3.0, seed=0)
    rows = {(row["kind"], row["source"]): row for row in found["rows"]}
    gender = rows["gender", TEMPLATES]
    assert gender["gap"] == pytest.approx(-0.5)
    assert (gender["gap_low"], gender["gap_high"]) == pytest.approx((-4 / 3, 1 / 3))
    assert gender["absolute_gap"] == pytest.approx(2.5 / 3)
    assert gender["largest_gap"] == pytest.approx(-4 / 3)
    assert gender["largest_terms"] == "words: man and woman"
    assert rows["age", TEMPLATES]["gap"] == 0.0
    assert found["bias_gap"] == pytest.approx(0.5)
    assert found["bias_gap_low"] == 0.0  # the interval holds 0
    assert found["bias_gap_high"] == pytest.approx(4 / 3)
    assert found["bias_gap_kind"] == f"gender, {TEMPLATES}"


def test_a_gap_beyond_chance_keeps_its_interval(pool: Any) -> None:
    pairs = from_templates(TERMS, pool)
    scores = pool.scored(lambda text: {"The she left.": -1.0, "The woman left.": -3.0}.get(text, 0.0))
    found = gaps(scores, pairs, unit=1.0, seed=0)
    assert (found["bias_gap"], found["bias_gap_low"], found["bias_gap_high"]) == pytest.approx(
        (2.0, 1.0, 3.0)
    )


def test_held_out_texts_are_swapped_either_way(compare: Callable[..., Pair], pool: Any) -> None:
    probes = [
        Probe(compare("he ran", "no", prompt="p")),
        Probe(compare("no", "she ran", prompt="q")),
        Probe(compare("he and she", "no", prompt="r")),
    ]
    found = from_texts(probes, TERMS, pool)
    # first is always the text with the first terms, whichever of the two was held out
    assert [(pair.first_text, pair.second_text) for pair in found] == [("he ran", "she ran")] * 2
    assert found[0].first == probes[0].pair.chosen
    assert found[1].second == probes[1].pair.rejected
    scores = np.zeros(len(pool.texts))
    scores[[pair.second for pair in found]] = 0.5
    figures = gaps(scores, found, unit=1.0, seed=0)
    assert figures["rows"][0]["source"] == TEXTS
    assert figures["rows"][0]["gap"] == pytest.approx(0.5)
    # two pairs are too few to count
    assert not figures["rows"][0]["counted"]
    assert figures["bias_gap"] is None


def test_texts_count_from_enough_pairs_of_enough_prompts(compare: Callable[..., Pair], pool: Any) -> None:
    probes = [Probe(compare(f"he ran {i}", f"man {i}", prompt=f"p{i}")) for i in range(10)]
    found = from_texts(probes, TERMS, pool)
    assert len(found) == 20
    scores = pool.scored(lambda text: 1.0 * ("she" in text))
    figures = gaps(scores, found, unit=1.0, seed=0)
    assert figures["bias_gap"] == pytest.approx(0.5)  # he -> she is worth 1, man -> woman nothing
    assert gaps(scores, found[:18], unit=1.0, seed=0)["bias_gap"] is None
