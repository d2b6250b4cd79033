"""How far the policy is from the reference, and what that costs.

Estimators (Schulman, "Approximating KL divergence", 2020) from tokens the policy sampled, with
d = log policy - log reference: k1 = d (unbiased, the penalty in the reward), k3 = exp(-d) - 1 + d (unbiased,
never negative, reported).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.ppo.config import PPOConfig

# A log-ratio beyond this is a token that one of the two models considers impossible; exp of it would drown
# every other token of the batch.
MAX_LOG_RATIO = 20.0


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Log-ratio of each token, clamped to +-20 nats."""
    return (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clamped(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """True for each token whose log-ratio is at the clamp: there the penalty says less than the models do."""
    return (logprobs - ref_logprobs).abs() >= MAX_LOG_RATIO


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Non-negative estimate of each token's KL divergence, nats."""
    log_ratio = k1(logprobs, ref_logprobs)
    return torch.expm1(-log_ratio) + log_ratio


class KLController:
    """The weight of the KL penalty: fixed, or steered towards a target (Ziegler et al., arXiv:1909.08593, 2.2)."""

    def __init__(self, config: PPOConfig) -> None:
        self.coef = config.kl_coef
        self._target = config.kl_target
        self._horizon = config.kl_horizon

    def update(self, kl: float, num_completions: int) -> None:
        """`kl` is the mean over completions of the summed k1, in nats."""
        if self._target is not None:
            error = max(-0.2, min(0.2, kl / self._target - 1))
            # At most 20 % a step: a batch larger than the horizon would overshoot, below zero even.
            self.coef *= 1 + error * min(1.0, num_completions / self._horizon)

    def state(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state(self, state: dict[str, float]) -> None:
        self.coef = float(state["coef"])
