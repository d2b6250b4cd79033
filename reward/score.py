"""The only door through which PPO and evaluation use a reward model.

A reward directory is attached to a backbone as one more role; scores are read at a completion's last token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlhf.core.adapters import load_adapter
from rlhf.core.backbone import Backbone, Role
from rlhf.core.batching import token_budget_batches
from rlhf.core.chat import ChatCodec, first_line
from rlhf.core.errors import CheckpointError
from rlhf.core.files import write_json
from rlhf.core.records import Prompt
from rlhf.core.sequences import SequenceBatch, Sequences

SCALE_FILE = "reward.json"


@dataclass(frozen=True)
class RewardScale:
    """mean and std of the scores on the training completions; temperature of the calibrated probabilities:
    P(a beats b) = sigmoid((s_a - s_b) / temperature)."""

    mean: float
    std: float
    temperature: float

    def save(self, folder: Path) -> None:
        write_json(folder / SCALE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RewardScale:
        """Raises CheckpointError when the file is missing or damaged."""
        path = folder / SCALE_FILE
        try:
            scale = cls(**json.loads(path.read_text(encoding="utf-8")))
            if not scale.std > 0 or not scale.temperature > 0:
                raise ValueError("std and temperature must be positive")
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be used ({first_line(error)})") from error
        return scale


class RewardScorer:
    """A reward role of a backbone. Scores are raw; `scale` says how to normalise or calibrate them."""

    def __init__(self, backbone: Backbone, role: Role, scale: RewardScale) -> None:
        self.backbone = backbone
        self.role = role
        self.scale = scale

    @classmethod
    def attach(
        cls, backbone: Backbone, folder: Path, *, base_name: str | None = None, name: str = "reward"
    ) -> RewardScorer:
        """Load a reward directory as a role of `backbone`. Raises CheckpointError where it does not fit."""
        scale = RewardScale.load(folder)
        role = load_adapter(backbone, name, folder, base_name=base_name, scalar_head=True)
        return cls(backbone, role, scale)

    @torch.no_grad()
    def score(self, sequences: Sequences, batch: SequenceBatch) -> Tensor:
        """Scores [B] of a batch of `sequences`, in one forward pass."""
        assert self.role.head is not None
        hidden_BH = sequences.last_hidden(self.role.name, batch)
        return self.role.head(hidden_BH.float()).squeeze(1)

    @torch.no_grad()
    def score_all(self, sequences: Sequences, rows: Sequence[int] | None = None) -> Tensor:
        """Scores [N] by token budget, on the CPU; NaN for rows that were not asked for (default: all are)."""
        asked = list(range(len(sequences))) if rows is None else list(rows)
        scores_N = torch.full((len(sequences),), float("nan"))
        for places in token_budget_batches([sequences.lengths[i] for i in asked], sequences.max_tokens):
            indices = [asked[place] for place in places]
            scores_N[indices] = self.score(sequences, sequences.batch(indices)).cpu()
        return scores_N

    def score_texts(self, prompts: Sequence[Prompt], texts: Sequence[str], *, max_tokens: int) -> list[float]:
        """Scores of finished completions given as text."""
        rows = [
            text_row(self.backbone.codec, prompt, text) for prompt, text in zip(prompts, texts, strict=True)
        ]
        return self.score_all(Sequences(self.backbone, rows, max_tokens=max_tokens, max_bytes=0)).tolist()


def text_row(codec: ChatCodec, prompt: Prompt, text: str) -> list[int]:
    """Token ids of a prompt and a finished completion. Raises DataError when the context is too short."""
    completion = codec.completion_ids(text)
    return [*codec.checked_prompt_ids(prompt, len(completion)), *completion]
