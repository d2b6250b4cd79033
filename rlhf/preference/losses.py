"""Losses of the offline methods, each with the paper it is from. Pure math: tensors in, the loss of every example out.

With r = log policy - log reference of a whole completion (its implicit reward over beta), l = log policy, n = tokens,
the comparison "first beats second" costs

    dpo      -log s(beta (r1 - r2))                                        Rafailov et al., arXiv:2305.18290, eq. 7
    robust   ((1 - e) dpo(first) - e dpo(second)) / (1 - 2e)               Chowdhury et al., arXiv:2403.00409
    ipo      (r1 / n1 - r2 / n2 - 1 / (2 beta))^2                          Azar et al., arXiv:2310.12036, eq. 17
    cpo      -log s(beta (l1 - l2)) - c l1 / n1                            Xu et al., arXiv:2401.08417
    simpo    -log s(beta (l1 / n1 - l2 / n2) - gamma)                      Meng et al., arXiv:2405.14734, eq. 6
    orpo     -beta log s(logit p1 - logit p2) - c l1 / n1, log p = l / n   Hong et al., arXiv:2403.07691, eq. 6 and 7

with s the logistic function, e the share of wrong labels and c `imitation_coef`, which every one of them may have (for
dpo that is RPO, Pang et al., arXiv:2404.19733). ipo divides by the number of tokens, as its authors do in their
experiments (and trl with them); their equation does not. cpo's imitation is per token, as in trl; its paper adds it up.

All but the imitation are symmetric in the two sides, so several raters' answers count as shares: wins of the first,
wins of the second, and ties, which are half a win for each (for ipo: r1 / n1 = r2 / n2). A tie says nothing about what
to imitate. A margin m is what the argument of the logistic function has to exceed (dpo: ODPO, Amini et al.,
arXiv:2402.10571).

    kto      w_good (1 - s(beta (r - z))) or w_bad (1 - s(beta (z - r)))       Ethayarajh et al., arXiv:2402.01306

where z >= 0 estimates KL(policy || reference) from prompts with completions of other prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.preference.config import PairMethod

# 1 - p of a completion whose every token is certain would be 0.
MAX_LOG_P = -1e-6


@dataclass(frozen=True)
class Sides:
    """Both sides of P comparisons, each [P, 2]: summed log-probabilities of policy and reference, and tokens."""

    logprobs_P2: Tensor
    ref_logprobs_P2: Tensor
    lengths_P2: Tensor

    @property
    def per_token_P2(self) -> Tensor:
        """Mean log-probability of a completion's tokens."""
        return self.logprobs_P2 / self.lengths_P2


@dataclass(frozen=True)
class PairLoss:
    """The loss of a method. flip_rate is e of `robust`; margin is gamma of `simpo`."""

    method: PairMethod
    beta: float
    flip_rate: float = 0.0
    margin: float = 0.0
    imitation: float = 0.0

    def rewards(self, sides: Sides) -> Tensor:
        """[P, 2] what the method compares, in the units in which it compares it."""
        if self.method in ("dpo", "robust"):
            return self.beta * (sides.logprobs_P2 - sides.ref_logprobs_P2)
        if self.method == "ipo":
            return (sides.logprobs_P2 - sides.ref_logprobs_P2) / sides.lengths_P2
        if self.method == "cpo":
            return self.beta * sides.logprobs_P2
        if self.method == "simpo":
            return self.beta * sides.per_token_P2
        log_p = sides.per_token_P2.clamp(max=MAX_LOG_P)
        return log_p - torch.log(-torch.expm1(log_p))

    def __call__(self, sides: Sides, outcome_P3: Tensor, margin_P: Tensor) -> Tensor:
        """[P]. outcome_P3: shares of (first wins, tie, second wins); margin_P: signed in favour of the first."""
        if sides.logprobs_P2.shape != (len(outcome_P3), 2) or margin_P.shape != outcome_P3.shape[:1]:
            shapes = [tuple(t.shape) for t in (sides.logprobs_P2, outcome_P3, margin_P)]
            raise ValueError(f"shapes differ: {shapes}; expected [P, 2], [P, 3], [P]")
        rewards_P2 = self.rewards(sides)
        difference_P = rewards_P2[:, 0] - rewards_P2[:, 1] - margin_P
        wins_P, ties_P, losses_P = outcome_P3.unbind(1)
        first_P, second_P = self._won_by(difference_P), self._won_by(-difference_P)
        total_P = (wins_P + ties_P / 2) * first_P + (losses_P + ties_P / 2) * second_P
        if self.imitation:
            per_token_P2 = sides.per_token_P2
            total_P = total_P - self.imitation * (wins_P * per_token_P2[:, 0] + losses_P * per_token_P2[:, 1])
        return total_P

    def _won_by(self, difference_P: Tensor) -> Tensor:
        """[P] the loss where the side that leads by `difference` is the better one."""
        if self.method == "ipo":
            return (difference_P - 1 / (2 * self.beta)).square()
        if self.method == "robust":
            right, wrong = -F.logsigmoid(difference_P), -F.logsigmoid(-difference_P)
            return ((1 - self.flip_rate) * right - self.flip_rate * wrong) / (1 - 2 * self.flip_rate)
        loss_P = -F.logsigmoid(difference_P - self.margin)
        return self.beta * loss_P if self.method == "orpo" else loss_P


def kto_losses(
    logratios_B: Tensor,
    good_B: Tensor,
    bad_B: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """[B] for completions of which shares `good_B` and `bad_B` of the answers said so. kl: the estimate z, >= 0."""
    if not logratios_B.shape == good_B.shape == bad_B.shape:
        raise ValueError(f"shapes differ: {logratios_B.shape}, {good_B.shape}, {bad_B.shape}")
    pull_B = beta * (logratios_B - kl)
    return desirable_weight * good_B * torch.sigmoid(-pull_B) + undesirable_weight * bad_B * torch.sigmoid(
        pull_B
    )
