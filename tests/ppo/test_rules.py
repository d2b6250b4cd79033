"""Rewards that read texts alone: rule lists and groundedness, with scores computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.core.errors import ConfigError, DataError
from rlhf.core.grounding import content_words, grounded_share
from rlhf.core.records import Prompt
from rlhf.ppo.rewards.groundedness import groundedness
from rlhf.ppo.rewards.rules import RuleList

GUIDELINES = r"""
# content guidelines
rules:
  - pattern: "as an ai( language)? model"
    weight: -1
  - words: [refund, "new parcel"]
    weight: 0.5
  - words: [please]
    weight: 0.2
    each: 3
  - pattern: "order \\d+"
    weight: -0.25
    absent: true
  - pattern: "[A-Z]{5,}"
    match_case: true
    weight: -0.125
  - max_words: 8
    weight: -2
  - min_characters: 3
    weight: -4
"""


@pytest.fixture
def guidelines(tmp_path: Path) -> RuleList:
    (tmp_path / "guidelines.yaml").write_text(GUIDELINES)
    return RuleList.read(tmp_path / "guidelines.yaml")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("order 17 is late", 0.0),  # nothing applies
        ("it is late", -0.25),  # no order number
        ("As an AI model I see order 17", -1.0),
        ("a REFUND for order 17", 0.5 - 0.125),  # case is ignored for the word, not for the capitals
        ("a New\n Parcel for order 17", 0.5),  # a phrase may break over a line
        ("refunds for order 17", 0.0),  # whole words only
        ("please please please please order 17", 0.6),  # four times, counted three times
        ("order 17 came a day late and it rained", -2.0),  # nine words
        (" x ", -4.0 - 0.25),  # one character without the space around it
        ("", -4.0 - 0.25),
    ],
)
def test_the_score_is_the_sum_of_the_rules_that_apply(guidelines: RuleList, text: str, score: float) -> None:
    assert guidelines([Prompt.model_validate({"prompt": "x"})], [text]) == [pytest.approx(score)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules:\n  - pattern: a\n    wieght: 1\n", ":2: unknown key 'wieght'; did you mean 'weight'?"),
        ("rules:\n  - pattern: a\n", ":2: weight: is missing"),
        ("rules:\n\n  - pattern: a\n    weight: high\n", ":3: weight: expected a valid number"),
        ("rules:\n  - pattern: a\n    weight: .nan\n", ":2: weight: expected a finite number"),
        ("rules:\n  - pattern: 'a('\n    weight: 1\n", ":2: pattern is no regular expression (missing )"),
        ("rules:\n  - weight: 1\n", ":2: a rule is exactly one of pattern, words, "),
        ("rules:\n  - pattern: a\n    max_words: 3\n    weight: 1\n", "found pattern and max_words"),
        (
            "rules:\n  - max_words: 3\n    absent: true\n    weight: 1\n",
            "'absent' goes with pattern and words",
        ),
        ("rules:\n  - words: ['']\n    weight: 1\n", ":2: 'words' holds an empty word"),
        ("rules:\n  - words: []\n    weight: 1\n", ":2: words: "),
        ("rules: []\n", ":1: expected 'rules:' and under it a list of rules"),
        ("- pattern: a\n", ":1: expected 'rules:'"),
        ("rules:\n  - a\n", ":2: expected a rule like '- pattern: ...'"),
        ("rules:\n  - pattern: [a\n", "broken YAML"),
        ("", ":1: expected 'rules:'"),
    ],
)
def test_a_bad_file_names_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        RuleList.read(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_content_words_are_words_and_numbers_without_function_words() -> None:
    text = "The store's orders, 1,250.50 of them, don't ship on Mondays; class-2 is GLASS."
    found = ["store", "order", "1,250.50", "ship", "monday", "class", "2", "glass"]
    assert content_words(text) == found


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The store opens at 9:30 on weekdays.", 1.0),
        ("Store", 1.0),
        # store 1, open 1 (after store, as in the context), 8:15 counts twice and is not there
        ("The store opens at 8:15", 2 / 4),
        # weekday 1 (first), store 1/2 (does not follow weekday in the context), close 0
        ("On weekdays the store closes", 1.5 / 3),
        ("Bring your own bag", 0.0),
        ("It is what it is", 0.0),  # no content
        ("", 0.0),
    ],
)
def test_groundedness_follows_its_formula(text: str, share: float) -> None:
    assert grounded_share("The store opens at 9:30 on weekdays.", text) == pytest.approx(share)


def test_groundedness_reads_each_prompts_own_context_and_wants_one() -> None:
    rows = [("a", "the cat sat"), ("b", "the dog ran")]
    prompts = [Prompt.model_validate({"prompt": text, "context": context}) for text, context in rows]
    assert groundedness(prompts, ["cat sat", "cat sat"]) == [1.0, 0.0]
    bare = Prompt.model_validate({"prompt": "c", "prompt_id": "p-bare"})
    with pytest.raises(DataError, match=r"prompt p-bare .number 2. has no 'context'"):
        groundedness([*prompts, bare], ["x", "y", "z"])
