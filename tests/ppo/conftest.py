"""A small PPO problem: a tiny random model, a dozen prompts, and rewards that are plain functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.core.backbone import Backbone
from rlhf.core.run import Launch
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.prompts import PromptStream, load_prompts
from rlhf.ppo.train import PPOTrainer

# Counts its calls; at call RLHF_TEST_AT it does what RLHF_TEST_DO says, once per import of the file.
REWARD = """
import os, signal, time

calls = 0

def letters(prompts, completions):
    global calls
    calls += 1
    if str(calls) == os.environ.get("RLHF_TEST_AT"):
        action = os.environ["RLHF_TEST_DO"]
        if action == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        elif action == "nan":
            return [float("nan")] * len(completions)
        elif action == "crash":
            raise RuntimeError("the reward crashed")
    time.sleep(float(os.environ.get("RLHF_TEST_SLEEP_S", "0")))
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]

def plain(prompts, completions):
    return [sum("a" <= c <= "z" or c == " " for c in text) / max(1, len(text)) for text in completions]

def best_until_call_four(prompts, completions):
    global calls
    calls += 1
    return [0.0 if calls == 1 else 1.0 if calls <= 4 else -1.0] * len(completions)
"""

WORDS = ("red", "green", "blue", "cat", "bird", "old man", "rain", "sun", "order", "ticket", "late", "happy")


def tiny_config(**changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "num_iterations": 4,
        "num_prompts": 6,
        "sampling": {"max_completion_tokens": 8},
        "num_epochs": 2,
        "num_minibatches": 2,
        "lora": {"r": 4, "alpha": 8},
        "optim": {"lr": 5e-3},
        "model": {"device": "cpu"},
        "score_normalization": "none",
        "missing_end_penalty": 0.0,
        "eval_every": 2,
        "save_every": 3,
    }
    return PPOConfig(**settings | changes)


@pytest.fixture
def ppo_launch(workspace: Launch) -> Launch:
    """The workspace with prompts.jsonl, eval.jsonl and reward.py."""
    root = workspace.workspace
    for name, words in (("prompts", WORDS), ("eval", ("hello", "sad", "good", "bad"))):
        rows = [json.dumps({"prompt": f"tell a tale of {word}"}) for word in words]
        (root / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (root / "reward.py").write_text(REWARD)
    return replace(workspace, out=root / "runs" / "ppo")


@pytest.fixture
def ppo_config(ppo_launch: Launch) -> Callable[..., PPOConfig]:
    """ppo_config(**changes): settings that name the files of the workspace."""

    def make(function: str = "letters", **changes: Any) -> PPOConfig:
        names = {
            "backbone": "models/base",
            "prompts": "prompts.jsonl",
            "eval_prompts": "eval.jsonl",
            "reward": f"{ppo_launch.workspace}/reward.py:{function}",
        }
        return tiny_config(**names | changes)

    return make


class LetterReward:
    """The share of characters with an odd code point: no batch has a single value. asked: completions scored so far."""

    name, mean, std = "the share of odd characters", 0.0, 1.0

    def __init__(self) -> None:
        self.asked = 0

    def score(self, completions: Any, prompts: Any, texts: Any) -> torch.Tensor:
        self.asked += len(texts)
        return torch.tensor([sum(ord(c) % 2 for c in text) / max(1, len(text)) for text in texts])


@pytest.fixture
def make_trainer(
    load_tiny: Callable[..., Backbone], tmp_path: Path
) -> Callable[..., tuple[PPOTrainer, PromptStream]]:
    """make_trainer(model={...}, **config changes) -> a trainer on a fresh tiny model, and its prompts."""

    def make(
        model: dict[str, Any] | None = None, reward: Any = None, **changes: Any
    ) -> tuple[PPOTrainer, PromptStream]:
        path = tmp_path / "stream.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"a tale of {word}"}) + "\n" for word in WORDS))
        backbone = load_tiny(**model or {})
        config = tiny_config(**changes)
        room = config.sampling.max_completion_tokens
        prompts, _ = load_prompts(path, backbone.codec, room=room, drop_too_long=False)
        trainer = PPOTrainer(backbone, reward or LetterReward(), config, max_tokens=32)
        return trainer, PromptStream(prompts, config.seed)

    return make
