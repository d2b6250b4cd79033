"""The gradient of each demonstration by itself, clipped and summed, for the matrices of LoRA.

DP-SGD needs the gradient of every example before they are added (Abadi et al., arXiv:1607.00133, algorithm 1). Of a
linear layer it is the product of two tensors that the backward pass has at hand, and LoRA's matrices are small, so
that keeping one gradient a demonstration costs B times the adapter and no second pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rlhf.core.errors import ConfigError


class ExampleGradients:
    """Collects [B, *shape] gradients per parameter during one backward pass, then gives their clipped sum."""

    def __init__(self) -> None:
        self._found: dict[int, Tensor] = {}

    def add(self, parameter: Tensor, gradients: Tensor) -> None:
        """gradients [B, *shape of the parameter]; those of several uses of a parameter are added."""
        key = id(parameter)
        gradients = gradients.float()
        self._found[key] = self._found[key] + gradients if key in self._found else gradients

    def forget(self) -> None:
        """Drop what was collected."""
        self._found = {}

    def clipped_sums(
        self, parameters: Sequence[nn.Parameter], max_norm: float
    ) -> tuple[list[Tensor], Tensor]:
        """(for each parameter the sum over examples of min(1, max_norm / norm) x gradient, the norms [B]).

        The norm of an example is over all parameters together. Forgets what was collected.
        """
        found = [self._found[id(parameter)] for parameter in parameters]
        self.forget()
        norms_B = torch.stack([gradients.flatten(1).norm(dim=1) for gradients in found]).norm(dim=0)
        # What is not finite counts as nothing: it must not reach the sum, nor say anything about anybody else.
        factors_B = torch.where(norms_B.isfinite(), (max_norm / norms_B.clamp(min=1e-12)).clamp(max=1.0), 0.0)
        clean = [torch.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0) for gradients in found]
        return [torch.einsum("b,b...->...", factors_B, gradients) for gradients in clean], norms_B


class _Recorded(torch.autograd.Function):
    """x [B, S, I] @ weight [O, I]^T; the backward pass hands each example's gradient of the weight to a collector."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, collector: ExampleGradients) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.collector = collector
        return x @ weight.to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        ctx.collector.add(weight, torch.einsum("bso,bsi->boi", grad, x))
        dx = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None


def _forward(module: Any, collector: ExampleGradients, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = module.active_adapters[0]
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    low = _Recorded.apply(module.lora_dropout[name](x).to(a.dtype), a, collector)
    added = _Recorded.apply(low, b, collector) * module.scaling[name]
    y: Tensor = module.base_layer(x, *args, **kwargs)
    return y + added.to(y.dtype)


@contextmanager
def recorded(model: nn.Module) -> Iterator[ExampleGradients]:
    """While the block runs, LoRA layers tell the collector each example's gradients instead of adding them up.

    Raises ConfigError for layers of which that is not known (DoRA, biases, several adapters, embeddings).
    """
    collector = ExampleGradients()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for module in layers:
        names = module.active_adapters
        plain = len(names) == 1 and names[0] in module.lora_A and module.lora_B[names[0]].bias is None
        if not plain or module.lora_variant:
            raise ConfigError("privacy needs plain LoRA on linear layers; found another kind of adapter")
    # What holds a merged weight is computed past its forward by `rlhf.core.fused`.
    kept = [
        {name: module.__dict__.pop(name) for name in ("forward", "merged_weight") if name in module.__dict__}
        for module in layers
    ]
    for module in layers:
        module.forward = partial(_forward, module, collector)
    try:
        yield collector
    finally:
        for module, own in zip(layers, kept, strict=True):
            del module.forward
            for name, value in own.items():
                setattr(module, name, value)
