"""What rows of the common layouts mean."""

from __future__ import annotations

import pytest

from rlhf.core.errors import ConfigError
from rlhf.core.files import BadRow
from sft.prepare.layouts import Reading, parse_map

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca"),
        ({"instruction": "q", "context": "", "response": "a", "category": "x"}, "dolly"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt"),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "hh"),
        ({"chosen": [USER, ANSWER], "rejected": []}, "hh"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "hh"),
        ({"prompt": "q", "completion": "a"}, "prompt-completion"),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt-completion"),
        ({"prompt": [USER], "completion": [USER, ANSWER]}, "prompt-completion"),
    ],
)
def test_each_layout_is_told_by_its_columns(row: dict, layout: str) -> None:
    sample = Reading().sample(row)
    assert sample.layout == layout
    assert sample.messages == [USER, ANSWER]
    assert Reading(layout=layout).sample(row).messages == [USER, ANSWER]


def test_what_an_instruction_is_about_follows_it() -> None:
    for row in (
        {"instruction": "Sum up.", "input": "A text.", "output": "It is one."},
        {"instruction": "Sum up.", "context": "A text.", "response": "It is one."},
    ):
        assert Reading().sample(row).prompt == "Sum up.\n\nA text."


def test_a_text_is_its_own_prompt_and_keeps_its_label() -> None:
    sample = Reading().sample({"text": "t", "label": "good"})
    assert sample.messages is None
    assert sample.prompt == sample.answer == sample.whole == "t"
    assert sample.output() == {"text": "t", "label": "good"}
    assert Reading().sample({"text": "t"}).output() == {"text": "t"}


def test_questions_after_the_last_answer_are_left_off() -> None:
    assert Reading().sample({"messages": [USER, ANSWER, USER]}).messages == [USER, ANSWER]


def test_system_turns_and_what_stands_beside_are_kept() -> None:
    system = {"role": "system", "content": "s"}
    row = {
        "messages": [system, USER, ANSWER],
        "source": "web",
        "id": 7,
        "group_id": "g",
        "metadata": {"k": 1},
    }
    sample = Reading(label_column="kind", difficulty_column="hard").sample(row | {"kind": "x", "hard": "2.5"})
    assert (sample.row_id, sample.group_id, sample.label, sample.difficulty) == ("7", "g", "x", 2.5)
    assert sample.output() == {
        "messages": [system, USER, ANSWER],
        "source": "web",
        "metadata": {"k": 1, "label": "x"},
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"a": 1}, "found the columns a; expected"),
        ({"prompt": "q"}, "'completion' is missing"),
        ({"prompt": "q", "completion": True}, "'completion' is True; expected text"),
        ({"messages": [USER]}, "no answer"),
        ({"messages": [ANSWER]}, "no question"),
        ({"messages": "q"}, "expected a list of messages"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "role 'alien'"),
        ({"chosen": "no dialogue"}, "does not begin with 'Human:'"),
        ({"messages": [USER, ANSWER], "hard": "very"}, "'hard' is 'very'; expected a finite number"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row: dict, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        Reading(difficulty_column="hard" if "hard" in row else None).sample(row)


def test_columns_are_renamed() -> None:
    renamed = parse_map(["question=prompt", "answer=completion"])
    assert Reading(renamed=renamed).sample({"question": "q", "answer": "a"}).messages == [USER, ANSWER]
    # as `rlhf import` has it: only the left one is a column of ours
    assert parse_map(["prompt=question,completion=answer"]) == renamed
    # a column that is in the way of a renamed one gives way
    assert Reading(renamed=renamed).sample({"question": "q", "prompt": "x", "answer": "a"}).messages == [
        USER,
        ANSWER,
    ]
    for wrong in ("prompt", "a=b", "=x", "a=prompt,b=prompt"):
        with pytest.raises(ConfigError, match="--map"):
            parse_map([wrong])
