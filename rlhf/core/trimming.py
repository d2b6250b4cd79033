"""The last layer's MLP only where its output is read.

Of a sequence only the hidden states that predict completion tokens (or the last one, for a reward) are read.
The layers below the last must be computed everywhere, because attention looks back at all of them; the last
layer's MLP acts on each position alone, so positions that nobody reads can be left out, prompt and padding
among them. The left-out positions hold a number that means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Trim:
    """Wraps the forward of one MLP. Outside `only` the MLP is computed everywhere."""

    def __init__(self, mlp: nn.Module) -> None:
        self.mlp = mlp
        self._inner = mlp.forward
        self._places: tuple[Tensor, Tensor] | None = None
        mlp.forward = self._forward

    def undo(self) -> None:
        self.mlp.forward = self._inner

    @contextmanager
    def only(self, rows_N: Tensor, columns_N: Tensor) -> Iterator[None]:
        """Within this, the MLP's output is right at [rows_N, columns_N] of [B, S] and zero elsewhere.

        No place may be named twice: its gradient would count twice as often.
        """
        self._places = (rows_N, columns_N)
        try:
            yield
        finally:
            self._places = None

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._places is None:
            return self._inner(x, *args, **kwargs)
        # One row of all places: a mixture of experts takes [batch, length, hidden] apart itself.
        found = self._inner(x[self._places][None], *args, **kwargs)[0]
        return x.new_zeros(*x.shape[:-1], found.shape[-1]).index_put(self._places, found)


@torch.no_grad()
def make_trim(layer: nn.Module, hidden_size: int, device: torch.device, dtype: torch.dtype) -> Trim | None:
    """A Trim of a decoder layer's `mlp`, or None where it is not a function of each position alone."""
    mlp = getattr(layer, "mlp", None)
    if not isinstance(mlp, nn.Module):
        return None
    if device.type == "meta":  # no numbers to compare: `rlhf plan` counts what would be kept
        return Trim(mlp)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, hidden_size, generator=generator).to(device, dtype)
    try:
        whole = mlp(x)
    except TypeError:  # it takes more than its input (BLOOM's adds the residual)
        return None
    if not isinstance(whole, Tensor) or whole.shape != x.shape:
        return None
    trim = Trim(mlp)
    rows_N, columns_N = torch.tensor([0, 1, 1], device=device), torch.tensor([2, 0, 1], device=device)
    with trim.only(rows_N, columns_N):
        found = mlp(x)[rows_N, columns_N]
    tolerance = torch.finfo(dtype).eps * 100 * max(1.0, whole.abs().max().item())
    if torch.allclose(found, whole[rows_N, columns_N], atol=tolerance, rtol=1e-3):
        return trim
    trim.undo()
    return None
