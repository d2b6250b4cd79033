"""The output matrix of a language model: hidden states to logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.core.onednn import is_plain_linear, module_forward


@dataclass(frozen=True)
class OutputHead:
    """linear: the output matrix as a module; softcap: logits are squashed to +- this (Gemma 2), None for most.

    weight_VH and bias_V are the matrix itself, so that a gradient can be formed without autograd.
    """

    linear: Any
    softcap: float | None

    @classmethod
    def of(cls, model: Any) -> OutputHead:
        """The head of a causal language model of transformers."""
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return cls(model.get_output_embeddings(), float(softcap) if softcap else None)

    @property
    def plain(self) -> bool:
        """True when the weight can be read as it is: an nn.Linear of ordinary numbers."""
        return type(self.linear) is nn.Linear

    @property
    def weight_VH(self) -> Tensor:
        return self.linear.weight

    @property
    def vocab_size(self) -> int:
        return int(self.linear.weight.shape[0])

    def __call__(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., V]."""
        logits = module_forward(self.linear, hidden) if is_plain_linear(self.linear) else self.linear(hidden)
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits
