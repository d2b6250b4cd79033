"""A fixed set of token rows with their trunk states, computed once and read many times.

Rows are kept ragged (no padding in memory) and padded on the right when a batch is formed. Where the
backbone has no trunk, or the states would not fit the given budget, batches are computed from tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.core.backbone import Backbone, right_padded
from rlhf.core.batching import token_budget_batches


@dataclass(frozen=True)
class SequenceBatch:
    """tokens_BS and, with a trunk, trunk_BSH; lengths_B counts real tokens, which come first in each row."""

    tokens_BS: Tensor
    trunk_BSH: Tensor | None
    lengths_B: Tensor


class Sequences:
    """Token rows bound to a backbone.

    max_tokens: padded tokens per forward pass. max_bytes: budget of the cached trunk states. own: the rows that
    this process works on; the others have no cached states. states: the trunk states [length, H] of these rows
    where they are known already, as the sampler's are.
    """

    def __init__(
        self,
        backbone: Backbone,
        rows: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        max_bytes: int = 8 << 30,
        states: Sequence[Tensor] | None = None,
        on_batch: Callable[[int], None] = lambda n: None,
        own: range | None = None,
    ) -> None:
        self.backbone = backbone
        self.rows = rows
        self.lengths = [len(row) for row in rows]
        self.max_tokens = max_tokens
        self.own = range(len(rows)) if own is None else own
        self._states: dict[int, Tensor] | None = None
        if states is not None:
            self._states = dict(zip(self.own, states, strict=True))
            return
        own_lengths = [self.lengths[i] for i in self.own]
        size = sum(own_lengths) * backbone.hidden_size * backbone.dtype.itemsize
        if backbone.trunk_enabled and size <= max_bytes:
            self._states = {}
            for places in token_budget_batches(own_lengths, max_tokens):
                indices = [self.own[place] for place in places]
                trunk_BSH = backbone.trunk(self._tokens(indices))
                for i, state_SH in zip(indices, trunk_BSH, strict=True):
                    self._states[i] = state_SH[: self.lengths[i]].clone()
                on_batch(len(indices))

    def __len__(self) -> int:
        return len(self.rows)

    def of_own(self) -> Sequences:
        """The rows of this process alone, with their states."""
        part, own = copy.copy(self), self.own
        part.rows, part.lengths = self.rows[own.start : own.stop], self.lengths[own.start : own.stop]
        part._states = None if self._states is None else {i - own.start: self._states[i] for i in own}
        part.own = range(len(own))
        return part

    def _tokens(self, indices: Sequence[int]) -> Tensor:
        pad_id = self.backbone.codec.pad_token_id
        return right_padded([self.rows[i] for i in indices], pad_id, self.backbone.device)

    def batch(self, indices: Sequence[int]) -> SequenceBatch:
        tokens_BS = self._tokens(indices)
        lengths_B = torch.tensor([self.lengths[i] for i in indices], device=tokens_BS.device)
        trunk_BSH = None
        if self._states is not None:
            trunk_BSH = torch.nn.utils.rnn.pad_sequence([self._states[i] for i in indices], batch_first=True)
        elif self.backbone.trunk_enabled:
            trunk_BSH = self.backbone.trunk(tokens_BS)
        return SequenceBatch(tokens_BS, trunk_BSH, lengths_B)

    def hidden_at(self, role: str, batch: SequenceBatch, rows_N: Tensor, columns_N: Tensor) -> Tensor:
        """[N, H] final hidden states of a role at the given places of the batch."""
        return self.backbone.hidden_at(role, batch.tokens_BS, rows_N, columns_N, batch.trunk_BSH)

    def last_hidden(self, role: str, batch: SequenceBatch) -> Tensor:
        """[B, H] hidden state of each row's last real token: where a reward is read."""
        rows_B = torch.arange(len(batch.tokens_BS), device=batch.tokens_BS.device)
        return self.hidden_at(role, batch, rows_B, batch.lengths_B - 1)
