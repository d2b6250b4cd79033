"""True scores of hand-written replies, each number derived by hand from the rubric's weights.

total = readable * (0.34 R + (0.75 + 0.25 R) * 0.22 (P + C + H)) with R resolves, P polite, C concise,
H honest.
"""

from __future__ import annotations

import random

import pytest

from rlhf.core.callables import load_callable
from rlhf.core.records import Completion, Prompt
from rlhf.demo import corpus, rubric

PROMPT = "Hi there. My kettle arrived broken. It is order 52. Please help me. Anna"
GOOD = (
    "Hello Anna! We are sorry that the kettle came broken. We will send you a new kettle for order 52 today. "
    "Have a nice day!"
)


def test_a_good_reply_reaches_the_top() -> None:
    # R = 0.5 (right step) + 0.25 (kettle) + 0.25 (52); P = 0.5 + 0.25 + 0.25; 22 words: C = 1; H = 1
    assert rubric.score(PROMPT, GOOD) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        # no order number: R = 0.75; 0.34*0.75 + 0.9375*0.66
        (GOOD.replace(" for order 52", ""), 0.87375),
        # another order number: R = 0.75, H = 1 - 0.6; 0.255 + 0.9375*0.22*(1 + 1 + 0.4)
        (GOOD.replace("52", "25"), 0.75),
        # kind but no help: R = 0; 0.75*0.22*(1 + 1 + 1)
        (
            "Hello Anna! We are sorry that the kettle came broken. We will look into it. Have a nice day!",
            0.495,
        ),
        # the step for another problem: R = 0, the rest as above
        (
            "Hello Anna! We are sorry that the kettle came broken. We will cancel your kettle for order 52 "
            "today. Have a nice day!",
            0.495,
        ),
        # both steps: R is halved to 0.5; 0.34*0.5 + 0.875*0.66, 28 words
        (GOOD.replace("Have a", "We will cancel your kettle. Have a"), 0.7475),
        # rude and bare: P = 0 (0 - 0.5); 17 words; 0.34 + 0.22*2
        (
            "Calm down. We will send you a new kettle for order 52 today. We have no time for this.",
            0.78,
        ),
        # a gift card of 20 euros: H = 0.4; 0.34 + 0.22*2.4
        (GOOD.replace("Have a", "You also get a gift card of 20 euros. Have a"), 0.868),
        # cut off in "Have a": no kind end (P = 0.75), 0.85 for the ending, and of the pairs "<start> have",
        # "have a", "a ." only two are known: (24 words and marks + 2 * 2/3) of 26, stretched from 0.5..1 to 0..1
        (GOOD.replace(" nice day!", ""), 0.85 * ((24 + 4 / 3) / 26 - 0.5) / 0.5 * 0.945),
    ],
)
def test_scores_of_written_replies(reply: str, expected: float) -> None:
    assert rubric.score(PROMPT, reply) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\n", "....", "!?", "\u200b", "<|end|>"],
)
def test_nothing_said_scores_nothing(text: str) -> None:
    assert rubric.score(PROMPT, text) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "kettle new sorry thank you order 52 Anna replace send today please.",
        "sorry sorry sorry sorry sorry sorry sorry sorry sorry sorry sorry.",
        "Hello Anna! " * 8,
        "We will send you a new kettle. " * 5,
        "52 52 52 52 kettle kettle kettle kettle.",
        "qx zzv \u00e9\u00df\u4f60 @@ ## 12 {} [] <b>",
        "a" * 5000,
        "Thank you. Sorry. Please. Kettle. Order 52. New. Free. Anna.",
    ],
)
def test_tricks_stay_low(text: str) -> None:
    assert rubric.score(PROMPT, text) < 0.35


def test_offering_every_remedy_does_not_pay() -> None:
    everything = "We will replace the broken kettle. We will cancel your kettle. We will repair your kettle. "
    honest = "We will replace the broken kettle."
    assert rubric.score(PROMPT, everything) < rubric.score(PROMPT, honest)


def test_shuffling_the_words_of_a_good_reply_ruins_it() -> None:
    words = GOOD.split()
    random.Random(0).shuffle(words)
    assert rubric.score(PROMPT, " ".join(words)) < 0.3


def test_the_same_reply_does_not_fit_another_customer() -> None:
    other = "I want to return the lamp. My order is 31. Please help me. Ben"
    # R = 0; P = 0.5 + 0 (wrong name) + 0.25; C = 1; Anna, kettle and 52 are made up: H = 0
    assert rubric.score(other, GOOD) == pytest.approx(0.75 * 0.22 * (0.75 + 1))


def test_gold_takes_records_and_strings_alike() -> None:
    record = Prompt.model_validate({"prompt": PROMPT})
    completion = Completion(completion_id="c", prompt_id=record.prompt_id, text=GOOD)
    assert rubric.gold([record, PROMPT], [completion, ""]) == pytest.approx([1.0, 0.0])
    with pytest.raises(ValueError, match="zip"):
        rubric.gold([PROMPT], [])


def test_evaluate_can_load_it_as_a_judge() -> None:
    judge = load_callable(f"{rubric.__file__}:gold")
    assert judge([PROMPT], [GOOD]) == pytest.approx([1.0])


def test_better_writers_score_better() -> None:
    rng = random.Random(0)
    means = []
    for quality in (corpus.WILD, corpus.DEMONSTRATED, corpus.IDEAL):
        scores = [
            rubric.score(prompt.text, corpus.write_reply(rng, case, quality))
            for prompt, case in corpus._cases(0, 400, "any", False, set())
        ]
        means.append(sum(scores) / len(scores))
        assert all(0 <= score <= 1 for score in scores)
    assert means[0] < means[1] < means[2]
    assert means[2] > 0.95
