"""What the online methods make of several completions of one prompt. Pure math, no model.

    grpo         A_i = (r_i - mean r) / std r over the group; the mean over a completion's tokens of
                 -min(ratio A, clip(ratio) A) + beta k3(policy || reference)
                 Shao et al., arXiv:2402.03300, eq. 3 and 4; without `group_scale` A_i is not divided, Liu et al.,
                 arXiv:2503.20783
    rloo         R_i = r_i - beta log(policy / reference) of the completion, A_i = R_i - mean of the other R_j;
                 -min(ratio A, clip(ratio) A) with the ratio of the whole completion
                 Ahmadian et al., arXiv:2402.14740, section 3
    online-dpo   the best of the group against the worst: -log s(beta (r_best - r_worst)) of the implicit rewards
                 Guo et al., arXiv:2402.04792
    raft         the best of the group is imitated: -log policy per token, Dong et al., arXiv:2304.06767

r are scores as `rlhf.ppo.scores` shapes them. grpo's paper has the KL in the loss with a gradient of its own, rloo's in
the reward. k3 and its gradient are those of grpo's paper: exp(d) - 1 - d with d = log reference - log policy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.ppo.kl import MAX_LOG_RATIO

# A group whose scores differ by less has nothing to teach; dividing by its deviation would only amplify rounding.
SAME_SCORES = 1e-6


def grpo_advantages(scores_B: Tensor, group_size: int, *, scale: bool = True) -> Tensor:
    """[B] from scores of B completions, `group_size` of each prompt side by side. A group of equal scores gets 0."""
    scores_PG = _grouped(scores_B, group_size)
    centred_PG = scores_PG - scores_PG.mean(1, keepdim=True)
    std_P1 = scores_PG.std(1, keepdim=True)
    centred_PG = torch.where(std_P1 > SAME_SCORES, centred_PG, 0.0)
    if scale:
        centred_PG = centred_PG / std_P1.clamp(min=SAME_SCORES)
    return centred_PG.flatten()


def rloo_advantages(scores_B: Tensor, group_size: int) -> Tensor:
    """[B] each score less the mean of the others of its group: G / (G - 1) times its distance from the group's mean."""
    scores_PG = _grouped(scores_B, group_size)
    return ((scores_PG - scores_PG.mean(1, keepdim=True)) * group_size / (group_size - 1)).flatten()


def extremes(scores_B: Tensor, group_size: int) -> list[tuple[int, int]]:
    """(best row, worst row) of every group whose scores differ; among equals the first."""
    scores_PG = _grouped(scores_B, group_size)
    pairs = []
    for number, scores_G in enumerate(scores_PG):
        best, worst = int(scores_G.argmax()), int(scores_G.argmin())
        if scores_G[best] - scores_G[worst] > SAME_SCORES:
            pairs.append((number * group_size + best, number * group_size + worst))
    return pairs


def best_rows(scores_B: Tensor, group_size: int) -> list[int]:
    """The best row of every group."""
    best_P = _grouped(scores_B, group_size).argmax(1)
    return [number * group_size + int(best) for number, best in enumerate(best_P)]


def _grouped(scores_B: Tensor, group_size: int) -> Tensor:
    if scores_B.dim() != 1 or len(scores_B) % group_size:
        raise ValueError(f"scores of shape {tuple(scores_B.shape)} are not groups of {group_size}")
    return scores_B.reshape(-1, group_size)


# ---- losses: sums over completions; N tokens lie flat, rows_N says of which of the b completions each is -------------


def grpo_losses(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    ref_logprobs_N: Tensor,
    advantages_b: Tensor,
    rows_N: Tensor,
    *,
    clip_range: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """([b] losses, [N] where the clip is what counts)."""
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    advantages_N = advantages_b[rows_N]
    unclipped_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - clip_range, 1 + clip_range)
    losses_N = torch.maximum(unclipped_N, clipped_N)
    if beta:
        away_N = (ref_logprobs_N - logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        losses_N = losses_N + beta * (torch.expm1(away_N) - away_N)
    return _per_row(losses_N, rows_N, len(advantages_b)) / _counts(
        rows_N, advantages_b
    ), clipped_N > unclipped_N


def rloo_losses(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_b: Tensor, rows_N: Tensor, *, clip_range: float
) -> tuple[Tensor, Tensor]:
    """([b] losses, [b] where the clip is what counts)."""
    log_ratio_b = _per_row(logprobs_N - old_logprobs_N, rows_N, len(advantages_b))
    ratio_b = torch.exp(log_ratio_b.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    unclipped_b = -advantages_b * ratio_b
    clipped_b = -advantages_b * ratio_b.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(unclipped_b, clipped_b), clipped_b > unclipped_b


def online_dpo_losses(
    logprobs_N: Tensor, ref_logprobs_N: Tensor, rows_N: Tensor, num_rows: int, *, beta: float
) -> Tensor:
    """[b / 2] of pairs that lie side by side, the better one first."""
    ratios_b = _per_row(logprobs_N - ref_logprobs_N, rows_N, num_rows)
    return -F.logsigmoid(beta * (ratios_b[0::2] - ratios_b[1::2]))


def raft_losses(logprobs_N: Tensor, rows_N: Tensor, num_rows: int) -> Tensor:
    """[b] negative log-likelihood per token."""
    return -_per_row(logprobs_N, rows_N, num_rows) / _counts(rows_N, logprobs_N.new_zeros(num_rows))


def _per_row(values_N: Tensor, rows_N: Tensor, num_rows: int) -> Tensor:
    return values_N.new_zeros(num_rows).index_add(0, rows_N, values_N)


def _counts(rows_N: Tensor, like_b: Tensor) -> Tensor:
    return torch.bincount(rows_N, minlength=len(like_b)).to(like_b.dtype)
