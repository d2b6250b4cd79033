"""How many bytes are alive at once while torch code runs on the `meta` device, which computes shapes and no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Within this, the storages that operations make are counted from the moment they are made until nobody, autograd
    included, holds them. live and peak are bytes; `known` tensors (weights) are not counted.

    Where a model asks whether something holds for a whole batch (is nothing padded, is nothing packed), it does: there
    are no numbers to look at."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func is torch.ops.aten._local_scalar_dense.default
            and args[0].is_meta
            and args[0].dtype == torch.bool
        ):
            return True
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._see(value)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        size = storage.nbytes()
        self._known.add(place)
        weakref.finalize(storage, self._freed, place, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _freed(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.live -= size


@contextmanager
def flash_attention() -> Iterator[None]:
    """Within this, attention keeps what the fused kernels keep. On `meta` torch would choose the plain formula, which
    holds every pair of positions, and no device that a stage runs on does so."""
    before = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = _attention  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = before


def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (keys, values))
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed: Tensor = operator(queries, keys, values, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return mixed
