"""One adapted layer as an ordinary one: new tensors, the base's stay as they are."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from rlhf.core.decoder import share_clone


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
