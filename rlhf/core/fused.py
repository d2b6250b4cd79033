"""Parts of a decoder layer in fewer passes over memory: the root-mean-square norm, the gated MLP, plain products.

On a CPU the time of a small model goes into such passes, on a GPU into launching them, and each keeps a tensor for
the backward pass: in bf16 three quarters of a layer's activations. The modules are recognised by what they hold and
trusted only after they give what the original gives on random input, but for rounding; every other module keeps its
own forward. Their weights are frozen, so only the input gets a gradient.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.core.lora import (
    Lowered,
    adapter_gradients,
    added,
    added_gradients,
    added_lora,
    plain_lora,
    project_together,
)
from rlhf.core.onednn import linear, module_forward, suits

# Numbers these forwards compute with, and by how much of the largest they may differ from the original's.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(the normed x, 1 / root mean square of each row)."""
    scale = (torch.linalg.vecdot(x, x) / x.shape[-1] + eps).rsqrt_()[..., None]
    return (x * scale).mul_(weight), scale


class _RMSNorm(torch.autograd.Function):
    """x [.., H] -> x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich, arXiv:1910.07467).

    Keeps x and one number a row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, scale = ctx.saved_tensors
        dx = grad * weight
        along = torch.linalg.vecdot(dx, x)[..., None] * scale.pow(3) / x.shape[-1]
        return dx.mul_(scale).addcmul_(x, along, value=-1), None, None


class _GatedSiLU(torch.autograd.Function):
    """silu(gate) * up; keeps the two inputs and computes silu(gate) again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gate, up = ctx.saved_tensors
        dup = nn.functional.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), dup


class _GatedDown(torch.autograd.Function):
    """The same with the down projection, a LoRA layer that holds its merged weight: keeps gate and up only."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        merged: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        ctx.save_for_backward(gate, up, merged, a, b)
        ctx.scaling = scaling
        return linear(nn.functional.silu(gate).mul_(up), merged, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gate, up, merged, a, b = ctx.saved_tensors
        activated = nn.functional.silu(gate)
        adapter = adapter_gradients(grad, activated * up, a, b, ctx.scaling)
        inner = linear(grad, merged.T)
        dup = activated.mul_(inner)
        return torch.ops.aten.silu_backward(inner.mul_(up), gate), dup, None, None, *adapter, None


class _GatedDownAdded(torch.autograd.Function):
    """The same where the down projection adds its two paths."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        lowered: Lowered,
    ) -> Tensor:
        y, low_NR = added(nn.functional.silu(gate).mul_(up), weight, bias, lowered)
        ctx.save_for_backward(gate, up, weight, low_NR)
        ctx.lowered, ctx.dtype = lowered, a.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gate, up, weight, low_NR = ctx.saved_tensors
        activated = nn.functional.silu(gate)
        inner, *adapter = added_gradients(
            grad, activated * up, weight, low_NR, ctx.lowered, ctx.dtype, with_input=True
        )
        assert inner is not None
        dup = activated.mul_(inner)
        return torch.ops.aten.silu_backward(inner.mul_(up), gate), dup, None, None, *adapter, None


def _norm_forward(module: Any, x: Tensor) -> Tensor:
    if x.dtype != module.weight.dtype:
        return type(module).forward(module, x)
    if x.dtype != torch.float32 or x.is_cuda:  # torch has it as one launch there
        return nn.functional.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)
    if not torch.is_grad_enabled():
        return _normed(x, module.weight, module.variance_epsilon)[0]
    return _RMSNorm.apply(x, module.weight, module.variance_epsilon)


def _mlp_forward(module: Any, x: Tensor) -> Tensor:
    gate, up = project_together((module.gate_proj, module.up_proj), x)
    down = module.down_proj
    if not torch.is_grad_enabled():
        return down(nn.functional.silu(gate).mul_(up))
    if (merged := plain_lora(down, gate)) is not None:
        return _GatedDown.apply(gate, up, *merged)
    if (apart := added_lora(down, gate)) is not None:
        return _GatedDownAdded.apply(gate, up, *apart)
    return down(_GatedSiLU.apply(gate, up))


@torch.no_grad()
def fuse(model: nn.Module) -> int:
    """Give the norms and MLPs of a model these forwards where that changes nothing. Returns how many it changed."""
    count = 0
    for module in model.modules():
        forward = _candidate(module)
        if forward is None:
            continue
        weight = next(module.parameters())
        if weight.is_meta:  # no numbers to compare: `rlhf plan` counts what would be kept
            module.forward = partial(forward, module)
            count += 1
            continue
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(3, weight.shape[-1], generator=generator).to(weight.device, weight.dtype)
        expected = type(module).forward(module, x)
        module.forward = partial(forward, module)
        tolerance = TOLERANCES[weight.dtype]
        atol = tolerance * expected.abs().max().item()
        if torch.allclose(module.forward(x), expected, atol=atol, rtol=tolerance):
            count += 1
        else:
            del module.forward
    return count


def _candidate(module: Any) -> Any:
    """The forward that may stand for a module's own, by what the module holds."""
    if "forward" in module.__dict__:
        return None
    if is_rms_norm(module):
        return _norm_forward if not any(p.requires_grad for p in module.parameters()) else None
    if type(module) is nn.Linear:
        return module_forward if suits(module.weight) and not module.weight.requires_grad else None
    return _mlp_forward if is_gated_silu(module) else None


def is_rms_norm(module: Any) -> bool:
    """By its name and parts; the weight may still be used in another way (Gemma adds 1)."""
    named = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    return named and module.weight.dtype in TOLERANCES


def is_gated_silu(module: Any) -> bool:
    """A gated MLP with SiLU, by its parts."""
    parts = dict(module.named_children())
    if parts.keys() != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return False
    silu = type(parts["act_fn"]).__name__ in ("SiLU", "SiLUActivation")
    return silu and module.gate_proj.weight.dtype in TOLERANCES
