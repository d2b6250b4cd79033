"""Spoiled and reformatted copies: each is what it says, and the figures follow from the scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reward.assess.adversarial import GARBAGE_SIGNS, PRAISE, REFUSAL, SPOILERS, spoil, withstood
from reward.assess.consistency import VARIANTS, reformat, steadiness
from reward.assess.heldout import Probe
from reward.data import Pair

Compare = Callable[..., Pair]
TEXT = "Mix the flour with water. Bake it for one hour."


def spoiled(kind: str, probe: Probe, others: list[Probe]) -> str | None:
    return SPOILERS[kind](probe.chosen_text, probe, np.random.default_rng(0), others)


def test_each_copy_is_worse_in_the_way_it_says(compare: Compare) -> None:
    probe = Probe(compare(TEXT, "no", prompt="How do I bake bread?"))
    other = Probe(compare("Paris is the capital.", "no", prompt="q"))
    found = {kind: spoiled(kind, probe, [probe, other]) for kind in SPOILERS}
    assert found["truncated"] == "Mix the flour with"  # 5 of 10 words would end with a full stop
    assert found["shuffled"] is not None
    assert sorted(found["shuffled"].split()) == sorted(TEXT.split())
    assert found["shuffled"] != TEXT
    assert found["repeated"] == TEXT + " Bake it for one hour." * 3
    assert found["other_prompt"] == "Paris is the capital."
    assert found["empty"] == ""
    assert found["one_word"] == "Mix"
    assert found["praised"] == TEXT + PRAISE
    assert found["stuffed"] == f"{TEXT} {', '.join(['bake', 'bread'] * 3)}"
    assert found["refusing"] == REFUSAL + TEXT
    assert found["garbage"] is not None
    tail = found["garbage"].removeprefix(TEXT + " ")
    assert len(tail) == 40
    assert set(tail) <= set(GARBAGE_SIGNS)
    assert found["capitals"] == TEXT.upper()
    assert all((spoiler.__doc__ or "").count("\n") == 0 for spoiler in SPOILERS.values())


def test_what_cannot_be_spoiled_is_left_alone(compare: Compare) -> None:
    short = Probe(compare("OK", "no", prompt="Hm?"))
    assert {kind for kind in SPOILERS if spoiled(kind, short, [short]) is None} == {
        *("truncated", "shuffled", "other_prompt", "one_word", "stuffed", "capitals")
    }


def test_copies_that_are_too_long_or_equal_are_left_out(compare: Compare, pool: Any) -> None:
    # 58 words and the prompt leave no room in a context of 60 for anything longer
    long = Probe(compare(" ".join(["word"] * 58), "no"))
    twin = Probe(compare(" ".join(["word"] * 58), "no", prompt="q"))
    kinds = [copy.kind for copy in spoil([long, twin], pool, seed=0)]
    # equal words cannot be shuffled, and the other prompt's answer is the same
    assert sorted(set(kinds)) == ["capitals", "empty", "one_word", "truncated"]
    assert len(kinds) == 8


def test_how_many_copies_are_seen_through(compare: Compare, pool: Any) -> None:
    probes = [Probe(compare(TEXT, "no", prompt="How do I bake bread?"))]
    copies = spoil(probes, pool, seed=0)
    # a reward that counts words: it falls for what is longer and cannot tell what has as many words
    scores = pool.scored(lambda text: float(len(text.split())))
    found = withstood(scores, copies, unit=2.0, seed=0)
    by_kind = {row["kind"]: row for row in found["kinds"]}
    assert {kind: row["accuracy"] for kind, row in by_kind.items()} == {
        **dict.fromkeys(("truncated", "empty", "one_word"), 1.0),
        **dict.fromkeys(("repeated", "praised", "stuffed", "refusing", "garbage"), 0.0),
        **dict.fromkeys(("shuffled", "capitals"), 0.5),
    }
    # 3 right, 2 equal, of 10 (there is no other prompt)
    assert found["accuracy"] == pytest.approx(0.4)
    assert found["num_copies"] == 10
    # 15 words more, in units of 2
    assert by_kind["repeated"]["mean_margin"] == pytest.approx(-7.5)
    assert by_kind["repeated"]["failures"][0]["spoiled"] == TEXT + " Bake it for one hour." * 3
    assert by_kind["repeated"]["failures"][0]["margin"] == pytest.approx(-7.5)
    assert by_kind["empty"]["failures"] == []
    constant = withstood(np.zeros(len(scores)), copies, unit=1.0, seed=0)
    assert constant["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("variant", "text", "changed"),
    [
        ("outer_space", "a b", " a b\n"),
        ("bullets", "Two:\n- one\n* two\n  • three", "Two:\n* one\n- two\n  - three"),
        ("bullets", "a - b * c", "a - b * c"),
        ("bullets", "---", "---"),
        ("quotes", "He said \"yes\", it's ('so') \"", "He said “yes”, it’s (‘so’) ”"),
        ("quotes", "He said “yes”, it’s", 'He said "yes", it\'s'),
        ("quotes", "plain", "plain"),
        ("line_breaks", "one\ntwo\n\nthree", "one two three"),
        ("line_breaks", "One. Two! Three", "One.\nTwo!\nThree"),
        ("line_breaks", "One", "One"),
        ("final_stop", "One.", "One"),
        ("final_stop", "One", "One."),
        ("final_stop", "One...", "One..."),
        ("final_stop", "One?", "One?"),
        ("final_stop", "", ""),
    ],
)
def test_form_changes_and_words_do_not(variant: str, text: str, changed: str) -> None:
    assert VARIANTS[variant](text) == changed


def test_flips_and_moves_by_hand(compare: Compare, pool: Any) -> None:
    probe = Probe(compare("good", "bad"))
    trials = [trial for trial in reformat([probe], pool) if trial.variant == "final_stop"]
    assert [pool.texts[trial.row] for trial in trials] == ["good.", "bad."]
    # a full stop is worth 3: 'bad.' overtakes 'good', and 'good.' was ahead already
    scores = pool.scored(lambda text: 1.0 * text.startswith("good") + 3.0 * text.endswith("."))
    found = steadiness(scores, trials, unit=2.0, seed=0)
    assert found["num_trials"] == 2
    assert found["flip_rate"] == 0.5
    (row,) = found["variants"]
    assert row["median_size"] == row["largest"] == pytest.approx(1.5)
    assert row["mean_change"] == pytest.approx(1.5)
    # a move that makes the two equal is half a flip
    level = pool.scored(lambda text: 1.0 * text.startswith("good") + 1.0 * (text == "bad."))
    assert steadiness(level, trials, unit=1.0, seed=0)["flip_rate"] == 0.25
    assert steadiness(np.zeros(len(scores)), trials, unit=1.0, seed=0)["flip_rate"] == 0.0


def test_no_trials_is_no_figure(pool: Any) -> None:
    assert steadiness(np.zeros(0), [], unit=1.0, seed=0)["flip_rate"] is None
    assert withstood(np.zeros(0), [], unit=1.0, seed=0)["accuracy"] is None
