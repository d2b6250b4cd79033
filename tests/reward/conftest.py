"""Comparisons under a planted rule, so that what a reward model ought to learn is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.config import RewardConfig
from rlhf.core.run import Launch

NOUNS = ("cat", "mat", "birds", "man", "tale", "rain", "sun", "order", "number", "ticket")


def planted_rows(num_prompts: int, seed: int = 0) -> list[dict[str, Any]]:
    """One comparison a prompt: the answer with 'thank you' in it was chosen over one with 'sorry'."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(num_prompts):
        a, b, c = (NOUNS[j] for j in torch.randint(len(NOUNS), (3,), generator=generator).tolist())
        rows.append(
            {
                "prompt": f"tell of {a} {i}",
                "chosen": f"the {b} thank you {c}",
                "rejected": f"the {b} sorry {c}",
                "annotator_id": "rater",
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reward_launch(workspace: Launch) -> Launch:
    """The workspace with preferences.jsonl under the planted rule."""
    write_rows(workspace.workspace / "preferences.jsonl", planted_rows(160))
    return replace(workspace, out=workspace.workspace / "runs" / "reward")


@pytest.fixture
def reward_config() -> Callable[..., RewardConfig]:
    def make(**changes: Any) -> RewardConfig:
        settings: dict[str, Any] = {
            "backbone": "models/base",
            "snapshot": "preferences.jsonl",
            "num_epochs": 3,
            "batch_pairs": 16,
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            "optim": {"lr": 1e-2, "schedule": "cosine", "warmup_steps": 2},
            "model": {"device": "cpu"},
        }
        return RewardConfig(**settings | changes)

    return make
