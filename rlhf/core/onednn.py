"""fp32 matrix products on a CPU by oneDNN, which torch uses for bf16 only.

torch multiplies fp32 matrices by MKL. Measured on two AVX-512 cores of an AMD EPYC, oneDNN takes 0.83 to 0.95 of MKL's
time for 1 024 rows and, with the weight arranged for its kernels beforehand, a third to a half for 6 to 32 rows. On an
Intel Xeon it takes 1.02 to 1.07 of MKL's time, which is taken there. torch.compile's frozen graphs call the same
operators. Where a build of torch lacks them everything goes to torch's own products.

oneDNN makes a kernel for every number of rows and keeps it (half a millisecond and up to 1 MB for each shape of
weight, a thousand of them), so only numbers of rows that come again go to it (`recurs`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# For how many rows the kernels choose the arrangement; any number may be multiplied.
EXPECTED_ROWS = 32
# Smaller weights are multiplied in less time than the choice of a kernel takes.
MIN_ELEMENTS = 1 << 14

_OPERATORS = torch.ops.mkldnn
AVAILABLE = torch.backends.mkldnn.is_available() and all(
    hasattr(_OPERATORS, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)


def suits(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by this weight here: plain fp32 numbers on a CPU, not very few."""
    return (
        AVAILABLE
        and type(weight) in (Tensor, nn.Parameter)
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= MIN_ELEMENTS
    )


@cache
def is_intel() -> bool:
    """Whether MKL multiplies on a processor of its maker, for which it keeps its best kernels.

    By the processor's name alone: a choice by stopwatch would not give the same bits in every run.
    """
    cpuinfo = Path("/proc/cpuinfo")
    return torch.backends.mkl.is_available() and cpuinfo.is_file() and "GenuineIntel" in cpuinfo.read_text()


def recurs(rows: int) -> bool:
    """Whether kernels are made for this number of rows: 2^k or 3 * 2^k."""
    odd = rows // (rows & -rows) if rows > 0 else 0
    return odd in (1, 3)


def preferred(rows: int, weight: Tensor) -> bool:
    """Whether oneDNN is to multiply so many rows of fp32 by this weight."""
    return not is_intel() and recurs(rows) and suits(weight)


def linear(x: Tensor, weight_OI: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [.., I] weight^T + bias. The weight may be a transposed view. No gradient passes."""
    if x.dtype == torch.float32 and preferred(x.numel() // x.shape[-1], weight_OI):
        return times(x, weight_OI, bias)
    return nn.functional.linear(x, weight_OI, bias)


def arranged(weight_OI: Tensor) -> Tensor:
    """A copy of a weight that suits, laid out for products with few rows; only `times` can read it."""
    return _OPERATORS._reorder_linear_weight(weight_OI, EXPECTED_ROWS)


def times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` by oneDNN, whatever the size; the weight may be an arranged copy."""
    return _OPERATORS._linear_pointwise(x, weight, bias, "none", [], "")


def module_forward(module: Any, x: Tensor) -> Tensor:
    """The forward of an nn.Linear that is not trained: by oneDNN where no gradient is asked for."""
    if torch.is_grad_enabled():
        return nn.functional.linear(x, module.weight, module.bias)
    return linear(x, module.weight, module.bias)


def is_plain_linear(module: Any) -> bool:
    """An nn.Linear whose forward is its own or `module_forward`."""
    forward = module.__dict__.get("forward")
    return type(module) is nn.Linear and (forward is None or getattr(forward, "func", None) is module_forward)
