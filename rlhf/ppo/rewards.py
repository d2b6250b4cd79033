"""What PPO maximises: a reward run on the shared backbone, or a Python function of prompts and completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from reward.score import RewardScorer
from rlhf.core.callables import ScoringFunction
from rlhf.core.records import Prompt
from rlhf.core.sequences import SequenceBatch, Sequences


class Reward(Protocol):
    """mean and std bring raw scores to mean 0 and deviation 1."""

    mean: float
    std: float

    def score(
        self, sequences: Sequences, batch: SequenceBatch, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> Tensor:
        """Raw scores [b] of the batch's rows; prompts and texts belong to those rows."""
        ...


class ModelReward:
    """A reward adapter on the policy's own backbone: it reads the cached trunk states."""

    def __init__(self, scorer: RewardScorer) -> None:
        self.scorer = scorer
        self.mean, self.std = scorer.scale.mean, scorer.scale.std

    def score(
        self, sequences: Sequences, batch: SequenceBatch, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> Tensor:
        return self.scorer.score(sequences, batch)


class FunctionReward:
    """A callable `file.py:function`; its scores are taken as they are."""

    mean, std = 0.0, 1.0

    def __init__(self, spec: str) -> None:
        self.function = ScoringFunction(spec)

    def score(
        self, sequences: Sequences, batch: SequenceBatch, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> Tensor:
        return torch.tensor(self.function(prompts, texts), device=sequences.backbone.device)


def content_of(spec: str) -> Path | None:
    """The file behind `file.py:function`, whose content belongs to the run's identity."""
    path = Path(spec.rpartition(":")[0])
    return path if path.is_file() else None
