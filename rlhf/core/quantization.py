"""A frozen base in 4 bits: NF4 with doubly quantised scales (Dettmers et al., arXiv:2305.14314), by bitsandbytes.

The linear layers of the decoder take 0.52 bytes a weight; embeddings, output matrix and norms stay as they are.
Adapters and heads are trained beside it in full precision. A quantised base is never merged: folding an adapter
in would round it to 4 bits. Sampling therefore runs on the adapter model itself.

bitsandbytes is the extra `qlora`. transformers loads it, and only when this is chosen.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from rlhf.core.errors import ConfigError
from rlhf.core.settings import ModelSettings


def loading_options(settings: ModelSettings, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs beside the usual; empty without quantisation. Raises ConfigError where the
    extra is not installed."""
    if settings.quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization is {settings.quantization}, which needs bitsandbytes: pip install rlhf-loop[qlora]"
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
    )
    # Weights are quantised on the way to their device, so it is named here and not by a later `.to`.
    return {"quantization_config": config, "device_map": {"": device}}


def is_quantized(model: nn.Module) -> bool:
    return any(hasattr(module, "quant_state") for module in model.modules())


def keep_bytes(model: nn.Module) -> None:
    """On some CPUs bitsandbytes repacks weights in place in the first pass without gradients; not here."""
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def quantization_states(model: nn.Module) -> list[Any]:
    """The scales of the quantised layers: tensors that are neither parameters nor buffers."""
    return [
        module.quant_state for module in model.modules() if getattr(module, "quant_state", None) is not None
    ]
