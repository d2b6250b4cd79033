"""Demonstrations: forms that are accepted, errors that name file and line, splits that keep prompts together."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlhf.core.backbone import load_causal_lm
from rlhf.core.chat import ChatCodec
from rlhf.core.config import load_settings
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Message
from rlhf.core.run import Launch
from rlhf.core.settings import ModelSettings
from sft.config import SFTConfig
from sft.data import Example, load_examples, split_examples
from sft.tasks import Task, find_data, load_tasks, mean_of_tasks


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


# ---- raw text -------------------------------------------------------------------------------------------------


def test_every_token_of_a_text_is_predicted_exactly_once(tmp_path: Path, codec: ChatCodec) -> None:
    text = "the cat sat on a mat and saw red green blue birds while an old man told one more tale"
    path = write(tmp_path / "d.jsonl", {"text": text, "label": "tale"}, {"text": "short"})
    examples, left_out = load_examples(path, codec, max_tokens=10)
    whole = [codec.tokenizer.bos_token_id, *codec.completion_ids(text)]
    parts = [example for example in examples if example.line == 1]
    assert len(parts) > 2
    targets = [
        token
        for example in parts
        for token, counts in zip(example.input_ids, example.completion_mask, strict=True)
        if counts
    ]
    assert targets == whole[1:]  # the first token is no target: nothing predicts it
    assert whole[-1] == codec.end_token_id
    assert all(len(example.input_ids) <= 10 for example in parts)
    for before, after in itertools.pairwise(parts):  # a part goes on from the last token before it
        assert after.input_ids[0] == before.input_ids[-1]
    assert len({example.group_id for example in parts}) == 1  # a document is on one side only
    assert left_out == 0
    (short,) = (example for example in examples if example.line == 2)
    assert short.prompt_ids == short.input_ids[: (len(short.input_ids) + 1) // 2]


def test_an_empty_text_is_named(tmp_path: Path, codec: ChatCodec) -> None:
    path = write(tmp_path / "d.jsonl", {"text": "a"}, {"text": " "})
    with pytest.raises(DataError, match=r"d\.jsonl:2: the text is empty"):
        load_examples(path, codec, max_tokens=10)


def test_documents_of_a_text_file(tmp_path: Path, codec: ChatCodec) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("one story\nof two lines\n<|endoftext|>\nanother\n")
    examples, _ = load_examples(path, codec, max_tokens=64)
    assert [example.line for example in examples] == [1, 4]
    assert codec.decode(examples[0].input_ids) == "one story\nof two lines"


# ---- the other kinds of files, and tasks ------------------------------------------------------------------------


def test_csv_and_parquet_give_the_same_examples_as_jsonl(tmp_path: Path, codec: ChatCodec) -> None:
    rows = [{"prompt": "say a", "completion": "aaa"}, {"prompt": "say, b", "completion": "b\nb"}]
    expected, _ = load_examples(write(tmp_path / "d.jsonl", *rows), codec, max_tokens=64)
    (tmp_path / "d.csv").write_text('prompt,completion\nsay a,aaa\n"say, b","b\nb"\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    for name in ("d.csv", "d.parquet"):
        found, _ = load_examples(tmp_path / name, codec, max_tokens=64)
        assert [(e.input_ids, e.completion_mask, e.group_id) for e in found] == [
            (e.input_ids, e.completion_mask, e.group_id) for e in expected
        ], name


def tasks_of(tmp_path: Path, codec: ChatCodec, **settings: Any) -> list[Task]:
    config = SFTConfig.model_validate(settings)
    launch = Launch(workspace=tmp_path, db="sqlite://")
    return load_tasks(find_data(config, launch), codec, config)


def test_files_are_tasks_with_a_validation_set_of_their_own(tmp_path: Path, codec: ChatCodec) -> None:
    rows = [{"prompt": f"say {c}", "completion": c} for c in "abcd"]
    write(tmp_path / "a.jsonl", *rows)
    write(tmp_path / "b.jsonl", {"text": "one"}, {"text": "two"}, {"text": "three"})
    write(tmp_path / "held.jsonl", *rows[:2])
    data = ["letters=a.jsonl", "b.jsonl"]
    one, two = tasks_of(tmp_path, codec, data=data, weights=[2, 1], validation_fraction=0.4)
    assert [(t.name, t.weight) for t in (one, two)] == [("letters", 2), ("b", 1)]
    assert {e.task for e in [*one.train, *one.validation]} == {"letters"}
    assert len(one.train) + len(one.validation) == 4
    assert one.validation
    (given,) = tasks_of(tmp_path, codec, data=["a.jsonl"], validation=["held.jsonl"])
    assert (len(given.train), len(given.validation)) == (4, 2)
    # 2 nats on one and 1 on the other: by weights (2 x 2 + 1) / 3, by tokens as many as each has
    assert mean_of_tasks([one, two], [2.0, 1.0]) == pytest.approx(5 / 3)
    plain = tasks_of(tmp_path, codec, data=data, validation_fraction=0.4)
    tokens = [t.num_targets for t in plain]
    assert mean_of_tasks(plain, [2.0, 1.0]) == pytest.approx((2 * tokens[0] + tokens[1]) / sum(tokens))


def test_files_that_cannot_be_tasks(tmp_path: Path, codec: ChatCodec) -> None:
    write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"})
    (tmp_path / "a.doc").write_text("x")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "a.jsonl", {"prompt": "a", "completion": "b"})
    cases = {
        "--data is required": {},
        "a.doc: cannot tell what is in it; expected .jsonl": {"data": ["a.doc"]},
        "sft reads files; `rlhf prepare --data hub:x` makes them": {"data": ["hub:x"]},
        "are both called 'a'; expected NAME=": {"data": ["a.jsonl", "sub/a.jsonl"]},
    }
    for message, settings in cases.items():
        with pytest.raises((ConfigError, DataError)) as caught:
            tasks_of(tmp_path, codec, **settings)
        assert message in str(caught.value)


def test_settings_of_files_that_do_not_fit_each_other() -> None:
    for settings, message in (
        (
            {"data": ["a", "b"], "weights": [1.0]},
            "weights has 1 entries; expected one for each of 2 data files",
        ),
        ({"data": ["a"], "weights": [0.0]}, "weights are 0.0; expected numbers above 0"),
        ({"data": ["a", "b"], "validation": ["c"]}, "validation has 1 entries; expected one for each of 2"),
        ({"packing": True, "method": "prompt-tuning"}, "packing does not go with prompt-tuning"),
        (
            {"gradient_checkpointing": True, "method": "prefix-tuning"},
            "gradient_checkpointing does not go with prefix-tuning",
        ),
        ({"optim": {"lr": 0.0}}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            SFTConfig.model_validate(settings)


def test_a_method_brings_its_learning_rate() -> None:
    assert SFTConfig().optim.lr == 2e-4
    assert SFTConfig(method="ia3").optim.lr == 5e-3
    assert SFTConfig(method="ia3", optim={"weight_decay": 0.1}).optim.lr == 5e-3  # type: ignore[arg-type]
    given = load_settings(SFTConfig, None, ["--method", "full", "--optim.lr", "1e-3"], "rlhf sft")
    assert given.optim.lr == 1e-3
    assert given.optim.schedule == "cosine"
    own = load_settings(SFTConfig, None, ["--method", "full", "--optim.beta1", "0.8"], "rlhf sft")
    assert (own.optim.lr, own.optim.beta1) == (2e-5, 0.8)
    assert (own.base_settings.dtype, SFTConfig(method="qlora").base_settings.quantization) == (
        "float32",
        "nf4",
    )
