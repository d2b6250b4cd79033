"""Losses on scores, each with the paper it is from. Pure math: tensors in, the loss of every example out.

Comparisons (`comparison_loss`), with d = s_first - s_second - margin:

    bradley-terry   P(first) = sigmoid(d); a tie is half a win for each   Bradley & Terry 1952
    davidson        P(first) : P(tie) : P(second) = e^(d/2) : nu : e^(-d/2)   Davidson, JASA 65, 1970
    rao-kupper      P(first) = sigmoid(d - eta), P(second) = sigmoid(-d - eta), the rest is a tie
                    Rao & Kupper, JASA 62, 1967; eta = log theta >= 0

All take soft labels: several raters' answers as shares of wins, ties and losses. The margin is what the difference has
to exceed (Llama 2, arXiv:2307.09288, eq. 2). Rankings: Plackett (1975) and Luce (1959). Attribute scores: squared error
(HelpSteer2, arXiv:2406.08673). Thumbs: logistic regression. Centring: Eisenstein et al. (arXiv:2312.09244).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PairLoss = Literal["bradley-terry", "davidson", "rao-kupper"]


def comparison_loss(
    kind: PairLoss,
    first: Tensor,
    second: Tensor,
    outcome: Tensor,
    margin: Tensor,
    tie_logit: Tensor | None = None,
) -> Tensor:
    """Cross-entropy [P, K] of each comparison with what raters said.

    first, second [P, K]: scores under K heads. outcome [P, 3]: shares of (first wins, tie, second wins), which add
    up to 1. margin [P]: signed in favour of the first. tie_logit: a number, log nu of davidson; of rao-kupper, softplus
    of it is eta. Raises ValueError for shapes that would broadcast.
    """
    count = len(outcome)
    if first.shape != second.shape or first.dim() != 2 or first.shape[0] != count or margin.shape != (count,):
        shapes = [tuple(t.shape) for t in (first, second, outcome, margin)]
        raise ValueError(f"shapes differ: {shapes}; expected [P, K], [P, K], [P, 3], [P]")
    wins, ties, losses = (outcome[:, k, None] for k in range(3))
    d = first - second - margin[:, None]
    if kind == "bradley-terry":
        return F.binary_cross_entropy_with_logits(d, (wins + ties / 2).expand_as(d), reduction="none")
    if tie_logit is None:
        raise ValueError(f"{kind} needs the logit of a tie")
    if kind == "davidson":
        logits = torch.stack([d / 2, tie_logit.expand_as(d), -d / 2])
        log_p = torch.log_softmax(logits, dim=0)
        return -(wins * log_p[0] + ties * log_p[1] + losses * log_p[2])
    eta = F.softplus(tie_logit)
    log_first, log_second = F.logsigmoid(d - eta), F.logsigmoid(-d - eta)
    # P(tie) = (theta^2 - 1) / ((1 + theta e^-d) (1 + theta e^d))
    log_tie = torch.log(torch.expm1(2 * eta)) - F.softplus(eta - d) - F.softplus(eta + d)
    return -(wins * log_first + ties * log_tie + losses * log_second)


def ranking_loss(scores: Tensor, tiers: Tensor) -> Tensor:
    """Plackett-Luce: mean over the choices that a ranking consists of, so that it counts like one comparison. [R, K]

    scores [R, N, K]; tiers [R, N]: 0 is best, equal numbers are tied, -1 is padding. Each item is a choice among
    itself and everything that is not ranked above it (Breslow's way with ties); the last item, if it is alone there,
    is no choice. For two items that is Bradley-Terry. Raises ValueError where a ranking has no choice.
    """
    real = tiers >= 0
    # among[r, i, j]: item j could have been chosen where i was
    among = (tiers[:, :, None] <= tiers[:, None, :]) & real[:, :, None] & real[:, None, :]
    is_choice = real & (among.sum(2) > 1)
    if not bool(is_choice.any(1).all()):
        raise ValueError("a ranking of fewer than two items")
    masked = scores[:, None].masked_fill(~among[..., None], -torch.inf)  # [R, i, j, K]
    pools = torch.logsumexp(torch.where(real[:, :, None, None], masked, 0.0), dim=2)
    losses = torch.where(is_choice[..., None], pools - scores, 0.0)
    return losses.sum(1) / is_choice.sum(1, keepdim=True)


def attribute_loss(predicted: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Weighted squared error of each completion, mean over its attributes [B]; weight 0: not rated on this attribute.

    All three [B, A]. A completion without any rated attribute has loss 0.
    """
    squared = torch.where(weights > 0, (predicted - values).square() * weights, 0.0)
    return squared.sum(1) / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)


def thumb_loss(scores: Tensor, up: Tensor, offset: Tensor) -> Tensor:
    """Cross-entropy [B, K] of sigmoid(score - offset) with the share of thumbs up [B]. scores [B, K]."""
    logits = scores - offset
    return F.binary_cross_entropy_with_logits(logits, up[:, None].expand_as(logits), reduction="none")


def centring(scores: Tensor, dim: int) -> Tensor:
    """(2 x mean score)^2 over `dim`, the items of one example: for a pair, (s_first + s_second)^2."""
    return (2 * scores.mean(dim)).square()
