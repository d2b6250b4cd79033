"""Every loss against a number derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.preference.groups import (
    best_rows,
    extremes,
    grpo_advantages,
    grpo_losses,
    online_dpo_losses,
    raft_losses,
    rloo_advantages,
    rloo_losses,
)
from rlhf.preference.losses import PairLoss, Sides, kto_losses

# One comparison: log policy -2 and -3, log reference -2.5 both, 2 and 4 tokens: r = 0.5 and -0.5, l / n = -1 and -0.75.
SIDES = Sides(torch.tensor([[-2.0, -3.0]]), torch.tensor([[-2.5, -2.5]]), torch.tensor([[2.0, 4.0]]))
WON, TIED, LOST = (torch.tensor([o]) for o in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
NONE = torch.zeros(1)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # -log s(0.5 x (0.5 + 0.5)) = log(1 + e^-0.5)
        (PairLoss("dpo", 0.5), 0.474077),
        # the other way round log(1 + e^0.5) = 0.974077: (0.9 x 0.474077 - 0.1 x 0.974077) / 0.8
        (PairLoss("robust", 0.5, flip_rate=0.1), 0.411577),
        # (0.5 / 2 + 0.5 / 4 - 1 / (2 x 0.5))^2 = (0.375 - 1)^2
        (PairLoss("ipo", 0.5), 0.390625),
        # -log s(0.5 x (-2 + 3)) = 0.474077, and the chosen one's -(-2) / 2 = 1
        (PairLoss("cpo", 0.5, imitation=1.0), 1.474077),
        # -log s(0.5 x (-1 + 0.75) - 0.5) = log(1 + e^0.625)
        (PairLoss("simpo", 0.5, margin=0.5), 1.053701),
        # log odds -1 - log(1 - e^-1) = -0.541325 and -0.75 - log(1 - e^-0.75) = -0.110646: 0.5 log(1 + e^0.430678) + 1
        (PairLoss("orpo", 0.5, imitation=1.0), 1.465747),
        # with the chosen completion imitated at a weight of 0.2 (RPO)
        (PairLoss("dpo", 0.5, imitation=0.2), 0.674077),
    ],
    ids=lambda value: value.method if isinstance(value, PairLoss) else "",
)
def test_the_loss_of_one_comparison(loss: PairLoss, expected: float) -> None:
    assert loss(SIDES, WON, NONE).item() == pytest.approx(expected, abs=1e-5)
    turned = Sides(
        *(getattr(SIDES, name).flip(1) for name in ("logprobs_P2", "ref_logprobs_P2", "lengths_P2"))
    )
    assert loss(turned, LOST, NONE).item() == pytest.approx(expected, abs=1e-5)


def test_ties_margins_and_shares() -> None:
    loss = PairLoss("dpo", 0.5, imitation=1.0)
    # a tie is half of 0.474077 and half of 0.974077, and imitates neither
    assert loss(SIDES, TIED, NONE).item() == pytest.approx(0.724077, abs=1e-5)
    # three raters, two for the first: 2/3 x (0.474077 + 1) + 1/3 x (0.974077 + 0.75)
    shared = loss(SIDES, torch.tensor([[2 / 3, 0.0, 1 / 3]]), NONE).item()
    assert shared == pytest.approx(2 / 3 * 1.474077 + 1 / 3 * 1.724077, abs=1e-5)
    # a margin of 0.2 leaves 0.5 - 0.2 in the logistic function: log(1 + e^-0.3)
    assert PairLoss("dpo", 0.5)(SIDES, WON, torch.tensor([0.2])).item() == pytest.approx(0.554355, abs=1e-5)
    # ipo draws a tie's two sides together: ((0.375 - 1)^2 + (-0.375 - 1)^2) / 2 = 0.375^2 + 1
    assert PairLoss("ipo", 0.5)(SIDES, TIED, NONE).item() == pytest.approx(1.140625, abs=1e-6)
    with pytest.raises(ValueError, match="shapes differ"):
        loss(SIDES, WON, torch.zeros(2))


def test_the_loss_of_a_verdict() -> None:
    """r = 0.5 and z = 0.2 at beta 0.5: 1 - s(0.15) = 0.462570 where it is good, s(0.15) = 0.537430 where it is bad."""
    r, kl = torch.tensor([0.5, 0.5, 0.5]), torch.tensor(0.2)
    good, bad = torch.tensor([1.0, 0.0, 0.75]), torch.tensor([0.0, 1.0, 0.25])
    losses = kto_losses(r, good, bad, kl, beta=0.5, desirable_weight=2.0, undesirable_weight=1.0)
    expected = [2 * 0.462570, 0.537430, 0.75 * 2 * 0.462570 + 0.25 * 0.537430]
    assert losses.tolist() == pytest.approx(expected, abs=1e-5)


def test_advantages_of_groups() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])
    # mean 3, deviations -2 -1 3, their squares 14, sample deviation sqrt(14 / 2) = 2.645751; equal scores teach nothing
    assert grpo_advantages(scores, 3).tolist() == pytest.approx(
        [-0.755929, -0.377964, 1.133893, 0, 0, 0], abs=1e-5
    )
    assert grpo_advantages(scores, 3, scale=False).tolist() == pytest.approx([-2, -1, 3, 0, 0, 0])
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    assert rloo_advantages(scores, 3).tolist() == pytest.approx([-3, -1.5, 4.5, 0, 0, 0])
    assert extremes(scores, 3) == [(2, 0)]
    assert best_rows(scores, 3) == [2, 3]
    with pytest.raises(ValueError, match="not groups of 4"):
        grpo_advantages(scores, 4)


def test_losses_of_groups() -> None:
    """Two completions of 2 and 1 tokens, advantages 1 and -2."""
    rows = torch.tensor([0, 0, 1])
    advantages = torch.tensor([1.0, -2.0])
    new, old = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.5, -0.9])
    ref = torch.tensor([-1.0, -1.2, -1.0])
    # ratios 1, e^0.5 = 1.648721 (clipped to 1.2), e^-0.1 = 0.904837
    # k3 at d = ref - new = 0, -0.2, 0: e^-0.2 + 0.2 - 1 = 0.018731
    losses, clipped = grpo_losses(new, old, ref, advantages, rows, clip_range=0.2, beta=0.1)
    assert losses.tolist() == pytest.approx([(-1 - 1.2 + 0.1 * 0.018731) / 2, 2 * 0.904837], abs=1e-5)
    assert clipped.tolist() == [False, True, False]
    # whole completions: the first moved by 0.5, so its ratio 1.648721 is clipped to 1.2
    losses, clipped = rloo_losses(new, old, advantages, rows, clip_range=0.2)
    assert losses.tolist() == pytest.approx([-1.2, 1.809675], abs=1e-5)
    assert clipped.tolist() == [True, False]
    # log ratios to the reference 0.2 and 0: -log s(0.5 x 0.2)
    losses = online_dpo_losses(new, ref, rows, 2, beta=0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-0.1))], abs=1e-6)
    assert raft_losses(torch.tensor([-1.0, -2.0, -4.0]), rows, 2).tolist() == pytest.approx([1.5, 4.0])
