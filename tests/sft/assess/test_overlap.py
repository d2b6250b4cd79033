"""Answers beside references, with every number worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu

from sft.assess.overlap import (
    bleu,
    bleu_counts,
    common_subsequence,
    exact_match,
    holds_answer,
    normalised,
    rouge,
    text_columns,
    token_f1,
)


def test_normalisation_is_squads() -> None:
    assert normalised("  The cat, a  CAT and an owl's!") == "cat cat and owls"
    assert exact_match("the Eiffel Tower.", ["Eiffel tower", "tower"]) == 1
    assert exact_match("Eiffel", ["Eiffel tower"]) == 0


def test_token_f1_by_hand() -> None:
    # found: cat sat on mat (4 words without the article), expected: cat sat on red mat (5); 4 in common: 2 * 4 / 9
    assert token_f1("The cat sat on a mat.", ["cat sat on the red mat"]) == pytest.approx(8 / 9)
    # repeated words count as often as both have them: "no no" against "no": 2 * 1 / 3
    assert token_f1("no no", ["no"]) == pytest.approx(2 / 3)
    # the best reference counts; two texts without words agree, one without words agrees with nothing else
    assert token_f1("yes", ["no", "yes"]) == 1
    assert token_f1("the", ["a"]) == 1
    assert token_f1("", ["word"]) == 0


def test_an_answer_is_held_as_whole_words() -> None:
    assert holds_answer("It is Paris, of course.", ["Berlin", "paris"])
    assert not holds_answer("It is Parisian.", ["Paris"])
    assert not holds_answer("Paris", ["Paris in spring"])


def test_rouge_by_hand() -> None:
    # found: a b c d (4), expected: a c b d e (5). One word: 4 common, 2*4/9. Pairs ab bc cd / ac cb bd de: none.
    # Longest common subsequence: a b d (or a c d), 3 words: 2*3/9.
    assert rouge("A b c d", ["a c b d e"]) == pytest.approx((8 / 9, 0, 6 / 9))
    # words of any script, and the best of the references for each measure on its own
    one, two, longest = rouge("добрый день", ["night", "Добрый день!"])
    assert (one, two, longest) == (1, 1, 1)
    assert rouge("", ["a"]) == (0, 0, 0)


def test_the_longest_common_subsequence_against_its_definition() -> None:
    def table(first: list[str], second: list[str]) -> int:
        rows = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
        for i, one in enumerate(first):
            for j, two in enumerate(second):
                rows[i + 1, j + 1] = rows[i, j] + 1 if one == two else max(rows[i, j + 1], rows[i + 1, j])
        return int(rows[-1, -1])

    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = (rng.choice(list("abcd"), size=int(rng.integers(0, 70))).tolist() for _ in range(2))
        assert common_subsequence(first, second) == table(first, second)


ANSWERS = ["the cat sat on the mat and slept", "there is a dog", "hello big world of red cars", ""]
REFERENCES = [
    ["the cat sat on a mat", "a cat sat on the mat and slept well"],
    ["there is a big dog here"],
    ["hello world"],
    ["nothing"],
]


def test_bleu_from_counts_is_sacrebleus_corpus_bleu() -> None:
    counts = np.array([bleu_counts(a, r) for a, r in zip(ANSWERS, REFERENCES, strict=True)])
    # The first answer: 8 words, nearest reference 9; all but "the cat" ... are in one of the references
    assert counts[0, :2].tolist() == [8, 9]
    assert counts[0, 6:].tolist() == [8, 7, 6, 5]
    streams = [[r[i] if i < len(r) else None for r in REFERENCES] for i in range(2)]
    expected = sacrebleu.corpus_bleu(ANSWERS, streams).score
    assert bleu(counts.sum(0, keepdims=True))[0] == pytest.approx(expected, abs=1e-9)
    # a resample that leaves the long answer out is the corpus without it
    short = [sum(row) for row in zip(*counts[1:].tolist(), strict=True)]
    streams = [[r[0] for r in REFERENCES[1:]]]
    expected = sacrebleu.corpus_bleu(ANSWERS[1:], streams).score
    assert bleu(np.array([short]))[0] == pytest.approx(expected, abs=1e-9)


def test_columns_hold_each_answers_numbers() -> None:
    columns = text_columns(["Paris", "I do not know"], [["paris"], ["Rome"]])
    assert columns["exact_match"].tolist() == [[1, 1], [0, 1]]
    assert columns["token_f1"].sum(0).tolist() == [1, 2]
    assert columns["bleu"].shape == (2, 10)
