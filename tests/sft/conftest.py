"""Demonstrations for a tiny chat model, and settings of a run that takes about a second."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def chat_model(tiny_model: Callable[..., Path]) -> Path:
    """A random Llama of two layers with a chat template and a context of 64; two tokens end its answers."""
    return tiny_model(chat_template=True, context=64, num_layers=2)


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage() -> None:
    """accelerate collects garbage whenever a training starts; it need not look through all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a short run's time goes into pictures: only tests that ask for `pictures` have them drawn."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("sft.report.page", lambda *args: "")
        monkeypatch.setattr("sft.report.draw", lambda *args: None)


@pytest.fixture
def pictures() -> None:
    """Asked for by tests that look at the report's page and at sft.png."""


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    """24 answers to 12 prompts: the answer repeats the letter that was asked for."""
    path = tmp_path / "demonstrations.jsonl"
    rows = [{"prompt": f"say {c}", "completion": c * n} for c in "abcdefghijkl" for n in (3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sft_options(chat_model: Path, demonstrations: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a run that takes about a second: 4 epochs of 2 steps."""

    def options(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "base": str(chat_model),
            "data": str(demonstrations),
            "validation_fraction": 0.25,
            "num_epochs": 4,
            "batch_size": 8,
            "micro_batch_size": 4,
            "optim": {"lr": 1e-2, "warmup_steps": 1, "schedule": "linear"},
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1, "adapter_layers": 1.0},
            "model": {"device": "cpu"},
            "patience": 10,
            "num_samples": 0,
        }
        return values | changes

    return options
