"""Losses on score differences. Pure math.

Bradley & Terry (1952): P(chosen beats rejected) = sigmoid(s_chosen - s_rejected). A tie is a soft label of
one half. The margin follows Llama 2 (arXiv:2307.09288, eq. 2), centring Eisenstein et al. (arXiv:2312.09244).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_loss(
    first_P: Tensor, second_P: Tensor, targets_P: Tensor, margins_P: Tensor, center_coef: float
) -> Tensor:
    """Loss of each pair [P]: cross-entropy of sigmoid(first - second - margin) with the target.

    targets_P: P(first beats second): 1 for a win, 0.5 for a tie, anything between for several raters.
    margins_P: signed in favour of the first. center_coef weighs (first + second)^2, which fixes the free
    constant of the scores.
    """
    shapes = {tuple(x.shape) for x in (first_P, second_P, targets_P, margins_P)}
    if len(shapes) != 1:
        raise ValueError(f"shapes differ: {sorted(shapes)}")
    logits_P = first_P - second_P - margins_P
    loss_P = F.binary_cross_entropy_with_logits(logits_P, targets_P, reduction="none")
    return loss_P + center_coef * torch.square(first_P + second_P)
