"""Two parts of a decoder layer in fewer passes over memory: the root-mean-square norm and the gated MLP.

On a CPU the time of a small model goes into such passes, and each keeps a tensor for the backward pass. The
modules are recognised by what they hold and trusted only after they give what the original gives on random
input; every other module keeps its own forward. Their weights are frozen, so only the input gets a gradient.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class _RMSNorm(torch.autograd.Function):
    """x [.., H] -> x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich, arXiv:1910.07467).

    Keeps x and one number a row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = (torch.linalg.vecdot(x, x) / x.shape[-1] + eps).rsqrt_()[..., None]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

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


def _norm_forward(module: Any, x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        return type(module).forward(module, x)
    return _RMSNorm.apply(x, module.weight, module.variance_epsilon)


def _mlp_forward(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(_GatedSiLU.apply(module.gate_proj(x), module.up_proj(x)))


@torch.no_grad()
def fuse(model: nn.Module) -> int:
    """Give the norms and MLPs of a model these forwards where that changes nothing. Returns how many it changed."""
    count = 0
    for module in model.modules():
        forward = _candidate(module)
        if forward is None:
            continue
        weight = next(module.parameters())
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(3, weight.shape[-1], generator=generator).to(weight.device, weight.dtype)
        expected = type(module).forward(module, x)
        module.forward = partial(forward, module)
        tolerance = 1e-5 * expected.abs().max().item()
        if torch.allclose(module.forward(x), expected, atol=tolerance, rtol=1e-5):
            count += 1
        else:
            del module.forward
    return count


def _candidate(module: Any) -> Any:
    """The forward that may stand for a module's own, by what the module holds."""
    if "forward" in module.__dict__:
        return None
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        frozen = not any(p.requires_grad for p in module.parameters())
        return _norm_forward if frozen and module.weight.dtype == torch.float32 else None
    names = {name for name, _ in module.named_children()}
    if names == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        silu = type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")
        return _mlp_forward if silu and module.gate_proj.weight.dtype == torch.float32 else None
    return None
