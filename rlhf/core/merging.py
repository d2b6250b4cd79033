"""Adapted layers as ordinary ones: new tensors, the base's stay as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from torch import nn

from rlhf.core.decoder import share_clone


class MergedCopy:
    """A copy of a model whose adapted layers are ordinary ones, with the adapters of the moment in their weights.

    Only the adapted matrices are new tensors, and they are there within `filled` only: copying the modules takes longer
    than forming the weights, so one copy serves for many rollouts.
    """

    def __init__(self, model: nn.Module) -> None:
        # In eval mode throughout: a layer that checkpoints its gradients would drop the key/value cache.
        self.model: Any = share_clone(model).eval()
        sources = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer | IA3Layer)]
        self._sources = sources

    def fill(self) -> Any:
        """The model with the weights as they are now."""
        for name, source in self._sources:
            self.model.set_submodule(name, merged_module(source))
        return self.model

    @contextmanager
    def filled(self) -> Iterator[Any]:
        """`fill`, and afterwards the memory is given back."""
        try:
            yield self.fill()
        finally:
            for name, _ in self._sources:
                self.model.set_submodule(name, nn.Identity())


def merged_module(module: Any) -> nn.Module:
    """The base layer of a LoRA, DoRA or IA3 module, a copy, with the adapter in its weight."""
    return _summed(module) if isinstance(module, LoraLayer) else _scaled(module)


@torch.no_grad()
def _summed(module: Any) -> nn.Module:
    """The base layer of a LoRA module with the update added to a copy of its weight."""
    merged = share_clone(module.get_base_layer())
    weight = merged.weight
    total = weight.float()
    for adapter in module.active_adapters:
        variant = module.lora_variant.get(adapter)
        if variant is not None:  # DoRA: the sum, with its columns brought to their own lengths
            total = variant.merge_safe(module, adapter, weight).float()
        else:
            total = total + module.get_delta_weight(adapter).float()
    merged.weight = nn.Parameter(total.to(weight.dtype), requires_grad=False)
    return merged


@torch.no_grad()
def _scaled(module: Any) -> nn.Module:
    """The base layer of an IA3 module (Liu et al., arXiv:2205.05638) with its inputs or outputs scaled."""
    merged = share_clone(module.get_base_layer())
    scale = math.prod(module.ia3_l[adapter].float() for adapter in module.active_adapters)
    rows = scale.T if module.fan_in_fan_out else scale
    merged.weight = nn.Parameter((merged.weight.float() * rows).to(merged.weight.dtype), requires_grad=False)
    if merged.bias is not None and not module.is_feedforward:
        bias = merged.bias.float() * scale.flatten()
        merged.bias = nn.Parameter(bias.to(merged.bias.dtype), requires_grad=False)
    return merged
