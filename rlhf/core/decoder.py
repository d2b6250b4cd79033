"""Taking a transformers decoder apart: its layers, its linear modules, clones that share weights, trunk and top.

The trunk is the decoder with only its lower layers and no final norm; the top is the decoder run on
`inputs_embeds` with only the upper layers. Both are shallow copies: they hold the same layer objects and
cost no weights. It is exact for rotary models; models that add learned positions to `inputs_embeds`
(GPT-2) add them twice, which `Backbone` finds out by a probe before it trusts a split.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf.core.errors import ModelError
from rlhf.core.quantization import quantization_states
from rlhf.core.sharding import shared_modules

_LAYER_LISTS = ("layers", "h", "blocks")
_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")


def layer_list_name(decoder: nn.Module) -> str:
    """The attribute that holds the decoder's layers. Raises ModelError for an architecture we cannot read."""
    for name in _LAYER_LISTS:
        if isinstance(getattr(decoder, name, None), nn.ModuleList):
            return name
    raise ModelError(
        f"{type(decoder).__name__}: found none of {', '.join(_LAYER_LISTS)}; expected a decoder-only model"
    )


def decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    return getattr(decoder, layer_list_name(decoder))


def linear_names(model: nn.Module, decoder: nn.Module, first_layer: int) -> list[str]:
    """Full names, within `model`, of the linear modules in the decoder's layers from `first_layer` up."""
    wanted = {id(m) for layer in decoder_layers(decoder)[first_layer:] for m in layer.modules()}
    return [
        name for name, m in model.named_modules() if id(m) in wanted and isinstance(m, nn.Linear | Conv1D)
    ]


def share_clone(model: nn.Module) -> Any:
    """A structural copy: new module objects around the very same parameters and buffers.

    Adapters injected into the clone leave `model` untouched, and the weights exist once.
    """
    shared = itertools.chain(model.parameters(), model.buffers(), quantization_states(model))
    memo: dict[int, Any] = {id(t): t for t in shared}
    memo |= {id(module): module for module in shared_modules(model)}
    return copy.deepcopy(model, memo)


def _shallow(decoder: Any, first: int, last: int) -> Any:
    """The decoder with the layers first..last-1 only, and a config that says so."""
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    name = layer_list_name(decoder)
    part._modules[name] = nn.ModuleList(list(decoder_layers(decoder))[first:last])
    part.config = copy.deepcopy(decoder.config)
    part.config.num_hidden_layers = last - first
    # Gemma 2 and 3 choose each layer's mask by its position in this list.
    if getattr(part.config, "layer_types", None):
        part.config.layer_types = list(decoder.config.layer_types)[first:last]
    return part


def split_decoder(decoder: nn.Module, first_top_layer: int) -> tuple[Any, Any]:
    """(trunk, top): the layers below `first_top_layer` without the final norm, and the rest with it."""
    count = len(decoder_layers(decoder))
    if not 0 < first_top_layer < count:
        raise ValueError(f"first_top_layer is {first_top_layer}; expected 1..{count - 1}")
    trunk = _shallow(decoder, 0, first_top_layer)
    norm = next((name for name in _FINAL_NORMS if name in trunk._modules), None)
    if norm is None:
        raise ModelError(f"{type(decoder).__name__}: found no final norm named {', '.join(_FINAL_NORMS)}")
    trunk._modules[norm] = nn.Identity()
    return trunk, _shallow(decoder, first_top_layer, count)
