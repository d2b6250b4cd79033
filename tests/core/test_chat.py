"""Messages to tokens and back: where prompts end, what ends completions, what pads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, GenerationConfig

from rlhf.core.chat import MAX_TEMPLATE_CHARS, ChatCodec
from rlhf.core.errors import DataError, ModelError
from rlhf.core.records import Message, Prompt

USER = (Message(role="user", content="the red cat"),)


def codec_of(path: Path) -> ChatCodec:
    return ChatCodec.from_pretrained(
        path, AutoConfig.from_pretrained(path), GenerationConfig.from_pretrained(path)
    )


def test_plain_prompt_is_bos_and_text(tiny_model: Callable[..., Path]) -> None:
    codec = codec_of(tiny_model())
    ids = codec.prompt_ids(USER)
    assert ids == [
        codec.tokenizer.bos_token_id,
        *codec.tokenizer.encode("the red cat", add_special_tokens=False),
    ]
    assert codec.tokenizer.decode(ids) == "<s>the red cat"


def test_plain_prompt_must_be_one_user_message(tiny_model: Callable[..., Path]) -> None:
    codec = codec_of(tiny_model())
    with pytest.raises(
        DataError, match="no chat template, so a prompt is one user message; found system, user"
    ):
        codec.prompt_ids([Message(role="system", content="be kind"), *USER])


def test_template_prompt_ends_where_the_assistant_begins(tiny_model: Callable[..., Path]) -> None:
    codec = codec_of(tiny_model(chat_template=True))
    ids = codec.prompt_ids([Message(role="system", content="be kind"), *USER])
    assert codec.tokenizer.decode(ids) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nthe red cat<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("chat_template", [False, True])
def test_boundary_between_prompt_and_completion_is_a_token_boundary(
    tiny_model: Callable[..., Path], chat_template: bool
) -> None:
    """Tokenised as one string 'h' + 'e' would be one token; apart, neither side changes the other's ids."""
    codec = codec_of(tiny_model(chat_template=chat_template))
    assert len(codec.tokenizer.encode("he", add_special_tokens=False)) == 1
    prompt, completion = codec.prompt_ids([Message(role="user", content="h")]), codec.completion_ids("e")
    letters = codec.tokenizer.convert_tokens_to_ids(["h", "e"])
    assert letters[0] in prompt
    assert completion == [letters[1], codec.end_token_id]
    assert codec.decode(completion) == "e"


def test_completion_ends_with_the_first_end_token(tiny_model: Callable[..., Path]) -> None:
    plain, chat = codec_of(tiny_model()), codec_of(tiny_model(chat_template=True))
    assert plain.end_token_ids == (plain.tokenizer.eos_token_id,)
    mark = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.end_token_ids == (mark, chat.tokenizer.eos_token_id)
    assert chat.completion_ids("sun")[-1] == chat.end_token_id == mark
    assert chat.completion_ids("sun", finished=False) == chat.completion_ids("sun")[:-1]
    assert chat.decode(chat.completion_ids("sun")) == "sun"


def test_end_tokens_come_from_generation_config_before_the_tokenizer(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """stories260K ends with <s>, which only its generation config says."""
    folder = shutil.copytree(tiny_model(), tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert codec_of(folder).end_token_ids == (1, 2)
    (folder / "generation_config.json").write_text("{}")
    codec = codec_of(folder)
    assert codec.end_token_ids == (codec.tokenizer.eos_token_id,)


@pytest.mark.parametrize("chat_template", [False, True])
def test_pad_is_never_an_end_token(tiny_model: Callable[..., Path], chat_template: bool) -> None:
    separate = codec_of(tiny_model(chat_template=chat_template))
    assert separate.pad_token_id == separate.tokenizer.pad_token_id
    same = codec_of(tiny_model(pad_is_eos=True, chat_template=chat_template))
    assert same.tokenizer.pad_token_id == same.tokenizer.eos_token_id
    assert same.pad_token_id not in same.end_token_ids
    assert same.pad_token_id in same.tokenizer.all_special_ids


def test_prompt_that_leaves_no_room(tiny_model: Callable[..., Path]) -> None:
    codec = codec_of(tiny_model())
    prompt = Prompt.model_validate({"prompt": "x" * 100, "prompt_id": "p-7"})
    length = len(codec.prompt_ids(prompt.messages))
    assert codec.checked_prompt_ids(prompt, 128 - length) == codec.prompt_ids(prompt.messages)
    with pytest.raises(DataError, match=rf"p-7 has {length} tokens; with {129 - length} .* context of 128"):
        codec.checked_prompt_ids(prompt, 129 - length)


def test_broken_models_and_templates_are_named(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    codec = codec_of(tiny_model())
    with pytest.raises(ModelError, match="no end token"):
        ChatCodec(codec.tokenizer, [], 128)
    folder = shutil.copytree(tiny_model(chat_template=True), tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="refuses a prompt: roles must alternate"):
        codec_of(folder).prompt_ids(USER)
    template.write_text("x" * (MAX_TEMPLATE_CHARS + 1))
    with pytest.raises(ModelError, match="chat template of 100001 characters"):
        codec_of(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="no usable tokenizer"):
        codec_of(folder)
