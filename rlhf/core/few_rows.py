"""Products of a few rows with a weight that stays the same for many of them, as while a model decodes.

For so few rows the way a weight lies in memory costs more than the arithmetic, so a copy of it is arranged once.
Microseconds a product, two cores of an Intel Xeon (Sapphire Rapids) with AVX-512, fp32, best of 30:

    rows x in -> out    as it is, MKL    arranged for oneDNN    transposed, MKL
    32 x 384 -> 384                62                     68                 40
    32 x 1024 -> 384              300                    148                136
    8 x 384 -> 1152                91                     49                 37
    4 x 1024 -> 384                20                     35                 17

MKL keeps its best kernels for Intel's processors; on others oneDNN's are taken (`docs/log.md`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf.core import onednn


def handy_rows(rows: int) -> int:
    """The next number of rows, from `rows` up, that products should have: 2 to an octave, 4 where MKL makes them.

    oneDNN keeps a kernel for every number, so few are used; and fewer rows than four take no less time.
    """
    parts = 4 if onednn.is_intel() else 2
    step = max(1, (1 << (rows - 1).bit_length()) // (2 * parts))
    return max(4, -(-rows // step) * step)


class FewRows:
    """x [B, I] -> x W^T + bias, with a copy of the weight [O, I] as it is now. No gradient passes.

    The weight must suit oneDNN (`onednn.suits`); several weights are taken as one with all their outputs.
    """

    def __init__(self, weights: list[Tensor], biases: list[Tensor | None]) -> None:
        self._transposed: Tensor | None = None
        self._arranged: Any = None  # only `onednn.times` can read it
        self.bias: Tensor | None = None
        if onednn.is_intel():
            self._transposed = _side_by_side(weights)
        else:
            self._arranged = onednn.arranged(torch.cat(weights) if len(weights) > 1 else weights[0])
        if any(bias is not None for bias in biases):
            pairs = zip(weights, biases, strict=True)
            self.bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs])

    def __call__(self, x: Tensor) -> Tensor:
        """[.., I] to [.., O]."""
        if self._transposed is None:
            return onednn.times(x, self._arranged, self.bias)
        x_NI = x.flatten(0, -2)
        if self.bias is None:
            y_NO = torch.mm(x_NI, self._transposed)
        else:
            y_NO = torch.addmm(self.bias, x_NI, self._transposed)
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    def add_to(self, y_BO: Tensor, x_BI: Tensor) -> None:
        """Add the product to y, in place."""
        if self._transposed is None:
            y_BO += onednn.times(x_BI, self._arranged, self.bias)
            return
        y_BO.addmm_(x_BI, self._transposed)
        if self.bias is not None:
            y_BO += self.bias


def _side_by_side(weights: list[Tensor]) -> Tensor:
    """[I, sum of O] the weights transposed.

    Rows whose size is a multiple of a page fall into the same few places of a processor's cache, which costs a fifth
    of a product: then each row gets some unused numbers behind it.
    """
    width = sum(len(weight) for weight in weights)
    unused = 48 if width * weights[0].element_size() % 4096 == 0 else 0
    room_IO = weights[0].new_empty(weights[0].shape[1], width + unused)[:, :width]
    start = 0
    for weight in weights:
        room_IO[:, start : start + len(weight)] = weight.T
        start += len(weight)
    return room_IO
