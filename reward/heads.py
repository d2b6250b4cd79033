"""The heads of a reward while it trains, and the one score that they become.

A role's head has one output per member of the ensemble and one per attribute. All of them are linear in the same hidden
state, so every score made of them (the members' mean, a weighted sum of attributes) is one linear head again: the one
that is saved as `score.weight`, which any loader can use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reward.config import RewardConfig
from reward.data import RewardData
from reward.examples import Attribute, attributes_of
from rlhf.core.errors import ConfigError


@dataclass(frozen=True)
class Heads:
    """num_members: score outputs of one role. attributes: the outputs behind them.

    attribute_weights [A]: the score is this sum of the attributes; None: it is the mean of the members.
    """

    num_members: int
    attributes: tuple[Attribute, ...]
    attribute_weights: tuple[float, ...] | None

    @classmethod
    def of(cls, config: RewardConfig, data: RewardData) -> Heads:
        """Raises ConfigError for an attribute weight whose attribute nobody rated, or an ensemble of nothing."""
        attributes = attributes_of(data)
        names = [attribute.name for attribute in attributes]
        unknown = sorted(set(config.attribute_weights) - set(names))
        if unknown:
            raise ConfigError(
                f"attribute_weights: {unknown[0]!r} is not among the rated attributes; "
                f"expected some of {', '.join(names) or 'none: the snapshot has no scores that vary'}"
            )
        weights = None
        if config.attribute_weights:
            weights = tuple(config.attribute_weights.get(name, 0.0) for name in names)
        elif not (data.pairs["train"] or data.rankings["train"] or data.thumbs["train"]):
            weights = (1 / len(names),) * len(names) if names else None
        if weights is not None and config.ensemble > 1:
            raise ConfigError(
                f"ensemble is {config.ensemble}, but its members learn from comparisons, rankings or thumbs, "
                "of which there are none"
            )
        members = config.ensemble if config.ensemble_of == "heads" else 1
        return cls(members, attributes, weights)

    @property
    def num_outputs(self) -> int:
        return self.num_members + len(self.attributes)

    def make(self, hidden_size: int, device: torch.device, generator: torch.Generator) -> nn.Linear:
        """A head at zero; members of an ensemble begin apart, so that they can come to different answers."""
        head = nn.Linear(hidden_size, self.num_outputs, bias=False, device=device, dtype=torch.float32)
        nn.init.zeros_(head.weight)
        if self.num_members > 1:
            start = torch.randn(self.num_members, hidden_size, generator=generator) * 0.1 / hidden_size
            head.weight.data[: self.num_members] = start.to(device)
        return head

    def scores(self, outputs: Tensor) -> Tensor:
        """[N, C] -> [N]: the score of each row."""
        if self.attribute_weights is None:
            return outputs[:, : self.num_members].mean(1)
        return outputs[:, self.num_members :] @ outputs.new_tensor(self.attribute_weights)

    def score_weight(self, weight_CH: Tensor) -> Tensor:
        """[1, H]: the head whose output is `scores` of the outputs."""
        return self.scores(weight_CH.T)[None]

    def score_head(self, head: nn.Linear) -> nn.Linear:
        """A head with that one output."""
        single = nn.Linear(head.in_features, 1, bias=False, device=head.weight.device, dtype=torch.float32)
        single.weight.data.copy_(self.score_weight(head.weight.data))
        return single


def resampled(
    families: Sequence[str], num_members: int, generator: torch.Generator
) -> dict[str, tuple[int, ...]]:
    """family -> how often it is in each member's bootstrap resample of the families. One member sees all once."""
    distinct = sorted(set(families))
    if num_members == 1:
        return dict.fromkeys(distinct, (1,))
    columns = []
    for _ in range(num_members):
        drawn = torch.randint(len(distinct), (len(distinct),), generator=generator)
        columns.append(torch.bincount(drawn, minlength=len(distinct)).tolist())
    return dict(zip(distinct, zip(*columns, strict=True), strict=True))
