"""Linear layers with their weights arranged for few rows, for as long as a model decodes.

A decoding step multiplies a few rows by every weight of the model, and each product would arrange its weight
anew, which for so few rows costs more than multiplying. The arranged copies live within `packed` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rlhf.core import onednn
from rlhf.core.few_rows import FewRows
from rlhf.core.lora import forget_merged, plain_lora


@contextmanager
def packed(model: nn.Module) -> Iterator[int]:
    """Within this, the fp32 linear layers of a model on a CPU multiply by arranged copies of their weights.

    Gives their number. The copies are of the weights as they are now, so nothing may be trained meanwhile;
    gradients do not pass. Layers of other kinds, dtypes and devices stay as they are.
    """
    changed: list[tuple[Any, Any]] = []
    try:
        for layer, weight, bias in _layers(model):
            changed.append((layer, layer.__dict__.get("forward")))
            layer.forward = FewRows([weight], [bias])
            if isinstance(layer, LoraLayer):
                forget_merged(layer)  # the arranged copy of it is enough meanwhile
        yield len(changed)
    finally:
        for layer, before in changed:
            if before is None:
                del layer.forward
            else:
                layer.forward = before


@torch.no_grad()
def _layers(model: nn.Module) -> Iterator[tuple[Any, Tensor, Tensor | None]]:
    """(layer, the weight [O, I] that it multiplies by, bias) of the layers that can be packed."""
    parts: set[int] = set()
    for layer in model.modules():
        if id(layer) in parts:
            continue
        if isinstance(layer, LoraLayer):
            parts.update(id(part) for part in layer.modules())  # they are multiplied by through the layer
        plain = plain_weight(layer)
        if plain is not None:
            yield layer, *plain


def plain_weight(layer: Any) -> tuple[Tensor, Tensor | None] | None:
    """`weight_of` where `FewRows` can stand for the layer, else None."""
    plain = weight_of(layer)
    return plain if plain is not None and onednn.suits(plain[0]) else None


def weight_of(layer: Any) -> tuple[Tensor, Tensor | None] | None:
    """(the weight [O, I] that a linear layer multiplies by, its bias), None where it does more, or by other numbers."""
    if isinstance(layer, LoraLayer):
        merged = plain_lora(layer, layer.get_base_layer().weight)
        return merged[:2] if merged is not None else None
    if onednn.is_plain_linear(layer) and type(layer.weight) in (Tensor, nn.Parameter):
        return layer.weight, layer.bias
    return None
