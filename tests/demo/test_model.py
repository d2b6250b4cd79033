"""The demo's tokenizer and pretraining: lossless text, the chat path, and a loss that falls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.core.chat import ChatCodec
from rlhf.core.metrics import MetricsLog, read_metrics
from rlhf.core.records import Message
from rlhf.demo import corpus, model


@pytest.fixture(scope="module")
def conversations() -> list[model.Conversation]:
    return list(corpus.pretraining_conversations(0, 1500, taken=set()))


@pytest.fixture(scope="module")
def tokenizer(conversations):
    return model.build_tokenizer((text for pair in conversations for text in pair), 1280)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello Anna! We will replace the broken kettle.",
        "  two  spaces\n",
        "\u00e9\u4f60\U0001f600 order 1234",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_two_digit_order_number_is_one_token(tokenizer) -> None:
    ids = tokenizer("order 47.", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[-2:] == ["\u0120" + "47", "."]


def test_the_chat_path_is_what_pretraining_saw(tokenizer, conversations) -> None:
    (message, reply, _), codec = conversations[0], ChatCodec(tokenizer, [tokenizer.eos_token_id], 256)
    row, weights = model._encode(tokenizer, conversations[:1])[0]
    prompt_ids = codec.prompt_ids([Message(role="user", content=message)])
    completion_ids = codec.completion_ids(reply)
    seen = [*prompt_ids, *completion_ids]
    assert row[: len(seen)] == seen
    assert weights == [0.1] * len(prompt_ids) + [1.0] * (len(row) - len(prompt_ids))
    assert codec.end_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert codec.decode(completion_ids) == reply


def test_pretraining_lowers_the_loss_and_saves_a_normal_model(
    tokenizer, conversations, tmp_path: Path
) -> None:
    small = model.build_model(tokenizer, hidden_size=64, num_layers=2, seed=0)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    how = model.Pretraining(num_steps=60, batch_size=8, lr=5e-3, seed=0)
    losses = model.pretrain(small, tokenizer, conversations, how, log=log)
    # an untrained model knows nothing: ln(1200 tokens) = 7.1 nats per token
    assert losses[0] == pytest.approx(7.09, abs=0.4)
    assert sum(losses[-10:]) / 10 < 4.5
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30, 40, 50, 60]
    model.save(small, tokenizer, tmp_path / "base")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    text = AutoTokenizer.from_pretrained(tmp_path / "base")
    ids = torch.tensor([text("Hello Anna!")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, small(ids).logits)


def test_the_same_seed_trains_the_same_model(tokenizer, conversations) -> None:
    how = model.Pretraining(num_steps=5, batch_size=4, lr=1e-3, seed=1)
    runs = [
        model.pretrain(
            model.build_model(tokenizer, hidden_size=64, num_layers=2, seed=1), tokenizer, conversations, how
        )
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_too_few_conversations_are_refused(tokenizer, conversations) -> None:
    small = model.build_model(tokenizer, hidden_size=64, num_layers=2, seed=0)
    with pytest.raises(ValueError, match="need 8000 conversations; found 1500"):
        model.pretrain(small, tokenizer, conversations, model.Pretraining(1000, 8, 1e-3, 0))
