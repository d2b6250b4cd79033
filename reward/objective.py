"""Which losses are at work, and the numbers beside the scores that they learn: how likely ties and thumbs up are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reward.config import RewardConfig
from reward.examples import Attribute, Attributes, Comparison, Example, Ranking, Thumb
from reward.losses import attribute_loss, centring, comparison_loss, ranking_loss, thumb_loss

_KINDS = (Comparison, Ranking, Attributes, Thumb)


class Objective(nn.Module):
    """The loss of examples from the outputs of a reward's heads.

    Outputs of a row: the score of each member, then one number per attribute. tie_logit and offset are learned:
    see `comparison_loss` and `thumb_loss`.
    """

    def __init__(self, config: RewardConfig, attributes: Sequence[Attribute], device: torch.device) -> None:
        super().__init__()
        self.pair_loss, self.center_coef = config.pair_loss, config.center_coef
        self.attributes = tuple(attributes)
        self.tie_logit = nn.Parameter(torch.zeros((), device=device))
        self.offset = nn.Parameter(torch.zeros((), device=device))

    def used(self, examples: Sequence[Example]) -> list[nn.Parameter]:
        """The parameters that these examples say something about; the others stay where they are."""
        found = []
        if self.pair_loss != "bradley-terry" and any(isinstance(e, Comparison) for e in examples):
            found.append(self.tie_logit)
        if any(isinstance(e, Thumb) for e in examples):
            found.append(self.offset)
        return found

    def learned(self, examples: Sequence[Example]) -> dict[str, float]:
        """The values of those parameters, by name."""
        used = {id(parameter) for parameter in self.used(examples)}
        return {name: p.item() for name, p in self.named_parameters() if id(p) in used}

    def loss_sum(
        self,
        outputs: Tensor,
        examples: Sequence[Example],
        place: Mapping[int, int],
        times: Tensor | None = None,
        *,
        centred: bool = True,
    ) -> Tensor:
        """Weighted sum of the examples' losses; members are averaged.

        outputs [R, K + A]: row `place[number]` belongs to the completion `number`. times [E, K]: how often each
        member's resample holds each example (None: once). centred: with the pull of `center_coef`.
        """
        num_members = outputs.shape[1] - len(self.attributes)
        scores, predicted = outputs[:, :num_members], outputs[:, num_members:]
        if times is None:
            times = outputs.new_ones(len(examples), num_members)
        total = outputs.new_zeros(())
        for kind in _KINDS:
            numbers = [i for i, example in enumerate(examples) if type(example) is kind]
            if not numbers:
                continue
            chosen: list[Any] = [examples[i] for i in numbers]
            weights = outputs.new_tensor([example.weight for example in chosen])
            if kind is Attributes:
                total = total + (weights * self._attribute_losses(predicted, chosen, place)).sum()
                continue
            if kind is Ranking:
                losses = self._ranking_losses(scores, chosen, place, centred)
            elif kind is Comparison:
                losses = self._comparison_losses(scores, chosen, place, centred)
            else:
                losses = self._thumb_losses(scores, chosen, place)
            total = total + (weights[:, None] * times[numbers] * losses).sum() / num_members
        return total

    def _comparison_losses(
        self, scores: Tensor, examples: Sequence[Comparison], place: Mapping[int, int], centred: bool
    ) -> Tensor:
        both = torch.stack([scores[[place[e.rows[k]] for e in examples]] for k in (0, 1)], dim=1)
        losses = comparison_loss(
            self.pair_loss,
            both[:, 0],
            both[:, 1],
            scores.new_tensor([e.outcome for e in examples]),
            scores.new_tensor([e.margin for e in examples]),
            self.tie_logit,
        )
        return losses + self.center_coef * centring(both, dim=1) if centred else losses

    def _ranking_losses(
        self, scores: Tensor, examples: Sequence[Ranking], place: Mapping[int, int], centred: bool
    ) -> Tensor:
        longest = max(len(e.rows) for e in examples)
        # Padding repeats a row of the ranking; its tier of -1 leaves it out of every choice.
        rows = [[place[r] for r in (*e.rows, *[e.rows[0]] * (longest - len(e.rows)))] for e in examples]
        tiers = torch.tensor(
            [(*e.tiers, *[-1] * (longest - len(e.tiers))) for e in examples], device=scores.device
        )
        items = scores[torch.tensor(rows, device=scores.device)]
        losses = ranking_loss(items, tiers)
        if not centred:
            return losses
        real = (tiers >= 0)[..., None]
        mean = (items * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return losses + self.center_coef * centring(mean, dim=1)

    def _attribute_losses(
        self, predicted: Tensor, examples: Sequence[Attributes], place: Mapping[int, int]
    ) -> Tensor:
        return attribute_loss(
            predicted[[place[e.rows[0]] for e in examples]],
            predicted.new_tensor([e.values for e in examples]),
            predicted.new_tensor([e.weights for e in examples]),
        )

    def _thumb_losses(self, scores: Tensor, examples: Sequence[Thumb], place: Mapping[int, int]) -> Tensor:
        up = scores.new_tensor([e.up for e in examples])
        return thumb_loss(scores[[place[e.rows[0]] for e in examples]], up, self.offset)
