"""Attention over whole sequences with rotary positions in fewer passes over memory.

transformers turns queries and keys by five operations each, of which autograd keeps and replays every one: a
twentieth of a PPO update on a CPU. Here it is one operation of three passes that keeps nothing of its input's size.
For modules of Llama's kind, recognised by their parts and trusted only after a probe agreed; with a mask, a cache or
dropout, and everywhere else, a module keeps its own forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.core.fused import TOLERANCES, is_rms_norm
from rlhf.core.lora import project_together

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}  # Qwen3 has them


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [.., D] turned: pairs (d, d + D/2) by the angles of cos and sin [.., D] (Su et al., arXiv:2104.09864)."""
    half = x.shape[-1] // 2
    y = x * cos
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        half = sin.shape[-1] // 2
        # The transpose of a rotation turns back; each half meets the sine of the other one.
        return turn(grad, cos, -torch.cat([sin[..., half:], sin[..., :half]], dim=-1)), None, None


def _forward(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    dropping = module.training and getattr(module, "attention_dropout", 0.0) > 0
    if dropping or position_embeddings is None or attention_mask is not None or past_key_values is not None:
        return type(module).forward(
            module, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
        )
    cos, sin = (angles_BSD[:, :, None] for angles_BSD in position_embeddings)
    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    projected = project_together((module.q_proj, module.k_proj, module.v_proj), hidden_states)
    queries, keys, values = (states.view(shape) for states in projected)
    if hasattr(module, "q_norm"):
        queries, keys = module.q_norm(queries), module.k_norm(keys)
    mixed = nn.functional.scaled_dot_product_attention(
        _Turned.apply(queries, cos, sin).transpose(1, 2),
        _Turned.apply(keys, cos, sin).transpose(1, 2),
        values.transpose(1, 2),
        is_causal=True,
        scale=module.scaling,
        enable_gqa=queries.shape[2] != keys.shape[2],
    )
    return module.o_proj(mixed.transpose(1, 2).flatten(2)), None


def is_rotary_attention(module: Any) -> bool:
    """By its parts, without a soft cap; queries and keys may be normed head by head."""
    parts = dict(module.named_children())
    return (
        parts.keys() - HEAD_NORMS == ATTENTION
        and all(is_head_norm(parts[name], module) for name in parts.keys() & HEAD_NORMS)
        and len(parts.keys() & HEAD_NORMS) in (0, 2)
        and hasattr(module, "head_dim")
        and hasattr(module, "scaling")
        and getattr(module, "attn_logit_softcapping", None) is None
        and getattr(getattr(module, "config", None), "_attn_implementation", None) == "sdpa"
        and all(parameter.dtype in TOLERANCES for parameter in module.parameters())
    )


def is_head_norm(norm: Any, attention: Any) -> bool:
    """Of one head, not of all that a projection gives (OLMo 2)."""
    return is_rms_norm(norm) and norm.weight.shape[-1] == getattr(attention, "head_dim", None)


@torch.no_grad()
def fuse_attention(model: nn.Module) -> int:
    """Give the attention modules of a model this forward where that changes nothing. Returns how many it changed."""
    count = 0
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if "forward" in module.__dict__ or not is_rotary_attention(module):
            continue
        weight = module.o_proj.weight
        device, dtype, width = weight.device, weight.dtype, weight.shape[0]
        if device.type == "meta":  # no numbers to compare: `rlhf plan` counts what would be kept
            module.forward = partial(_forward, module)
            count += 1
            continue
        generator = torch.Generator().manual_seed(0)
        x_BSH = torch.randn(2, 5, width, generator=generator).to(device, dtype)
        angles_BSD = torch.rand(1, 5, module.head_dim // 2, generator=generator).repeat(1, 1, 2).to(device)
        positions = angles_BSD.cos().to(dtype), angles_BSD.sin().to(dtype)
        expected = type(module).forward(module, x_BSH, positions, None)[0]
        found = _forward(module, x_BSH, positions)[0]
        tolerance = TOLERANCES[dtype]
        if torch.allclose(found, expected, atol=tolerance * expected.abs().max().item(), rtol=tolerance):
            module.forward = partial(_forward, module)
            count += 1
    return count
