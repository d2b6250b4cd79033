"""Sampled completions as tensors: which hidden states predict which completion tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.core.backbone import Backbone
from rlhf.core.sampler import Request, Sampled
from rlhf.core.sequences import SequenceBatch, Sequences

MAX_STATE_BYTES = 8 << 30


@dataclass(frozen=True)
class CompletionBatch:
    """Some rows, ready for a forward pass, with all their completion tokens laid flat.

    rows_N, columns_N: where token n stands in the [B, T] tensors of the whole rollout.
    local_N, positions_N: where the hidden state that predicts it stands in this batch's [b, S].
    """

    sequence: SequenceBatch
    indices: Sequence[int]
    rows_N: Tensor
    columns_N: Tensor
    local_N: Tensor
    positions_N: Tensor

    def of(self, values_BT: Tensor) -> Tensor:
        """The entries [N] of a [B, T] tensor that belong to this batch's tokens."""
        return values_BT[self.rows_N, self.columns_N]


class Completions:
    """B prompts with their completions. tokens_BT and mask_BT hold completion tokens from column 0.

    own: the rows that this process computes with; it knows the tokens of all. states: the trunk states of these
    rows where the sampler captured them.
    """

    def __init__(
        self,
        backbone: Backbone,
        requests: Sequence[Request],
        drawn: Sequence[Sampled],
        *,
        max_tokens: int,
        max_bytes: int = MAX_STATE_BYTES,
        own: range | None = None,
        states: Sequence[Tensor] | None = None,
    ) -> None:
        device = backbone.device
        rows = [
            [*request.prompt_ids, *sampled.tokens] for request, sampled in zip(requests, drawn, strict=True)
        ]
        self.sequences = Sequences(
            backbone, rows, max_tokens=max_tokens, max_bytes=max_bytes, own=own, states=states
        )
        self.prompt_lengths_B = torch.tensor([len(request.prompt_ids) for request in requests], device=device)
        self.lengths_B = torch.tensor([len(sampled.tokens) for sampled in drawn], device=device)
        self.finished_B = torch.tensor([sampled.finished for sampled in drawn], device=device)
        self.mask_BT = torch.arange(int(self.lengths_B.max()), device=device) < self.lengths_B[:, None]
        self.readings_BT = _padded([sampled.readings for sampled in drawn], device)
        self.sampled_logprobs_BT = _padded([sampled.logprobs for sampled in drawn], device)
        self.tokens_BT = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(sampled.tokens) for sampled in drawn], batch_first=True
        ).to(device)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def own(self) -> range:
        return self.sequences.own

    def of_own(self) -> Completions:
        """The rows of this process alone."""
        part, rows = copy.copy(self), slice(self.own.start, self.own.stop)
        part.sequences = self.sequences.of_own()
        part.prompt_lengths_B, part.lengths_B = self.prompt_lengths_B[rows], self.lengths_B[rows]
        part.finished_B, part.mask_BT = self.finished_B[rows], self.mask_BT[rows]
        part.tokens_BT = self.tokens_BT[rows]
        return part

    def batch(self, indices: Sequence[int]) -> CompletionBatch:
        """Rows for one forward pass. Token t of a completion stands at position prompt length + t, and the
        hidden state one position earlier predicts it."""
        device = self.tokens_BT.device
        rows_B = torch.tensor(list(indices), device=device)
        counts_B = self.lengths_B[rows_B]
        local_N = torch.repeat_interleave(torch.arange(len(rows_B), device=device), counts_B)
        starts_B = counts_B.cumsum(0) - counts_B
        columns_N = torch.arange(len(local_N), device=device) - starts_B[local_N]
        positions_N = self.prompt_lengths_B[rows_B][local_N] - 1 + columns_N
        sequence = self.sequences.batch(indices)
        return CompletionBatch(sequence, indices, rows_B[local_N], columns_N, local_N, positions_N)

    def hidden(self, role: str, batch: CompletionBatch) -> Tensor:
        """[N, H] hidden states of a role that predict the batch's completion tokens."""
        return self.sequences.hidden_at(role, batch.sequence, batch.local_N, batch.positions_N)


def _padded(rows: Sequence[Sequence[float]], device: torch.device) -> Tensor:
    """[B, T] fp32, zero after each row's end."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
