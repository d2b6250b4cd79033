"""A tiny random Llama with a character tokenizer and a chat template, as a model directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKS = ["<pad>", "<end>", "<unk>", "<system>", "<user>", "<assistant>"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789 .?"))
    vocabulary = {token: i for i, token in enumerate([*MARKS, *letters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=MARKS[3:],
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    """24 answers to 12 prompts: the answer repeats the letter that was asked for."""
    path = tmp_path / "demonstrations.jsonl"
    rows = [{"prompt": f"say {c}", "completion": c * n} for c in "abcdefghijkl" for n in (3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sft_options(tiny_model: Path, demonstrations: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a run that takes about a second: 4 epochs of 3 steps."""

    def options(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "base": str(tiny_model),
            "data": str(demonstrations),
            "validation_fraction": 0.25,
            "num_epochs": 4,
            "batch_size": 8,
            "micro_batch_size": 4,
            "optim": {"lr": 1e-2, "warmup_steps": 1, "schedule": "linear"},
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1, "adapter_layers": 1.0},
            "model": {"device": "cpu"},
            "patience": 10,
        }
        return values | changes

    return options
