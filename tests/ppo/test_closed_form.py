"""PPO against the exact optimum of a problem small enough to enumerate (the long form is a proof script)."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.core.records import Prompt
from rlhf.core.settings import LoraSettings, OptimSettings, SamplingSettings
from rlhf.ppo.closed_form import ExactProblem, TokenReward, all_completions, toy_backbone
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.prompts import EncodedPrompt, PromptStream
from rlhf.ppo.train import PPOTrainer

PROMPT = [3, 1]


def settings(**changes: object) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "num_iterations": 40,
            "num_prompts": 128,
            "num_epochs": 4,
            "num_minibatches": 2,
            "kl_coef": 0.3,
            "score_normalization": "none",
            "missing_end_penalty": 0.0,
            "sampling": SamplingSettings(max_completion_tokens=2),
            "lora": LoraSettings(adapter_layers=1.0),
            "optim": OptimSettings(lr=5e-3, schedule="linear"),
        }
        | changes
    )


def test_every_completion_is_enumerated_once() -> None:
    # 3 tokens, 0 ends, at most 2: [0], [1,0], [1,1], [1,2], [2,0], [2,1], [2,2]
    rows = sorted(all_completions(3, [0], 2))
    assert rows == [[0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]


def test_the_optimum_is_beta_log_z() -> None:
    """Two values of the reward: with p the reference's probability of starting with token 1 and reward 1 there,
    beta log(1 - p + p e^(1/beta)); the reference itself earns p and is at distance 0."""
    backbone = toy_backbone(0)
    config = settings()
    problem = ExactProblem.enumerate(backbone, PROMPT, lambda row: float(row[0] == 1), config)
    logits = backbone.model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    p = torch.softmax(logits, 0)[1].item()
    assert problem.reference_objective == pytest.approx(p, abs=1e-5)
    assert problem.optimum == pytest.approx(0.3 * math.log(1 - p + p * math.exp(1 / 0.3)), abs=1e-5)
    assert problem.progress("reference") == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pad_is_end", [True, pytest.param(False, marks=pytest.mark.long)])
def test_ppo_comes_close_to_the_optimum(pad_is_end: bool) -> None:
    def reward(row: list[int]) -> float:
        return 1.5 * (list(row[:2]) == [3, 5]) + 0.5 * (len(row) == 1)

    backbone = toy_backbone(1, pad_is_end=pad_is_end)
    config = settings()
    trainer = PPOTrainer(backbone, TokenReward(reward, len(PROMPT)), config, max_tokens=8)
    problem = ExactProblem.enumerate(backbone, PROMPT, reward, config)
    stream = PromptStream([EncodedPrompt(Prompt.model_validate({"prompt": "toy"}), PROMPT)], 0)
    assert problem.progress("policy") == pytest.approx(0.0, abs=1e-4)
    for _ in range(config.num_iterations):
        batch = trainer.collect(stream)
        trainer.update(batch, trainer.targets(batch))
        trainer.finish_iteration(0.0, len(batch.texts))
    assert 0.9 < problem.progress("policy") <= 1.0 + 1e-6
