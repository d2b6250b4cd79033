"""A tiny encoder and a tiny decoder, labelled texts whose label is a word in them, and settings of a short run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForMaskedLM

SIGNS = {"animal": ("cat", "birds"), "colour": ("red", "green", "blue"), "greeting": ("hello", "please")}
FILLERS = (
    "the",
    "mat",
    "and",
    "saw",
    "while",
    "an",
    "old",
    "man",
    "told",
    "one",
    "more",
    "tale",
    "of",
    "rain",
    "sun",
    "order",
    "number",
    "ticket",
    "late",
    "early",
)


@pytest.fixture(scope="session")
def encoder(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DistilBERT of two layers, saved as a masked language model: it brings no classifier."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = DistilBertForMaskedLM(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(number: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of ten words of which the first and the last give the label away (where encoders and decoders look)."""
    rng = random.Random(seed)
    rows = []
    for place in range(number):
        label = list(SIGNS)[place % 3]
        words = [rng.choice(FILLERS) for _ in range(8)]
        words = [rng.choice(SIGNS[label]), *words, rng.choice(SIGNS[label])]
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("labelled") / "labelled.jsonl", sentences(180))


@pytest.fixture(scope="session")
def classify_options(encoder: Path, labelled: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a run of a few seconds: 3 epochs of 9 steps."""

    def options(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "base": str(encoder),
            "data": str(labelled),
            "test_fraction": 0.2,
            "lora": {
                "r": 4,
                "alpha": 8,
                "dropout": 0.1,
                "adapter_layers": 1.0,
                "target_modules": "q_lin,v_lin",
            },
            "num_epochs": 3,
            "optim": {"lr": 1e-2, "warmup_steps": 2},
            "model": {"device": "cpu"},
        }
        return values | changes

    return options
