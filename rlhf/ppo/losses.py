"""The clipped surrogate and the clipped value loss (Schulman et al., arXiv:1707.06347, eq. 7 and 9). Pure math.

All return sums over the tokens that count, so that the caller divides by the global token count once and a
minibatch cut into micro-batches gives the same gradient as an uncut one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    clip_range: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum of -min(ratio A, clip(ratio) A), number of tokens where a clip is what counts).

    dual_clip bounds the loss of a token with a negative advantage by -dual_clip A, so that a ratio that has run
    away cannot dominate a step (Ye et al., arXiv:1912.09729, eq. 5).
    """
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    unclipped_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - clip_range, 1 + clip_range)
    loss_N, active_N = torch.maximum(unclipped_N, clipped_N), clipped_N > unclipped_N
    if dual_clip is not None:
        bound_N = -advantages_N * dual_clip
        bounded_N = (advantages_N < 0) & (loss_N > bound_N)
        loss_N, active_N = torch.where(bounded_N, bound_N, loss_N), active_N | bounded_N
    return loss_N.sum(), active_N.sum()


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """(sum of 0.5 max((V - R)^2, (clip(V) - R)^2), number of tokens where the clip is what counts).

    clip(V) moves at most clip_range from the value that the rollout measured.
    """
    clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip_range, clip_range)
    loss_N = (values_N - returns_N).square()
    loss_clipped_N = (clipped_N - returns_N).square()
    # Within the range the clip only rounds: old + (V - old) is V but for the last digit.
    active_N = (loss_clipped_N > loss_N) & ((values_N - old_values_N).abs() > clip_range)
    return 0.5 * torch.maximum(loss_N, loss_clipped_N).sum(), active_N.sum()
