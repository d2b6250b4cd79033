"""Every loss of the reward model against numbers worked out by hand."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch

from reward.losses import PairLoss, attribute_loss, centring, comparison_loss, ranking_loss, thumb_loss

FIRST, TIE, SECOND = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def loss(
    kind: PairLoss,
    difference: float,
    outcome: tuple[float, float, float] = FIRST,
    margin: float = 0.0,
    tie_logit: float | None = None,
) -> float:
    """Of one comparison whose scores differ by `difference`, under one head."""
    return comparison_loss(
        kind,
        torch.tensor([[difference + 0.7]]),
        torch.tensor([[0.7]]),
        torch.tensor([outcome]),
        torch.tensor([margin]),
        None if tie_logit is None else torch.tensor(tie_logit),
    ).item()


def test_bradley_terry_by_hand() -> None:
    # a difference of ln 3: P = 3/4, loss ln(4/3) where the first won, ln 4 where the second did
    assert loss("bradley-terry", math.log(3)) == pytest.approx(math.log(4 / 3))
    assert loss("bradley-terry", math.log(3), SECOND) == pytest.approx(math.log(4))
    assert loss("bradley-terry", 0.0) == pytest.approx(math.log(2))


def test_a_tie_is_half_a_win_for_each_in_bradley_terry() -> None:
    half = (math.log(4 / 3) + math.log(4)) / 2
    assert loss("bradley-terry", math.log(3), TIE) == pytest.approx(half)
    # three raters: two for the first, one tie: 2/3 ln(4/3) + 1/3 of the tie
    soft = 2 / 3 * math.log(4 / 3) + 1 / 3 * half
    assert loss("bradley-terry", math.log(3), (2 / 3, 1 / 3, 0.0)) == pytest.approx(soft)


@pytest.mark.parametrize("kind", ["bradley-terry", "davidson", "rao-kupper"])
def test_the_margin_is_what_the_difference_has_to_exceed(kind: PairLoss) -> None:
    # a difference of 2 + ln 3 against a margin of 2 is a difference of ln 3
    found = loss(kind, 2 + math.log(3), margin=2.0, tie_logit=0.5)
    assert found == pytest.approx(loss(kind, math.log(3), tie_logit=0.5), abs=1e-6)


def test_davidson_by_hand() -> None:
    # worths 4 and 1, nu = 2: weights 4 : 2 sqrt(4) : 1 = 4 : 4 : 1
    for outcome, probability in ((FIRST, 4 / 9), (TIE, 4 / 9), (SECOND, 1 / 9)):
        found = loss("davidson", math.log(4), outcome, tie_logit=math.log(2))
        assert found == pytest.approx(-math.log(probability))


def test_rao_kupper_by_hand() -> None:
    # worths 4 and 1, theta = 2: 4 / (4 + 2) = 2/3, 1 / (1 + 8) = 1/9, and 2/9 is left for a tie
    tie_logit = math.log(math.expm1(math.log(2)))  # softplus of it is log theta
    for outcome, probability in ((FIRST, 2 / 3), (TIE, 2 / 9), (SECOND, 1 / 9)):
        found = loss("rao-kupper", math.log(4), outcome, tie_logit=tie_logit)
        assert found == pytest.approx(-math.log(probability), rel=1e-5)


@pytest.mark.parametrize("kind", ["davidson", "rao-kupper"])
def test_probabilities_of_the_three_outcomes_add_up_to_one(kind: PairLoss) -> None:
    for difference in (-6.0, -0.3, 0.0, 2.0):
        for tie_logit in (-2.0, 0.0, 1.5):
            total = sum(
                math.exp(-loss(kind, difference, o, tie_logit=tie_logit)) for o in (FIRST, TIE, SECOND)
            )
            assert total == pytest.approx(1, abs=1e-5)


def test_models_of_ties_need_the_logit_of_a_tie() -> None:
    with pytest.raises(ValueError, match="davidson needs the logit of a tie"):
        loss("davidson", 1.0)


def test_a_comparison_refuses_shapes_that_would_broadcast() -> None:
    good: dict[str, Any] = {
        "first": torch.zeros(2, 1),
        "second": torch.zeros(2, 1),
        "outcome": torch.zeros(2, 3),
        "margin": torch.zeros(2),
    }
    for name, wrong in (("second", torch.zeros(1, 1)), ("margin", torch.zeros(1)), ("first", torch.zeros(2))):
        with pytest.raises(ValueError, match="shapes differ"):
            comparison_loss("bradley-terry", **good | {name: wrong})


def test_each_head_has_a_loss_of_its_own() -> None:
    scores = torch.tensor([[math.log(3), 0.0]])
    found = comparison_loss("bradley-terry", scores, torch.zeros(1, 2), torch.tensor([FIRST]), torch.zeros(1))
    assert found[0].tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


# ---- rankings -----------------------------------------------------------------------------------------------


def test_plackett_luce_by_hand() -> None:
    # worths 3, 2, 1 ranked in this order: 3/6 of all three, then 2/3 of the two that are left; two choices
    scores = torch.tensor([[math.log(3), math.log(2), 0.0]])[..., None]
    found = ranking_loss(scores, torch.tensor([[0, 1, 2]]))
    assert found.item() == pytest.approx(-(math.log(1 / 2) + math.log(2 / 3)) / 2)


def test_plackett_luce_is_a_distribution_over_orders() -> None:
    scores = torch.tensor([[0.3, -1.2, 0.8, 0.1]])[..., None]
    total = 0.0
    for order in permutations(range(4)):
        tiers = [order.index(item) for item in range(4)]
        total += math.exp(-3 * ranking_loss(scores, torch.tensor([tiers])).item())
    assert total == pytest.approx(1, abs=1e-5)


def test_of_two_items_it_is_bradley_terry() -> None:
    scores = torch.tensor([[1.3, -0.4]])[..., None]
    assert ranking_loss(scores, torch.tensor([[0, 1]])).item() == pytest.approx(loss("bradley-terry", 1.7))


def test_tied_items_are_each_a_first_choice() -> None:
    # worths 3 and 2 tied above 1: 3/6 and 2/6, and the last item alone is no choice
    scores = torch.tensor([[math.log(3), math.log(2), 0.0]])[..., None]
    found = ranking_loss(scores, torch.tensor([[0, 0, 1]]))
    assert found.item() == pytest.approx(-(math.log(1 / 2) + math.log(1 / 3)) / 2)


def test_padding_changes_nothing_and_gets_no_gradient() -> None:
    scores = torch.tensor([[0.5, -0.5, 99.0, 2.0]], requires_grad=True)
    found = ranking_loss(scores[..., None], torch.tensor([[1, 0, -1, 2]]))
    short = ranking_loss(scores.detach()[:, [0, 1, 3], None], torch.tensor([[1, 0, 2]]))
    assert found.item() == pytest.approx(short.item())
    found.sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0, 2] == 0


def test_a_ranking_needs_two_items() -> None:
    with pytest.raises(ValueError, match="fewer than two"):
        ranking_loss(torch.zeros(1, 2, 1), torch.tensor([[0, -1]]))


# ---- attributes, thumbs, centring ----------------------------------------------------------------------------


def test_attributes_by_hand() -> None:
    # errors 1 and 3, the second counts double and the third was not rated: (1 + 2 * 9) / 3
    found = attribute_loss(
        torch.tensor([[1.0, 3.0, 7.0]]), torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 0.0]])
    )
    assert found.tolist() == pytest.approx([19 / 3])
    assert attribute_loss(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [0]


def test_thumbs_by_hand() -> None:
    # one above the offset by ln 3: P(up) = 3/4; half of the raters said up
    found = thumb_loss(torch.tensor([[1 + math.log(3)]]), torch.tensor([0.5]), torch.tensor(1.0))
    assert found.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_centring_pulls_the_sum_of_a_pair_to_zero() -> None:
    # (1 + 2)^2, and 0 where the two scores cancel
    assert centring(torch.tensor([[[1.0], [2.0]]]), dim=1).tolist() == [[9.0]]
    assert centring(torch.tensor([[[3.0], [-3.0]]]), dim=1).tolist() == [[0.0]]
