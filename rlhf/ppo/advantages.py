"""From what a rollout measured to what the update aims at: KL-shaped rewards, GAE, whitening. Pure math."""

from __future__ import annotations

import torch
from torch import Tensor


def shaped_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token [B, T]: -kl_coef * kl everywhere, and the score on the completion's last token.

    mask_BT is True on completion tokens, which start at column 0; every row has at least one.
    """
    if kl_BT.shape != mask_BT.shape or scores_B.shape != mask_BT.shape[:1]:
        raise ValueError(f"shapes differ: scores {scores_B.shape}, kl {kl_BT.shape}, mask {mask_BT.shape}")
    rewards_BT = torch.where(mask_BT, -kl_coef * kl_BT, torch.zeros_like(kl_BT))
    last_B1 = mask_BT.sum(1, keepdim=True) - 1
    return rewards_BT.scatter_add(1, last_B1, scores_B[:, None].to(rewards_BT.dtype))


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns [B, T] by generalised advantage estimation (Schulman et al., arXiv:1506.02438, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambda A_{t+1}, return_t = A_t + V_t. After a
    completion's last token the value is 0: an episode ends there, whether by its end token or by the limit.
    """
    if not rewards_BT.shape == values_BT.shape == mask_BT.shape:
        raise ValueError(f"shapes differ: {rewards_BT.shape}, {values_BT.shape}, {mask_BT.shape}")
    values_BT = torch.where(mask_BT, values_BT, torch.zeros_like(values_BT))
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B = values_BT.new_zeros(values_BT.shape[0])
    running_B = torch.zeros_like(next_value_B)
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        running_B = torch.where(
            mask_BT[:, t], delta_B + gamma * gae_lambda * running_B, torch.zeros_like(running_B)
        )
        advantages_BT[:, t] = running_B
        next_value_B = values_BT[:, t]
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, torch.zeros_like(values_BT))


def whiten(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all tokens where the mask is True; 0 elsewhere. A single token becomes 0."""
    count = mask_BT.sum()
    masked_BT = torch.where(mask_BT, values_BT, torch.zeros_like(values_BT))
    mean = masked_BT.sum() / count
    centred_BT = torch.where(mask_BT, values_BT - mean, torch.zeros_like(values_BT))
    variance = centred_BT.square().sum() / count
    return centred_BT * torch.rsqrt(variance + 1e-8)
