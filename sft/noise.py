"""NEFTune (Jain et al., arXiv:2310.05914): uniform noise on the embeddings while training.

Each number of a row of L tokens of width d gets noise from [-a, a] with a = alpha / sqrt(L d), so that the noise of the
whole row has the expected length alpha / sqrt(3), however long it is. transformers' own takes the padded length of the
batch (and would take that of a packed block) for L, which gives short rows less noise than the paper; here L is the
row's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def row_lengths(inputs: dict[str, Any]) -> Tensor:
    """[B, S] how many tokens the row of each token has; 0 for padding behind an attention mask.

    inputs: those of a batch, with `attention_mask`, or with `position_ids` that begin at 0 for each row of a block.
    """
    mask_BS = inputs.get("attention_mask")
    if mask_BS is not None:
        return mask_BS.sum(1, keepdim=True) * mask_BS
    starts_BS = inputs["position_ids"] == 0
    number_BS = starts_BS.cumsum(1) - 1
    counts_BS = torch.zeros_like(number_BS).scatter_add_(1, number_BS, torch.ones_like(number_BS))
    return counts_BS.gather(1, number_BS)


class EmbeddingNoise:
    """A hook on the embeddings of a model; it acts in training mode, after `prepare` has seen the batch."""

    def __init__(self, embeddings: nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self._lengths_BS: Tensor | None = None
        embeddings.register_forward_hook(self._add)

    def prepare(self, inputs: dict[str, Any]) -> None:
        self._lengths_BS = row_lengths(inputs)

    def _add(self, module: nn.Module, inputs: Any, embedded_BSH: Tensor) -> Tensor:
        if not module.training or self._lengths_BS is None:
            return embedded_BSH
        size_BS = self._lengths_BS * embedded_BSH.shape[-1]
        bound_BS1 = torch.where(size_BS > 0, self.alpha * size_BS.clamp(min=1).rsqrt(), 0.0)[..., None]
        noise_BSH = torch.empty_like(embedded_BSH).uniform_(-1, 1)
        return embedded_BSH + (noise_BSH * bound_BS1).to(embedded_BSH.dtype)
