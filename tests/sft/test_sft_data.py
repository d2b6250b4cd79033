"""Demonstrations: forms that are accepted, errors that name file and line, splits that keep prompts together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.backbone import load_causal_lm
from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError
from rlhf.core.records import Message
from rlhf.core.settings import ModelSettings
from sft.data import Example, load_examples, split_examples


@pytest.fixture(scope="session")
def codec(chat_model: Path) -> ChatCodec:
    return load_causal_lm(chat_model, ModelSettings(device="cpu"))[1]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "say a", "completion": "aaa"},
        {"prompt": [{"role": "user", "content": "say a"}], "completion": "aaa"},
        {"prompt": "say a", "completion": [{"role": "assistant", "content": "aaa"}]},
        {"messages": [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "aaa"}]},
        {"prompt": "say a", "completion": "aaa", "source": "x", "annotator_id": "y", "metadata": {"k": 1}},
    ],
)
def test_every_form_gives_the_tokens_of_the_codec(
    tmp_path: Path, codec: ChatCodec, row: dict[str, Any]
) -> None:
    (example,), left_out = load_examples(write(tmp_path / "d.jsonl", row), codec, max_tokens=64)
    prompt = codec.prompt_ids([Message(role="user", content="say a")])
    completion = codec.completion_ids("aaa")
    assert completion[-1] == codec.end_token_id
    assert example.input_ids == prompt + completion
    assert example.completion_mask == [0] * len(prompt) + [1] * len(completion)
    assert (example.line, left_out) == (1, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": "a"}, "'prompt' is missing; found the columns completion"),
        ({"prompt": "a"}, "'completion' is missing; found the columns prompt"),
        ({"prompt": "a", "completion": True}, "'completion' expected a valid string; found True"),
        ({"prompt": "a", "completion": " "}, "the completion is empty"),
        ({"prompt": " ", "completion": "a"}, "the last message of the prompt is empty"),
        ({"prompt": "a", "completion": "a", "respons": 1}, "'respons' is not a known column"),
        ({"prompt": "a", "messages": []}, "has 'messages' beside 'prompt'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "at least a user and an assistant message"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
            "the last message must be one of the assistant",
        ),
        ({"prompt": "x" * 70, "completion": "a"}, " tokens; the model's context is 64"),
        (
            {"prompt": "x" * 40, "completion": "a" * 40},
            "prompt and completion have 97 tokens; at most 64 are used (shorten it",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, codec: ChatCodec, row: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b"}, row)
    with pytest.raises(DataError) as caught:
        load_examples(path, codec, max_tokens=64)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


def test_what_the_template_refuses_is_named_too(tmp_path: Path, codec: ChatCodec) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b"})
    before = codec.tokenizer.chat_template
    codec.tokenizer.chat_template = "{{ raise_exception('no user here') }}"
    try:
        with pytest.raises(
            DataError, match=r"d\.jsonl:1: the chat template of .* refuses a prompt: no user here"
        ):
            load_examples(path, codec, max_tokens=64)
    finally:
        codec.tokenizer.chat_template = before


def test_too_long_rows_are_counted_when_they_may_be_dropped(tmp_path: Path, codec: ChatCodec) -> None:
    long = {"prompt": "x" * 40, "completion": "a"}
    path = write(tmp_path / "d.jsonl", long, {"prompt": "a", "completion": "b"}, long)
    examples, left_out = load_examples(path, codec, max_tokens=40, drop_too_long=True)
    assert ([example.line for example in examples], left_out) == ([2], 2)
    with pytest.raises(DataError, match="all 1 demonstrations are longer than 40 tokens"):
        load_examples(write(path, long), codec, max_tokens=40, drop_too_long=True)


def examples_of(groups: list[str]) -> list[Example]:
    return [Example(i, group, [1], [1]) for i, group in enumerate(groups)]


def test_a_prompt_is_on_one_side_only_and_keeps_it_as_data_grows() -> None:
    groups = [f"p{i}" for i in range(200) for _ in range(3)]
    train, validation = split_examples(examples_of(groups), 0.1, seed=1, source="d")
    held_out = {e.group_id for e in validation}
    assert len(train) + len(validation) == 600
    assert not held_out & {e.group_id for e in train}
    assert 8 <= len(held_out) <= 34  # 20 expected, standard deviation 4.2
    _, more = split_examples(examples_of([*groups, "new1", "new2"]), 0.1, seed=1, source="d")
    assert {e.group_id for e in more} - {"new1", "new2"} == held_out
    assert {e.group_id for e in split_examples(examples_of(groups), 0.1, seed=2, source="d")[1]} != held_out


@pytest.mark.parametrize("seed", range(20))
def test_both_sides_get_a_prompt_however_few_there_are(seed: int) -> None:
    for fraction in (0.01, 0.5, 0.99):
        train, validation = split_examples(examples_of(["a", "b"]), fraction, seed, "d")
        assert len(train) == len(validation) == 1


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(
        DataError, match=r"d\.jsonl: all demonstrations answer one prompt; expected at least 2"
    ):
        split_examples(examples_of(["a", "a"]), 0.5, 0, "d.jsonl")
