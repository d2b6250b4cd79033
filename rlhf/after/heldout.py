"""Loss of models on the same held-out demonstrations, row by row, so that differences have intervals of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rlhf.core.backbone import Backbone, right_padded
from rlhf.core.batching import token_budget_batches
from rlhf.core.logprobs import token_logprobs
from rlhf.core.stats import Interval, bootstrap_sums
from sft.data import Example, load_examples

MAX_PASS_TOKENS = 8192


@dataclass(frozen=True)
class HeldOut:
    """Demonstrations that no model compared was trained on, as far as the caller knows."""

    examples: Sequence[Example]
    num_too_long: int

    @classmethod
    def read(cls, path: Path, backbone: Backbone) -> HeldOut:
        """A file of demonstrations; those longer than the model's context are left out and counted."""
        most = backbone.codec.max_tokens
        return cls(*load_examples(path, backbone.codec, max_tokens=most, drop_too_long=True))

    @property
    def counts(self) -> np.ndarray:
        """[N] target tokens of each row."""
        return np.array([example.num_targets for example in self.examples], dtype=np.float64)

    @torch.no_grad()
    def nats(self, backbone: Backbone, role: str) -> np.ndarray:
        """[N] summed negative log-likelihood of each row's targets under a role, in nats."""
        totals = np.zeros(len(self.examples))
        for places in token_budget_batches([len(e.input_ids) for e in self.examples], MAX_PASS_TOKENS):
            rows = [self.examples[place] for place in places]
            tokens_BS = right_padded(
                [e.input_ids for e in rows], backbone.codec.pad_token_id, backbone.device
            )
            mask_BS = right_padded([e.completion_mask for e in rows], 0, backbone.device).bool()[:, 1:]
            hidden_BSH = backbone.hidden(role, tokens_BS)
            logprobs_N, _ = token_logprobs(
                backbone.head, hidden_BSH[:, :-1][mask_BS], tokens_BS[:, 1:][mask_BS]
            )
            row_N = mask_BS.nonzero()[:, 0]
            sums_B = torch.zeros(len(rows), dtype=torch.float64, device=backbone.device)
            sums_B.index_add_(0, row_N, logprobs_N.double())
            totals[places] = -sums_B.cpu().numpy()
        return totals

    def loss(self, nats_N: np.ndarray) -> Interval:
        """Nats per target token, with a 95 % interval over prompts."""
        columns = np.stack([nats_N, self.counts], axis=1)
        return bootstrap_sums(columns, lambda sums: sums[:, 0] / sums[:, 1], groups=self._groups)

    def difference(self, first_N: np.ndarray, second_N: np.ndarray) -> Interval:
        """How much larger the first loss is than the second on the same rows, in nats per target token."""
        columns = np.stack([first_N - second_N, self.counts], axis=1)
        return bootstrap_sums(columns, lambda sums: sums[:, 0] / sums[:, 1], groups=self._groups)

    @property
    def _groups(self) -> list[str]:
        return [example.group_id for example in self.examples]
