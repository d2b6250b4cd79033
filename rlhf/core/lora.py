"""The forward and backward of a LoRA linear layer, in fewer passes than peft's and keeping less.

peft computes `base(x) + B(A(x)) * scaling` as five operations and autograd keeps what each of them needs. Here
it is one operation that keeps only its input (shared by q, k and v, by gate and up):

    fp32   y = x (W + s B A)^T. The sum is formed anew when A or B has changed, that is once per optimizer step,
           and the sampler decodes with the same numbers.
    else   y = x W^T + s (x A^T) B^T: in bf16 the sum would round small updates away. So too in fp32 where the
           sums of a role would take more than MAX_MERGED_BYTES. A and B are brought to x's dtype once a step.

Gradients go to x, A and B only: the base is frozen. Layers that are not plain (dropout at work, a quantised or
transposed base, several adapters) keep peft's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlhf.core import onednn
from rlhf.core.onednn import linear

# The sums of one role: 256 MiB are 67 million adapted weights.
MAX_MERGED_BYTES = 256 << 20
T = TypeVar("T")
# merged weight, bias, A, B, scaling
Merged = tuple[Tensor, Tensor | None, Tensor, Tensor, float]


class _MergedLinear(torch.autograd.Function):
    """x [.., I], merged [O, I], a [R, I], b [O, R]: x merged^T + bias, where merged = weight + scaling b a."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, merged: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, merged, a, b)
        ctx.scaling = scaling
        return linear(x, merged, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, merged, a, b = ctx.saved_tensors
        dx = linear(grad, merged.T) if ctx.needs_input_grad[0] else None
        return dx, None, None, *adapter_gradients(grad, x, a, b, ctx.scaling), None


class _AddedLinear(torch.autograd.Function):
    """The same with the base's weight [O, I] in place of the sum: two paths that are added."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, lowered: Lowered
    ) -> Tensor:
        y, low_NR = added(x, weight, bias, lowered)
        ctx.save_for_backward(x, weight, low_NR)
        ctx.lowered, ctx.dtype = lowered, a.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, low_NR = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        dx, da, db = added_gradients(grad, x, weight, low_NR, ctx.lowered, ctx.dtype, with_input=wanted)
        return dx, None, None, da, db, None


@dataclass(frozen=True)
class Lowered:
    """An adapter in the numbers of its base, each matrix [R, I] and [O, R] as it is and scaled: what a product is to be
    multiplied by is in one of its factors."""

    a: Tensor
    b: Tensor
    scaled_a: Tensor
    scaled_b: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor, scaling: float, dtype: torch.dtype) -> Lowered:
        return cls(a.to(dtype), b.to(dtype), (a * scaling).to(dtype), (b * scaling).to(dtype))


# the base's weight, bias, A, B, and the two as they are multiplied by
Added = tuple[Tensor, Tensor | None, Tensor, Tensor, Lowered]


def added(x: Tensor, weight: Tensor, bias: Tensor | None, lowered: Lowered) -> tuple[Tensor, Tensor]:
    """(x weight^T + bias + scaling (x a^T) b^T, and scaling x a^T [N, R] for its gradients). No gradient passes."""
    y = nn.functional.linear(x, weight, bias)
    low_NR = x.flatten(0, -2) @ lowered.scaled_a.T
    y.view(-1, y.shape[-1]).addmm_(low_NR, lowered.b.T)
    return y, low_NR


def added_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    low_NR: Tensor,
    lowered: Lowered,
    dtype: torch.dtype,
    *,
    with_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of `added` for x (None unless with_input), and for a and b in the dtype in which they are trained."""
    grad_NO, x_NI = grad.flatten(0, -2), x.flatten(0, -2)
    back_NR = grad_NO @ lowered.scaled_b
    dx = None
    if with_input:
        dx = grad @ weight
        dx.view(-1, dx.shape[-1]).addmm_(back_NR, lowered.a)
    return dx, _product(back_NR.T, x_NI, dtype), _product(low_NR.T, grad_NO, dtype).T


def _product(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """x y in another dtype than theirs: on a GPU the sums are never rounded to theirs."""
    if x.dtype == dtype:
        return x @ y
    return torch.mm(x, y, out_dtype=dtype) if x.is_cuda else (x @ y).to(dtype)


def adapter_gradients(grad: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Gradients [R, I] and [O, R] of the two matrices, in their own dtype."""
    grad_NO, x_NI = grad.flatten(0, -2), x.flatten(0, -2)
    da_RI = (grad_NO @ b.to(grad.dtype)).T @ x_NI
    # [R, N] @ [N, O] and a transpose: twice as fast on a CPU as [O, N] @ [N, R]
    db_RO = (x_NI @ a.to(x.dtype).T).T @ grad_NO
    return da_RI.to(a.dtype) * scaling, db_RO.T.to(b.dtype) * scaling


def project_together(layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
    """The outputs of several linear layers that read the same x [.., I]: queries, keys and values, gate and up.

    For plain LoRA layers one operation, whose backward passes over x once: the gradient of x grows in place, and what
    a product with a matrix of rank R would leave idle of the processor, one with all their ranks uses.
    """
    if torch.is_grad_enabled():
        merged = [plain_lora(layer, x) for layer in layers]
        if all(found is not None for found in merged):
            weights, biases, a, b, scalings = zip(*merged, strict=True)
            return _MergedTogether.apply(x, scalings, *weights, *biases, *a, *b)
        apart = [added_lora(layer, x) for layer in layers]
        if all(found is not None for found in apart):
            weights, biases, a, b, lowered = zip(*apart, strict=True)
            return _AddedTogether.apply(x, lowered, *weights, *biases, *a, *b)
    return [layer(x) for layer in layers]


class _MergedTogether(torch.autograd.Function):
    """`_MergedLinear` of several layers: x, then all their weights, biases, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: Sequence[float], *flat: Any) -> tuple[Tensor, ...]:
        weights, biases, a, b = _fourths(flat)
        ctx.save_for_backward(x, *weights, *a, *b)
        ctx.scalings = scalings
        return tuple(linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        count = len(grads)
        weights, a, b = saved[:count], saved[count : 2 * count], saved[2 * count :]
        grads_NO = [grad.flatten(0, -2) for grad in grads]
        dx = _input_gradient(grads_NO, weights, x.shape) if ctx.needs_input_grad[0] else None
        ranks, x_NI = [len(one) for one in a], x.flatten(0, -2)
        low_NR = x_NI @ torch.cat(list(a)).T
        back_NR = torch.cat([grad_NO @ one for grad_NO, one in zip(grads_NO, b, strict=True)], dim=1)
        da = [
            part * scaling
            for part, scaling in zip((back_NR.T @ x_NI).split(ranks), ctx.scalings, strict=True)
        ]
        db = [
            (low.T @ grad_NO).T * scaling
            for low, grad_NO, scaling in zip(low_NR.split(ranks, dim=1), grads_NO, ctx.scalings, strict=True)
        ]
        return dx, None, *[None] * (2 * count), *da, *db


class _AddedTogether(torch.autograd.Function):
    """`_AddedLinear` of several layers: x, then all their weights, biases, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lowered: Sequence[Lowered], *flat: Any) -> tuple[Tensor, ...]:
        weights, biases, a, _ = _fourths(flat)
        low_NR = x.flatten(0, -2) @ torch.cat([one.scaled_a for one in lowered]).T
        ctx.save_for_backward(x, low_NR, *weights)
        ctx.lowered, ctx.dtype = lowered, a[0].dtype
        outputs = tuple(
            nn.functional.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        for y, low, one in zip(outputs, low_NR.split(_ranks(lowered), dim=1), lowered, strict=True):
            y.view(-1, y.shape[-1]).addmm_(low, one.b.T)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, low_NR, *weights = ctx.saved_tensors
        lowered, ranks = ctx.lowered, _ranks(ctx.lowered)
        grads_NO = [grad.flatten(0, -2) for grad in grads]
        back_NR = torch.cat(
            [grad_NO @ one.scaled_b for grad_NO, one in zip(grads_NO, lowered, strict=True)], dim=1
        )
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _input_gradient(grads_NO, weights, x.shape)
            dx.view(-1, dx.shape[-1]).addmm_(back_NR, torch.cat([one.a for one in lowered]))
        da = _product(back_NR.T, x.flatten(0, -2), ctx.dtype).split(ranks)
        db = [
            _product(low.T, grad_NO, ctx.dtype).T
            for low, grad_NO in zip(low_NR.split(ranks, dim=1), grads_NO, strict=True)
        ]
        return dx, None, *[None] * (2 * len(grads)), *da, *db


def _fourths(flat: Sequence[Any]) -> list[Sequence[Any]]:
    count = len(flat) // 4
    return [flat[i * count : (i + 1) * count] for i in range(4)]


def _ranks(lowered: Sequence[Lowered]) -> list[int]:
    return [len(one.a) for one in lowered]


def _input_gradient(grads_NO: Sequence[Tensor], weights: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """The sum of grad weight over the layers, in x's shape: the first product makes what the others add to."""
    dx_NI = linear(grads_NO[0], weights[0].T)
    for grad_NO, weight_OI in zip(grads_NO[1:], weights[1:], strict=True):
        if onednn.preferred(len(grad_NO), weight_OI):
            dx_NI += linear(grad_NO, weight_OI.T)
        else:
            dx_NI.addmm_(grad_NO, weight_OI)
    return dx_NI.view(shape)


class _Kept(Generic[T]):
    """Something formed from a layer's weights, as of the weights that it was formed from."""

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = ()
        self._tensors: tuple[Tensor, ...] = ()
        self._value: T | None = None

    @torch.no_grad()
    def of(self, tensors: tuple[Tensor, ...], form: Callable[[], T], *numbers: Any) -> T:
        """`form()`, which needs these tensors and numbers, called only when one of them has changed."""
        # Every change in place raises a tensor's version, the optimizer's and a checkpoint's alike; only what is
        # written through `.data` is not seen.
        of = (*(number for t in tensors for number in (id(t), t._version)), *numbers)
        if self._value is None or of != self._of:
            self._value, self._of = form(), of
            self._tensors = tensors  # held, so that no other tensor can come by their ids
        return self._value

    def forget(self) -> None:
        self._value, self._of, self._tensors = None, (), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept[T]:
        return _Kept()


def _raise_versions(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """torch's fused optimizers, which the trainers of transformers use by default, raise no versions."""
    for group in optimizer.param_groups:
        increment_version(group["params"])


register_optimizer_step_post_hook(_raise_versions)


def _forward(module: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of one LoRA layer; peft's own wherever the layer is not a plain one at this moment."""
    name = _only_adapter(module, x)
    if name is None or args or kwargs:
        return type(module).forward(module, x, *args, **kwargs)
    plain = _merged_arguments(module, name, x)
    if plain is None:
        return _AddedLinear.apply(x, *_added_arguments(module, name, x.dtype))
    if not torch.is_grad_enabled():
        return linear(x, plain[0], plain[1])
    return _MergedLinear.apply(x, *plain)


def plain_lora(module: Any, x: Tensor) -> Merged | None:
    """The arguments of a layer that would compute with its merged weight, else None."""
    name = _only_adapter(module, x) if hasattr(module, "merged_weight") else None
    return _merged_arguments(module, name, x) if name is not None else None


def added_lora(module: Any, x: Tensor) -> Added | None:
    """The arguments of a layer that would add its two paths, else None."""
    name = _only_adapter(module, x) if hasattr(module, "merged_weight") else None
    if name is None or _merged_arguments(module, name, x) is not None:
        return None
    return _added_arguments(module, name, x.dtype)


def _added_arguments(module: Any, name: str, dtype: torch.dtype) -> Added:
    base, a, b = module.base_layer, module.lora_A[name].weight, module.lora_B[name].weight
    scaling = module.scaling[name]
    lowered = module.lowered.of((a, b), lambda: Lowered.of(a, b, scaling, dtype), scaling, dtype)
    return base.weight, base.bias, a, b, lowered


def forget_merged(module: Any) -> None:
    """Free the merged weight of a layer; the next pass forms it again, to the same bits."""
    module.merged_weight.forget()


def _merged_arguments(module: Any, name: str, x: Tensor) -> Merged | None:
    """What a layer computes with when it holds its merged weight, else None."""
    if module.merged_weight is None or x.dtype != torch.float32:
        return None
    base, a, b = module.base_layer, module.lora_A[name].weight, module.lora_B[name].weight
    scaling = module.scaling[name]
    merged = module.merged_weight.of(
        (base.weight, a, b), lambda: torch.addmm(base.weight, b, a, alpha=scaling), scaling
    )
    return merged, base.bias, a, b, scaling


def _only_adapter(module: Any, x: Tensor) -> str | None:
    """The name of the one adapter at work, None where peft has more to do than base(x) + B(A(x)) * scaling."""
    names = module.active_adapters
    name = names[0] if len(names) == 1 else None
    plain = (
        name in module.lora_A
        and not (module.disable_adapters or module.merged)
        and not (module.training and getattr(module.lora_dropout[name], "p", 0.0) > 0)
        and module.lora_B[name].bias is None
        and x.dtype == module.base_layer.weight.dtype
    )
    return name if plain else None


def speed_up(model: nn.Module) -> bool:
    """Give every plain LoRA layer of a peft model the forward of this module.

    True when all of them hold their merged weight, so that the model can decode as fast as a merged copy.
    """
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    # A subclass (quantised weights) or a variant (DoRA) has a forward of its own for a reason.
    plain = [
        m for m in layers if type(m) is LoraLinear and type(m.base_layer) is nn.Linear and not m.lora_variant
    ]
    size = sum(m.base_layer.weight.numel() * m.base_layer.weight.element_size() for m in plain)
    keep = size <= MAX_MERGED_BYTES
    for module in plain:
        module.merged_weight = _Kept() if keep else None
        module.lowered = _Kept()
        module.forward = partial(_forward, module)
    fp32 = all(m.base_layer.weight.dtype == torch.float32 for m in plain)
    return keep and fp32 and len(plain) == len(layers)
