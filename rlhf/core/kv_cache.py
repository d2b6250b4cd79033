"""A key/value cache whose room is taken once, instead of being copied at every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def key_value_cache(config: Any, capacity: int) -> DynamicCache:
    """transformers' cache for a model, its plain attention layers with room for `capacity` tokens a row.

    Sliding-window and other layers stay as transformers makes them: they do not grow with the text.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """`keys` and `values` are views of the filled part of tensors [B, heads, capacity, head size]."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._rooms: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._rooms or end > self._rooms[0].shape[-2]:
            self._rooms = [self._with_room(t, end) for t in (key_states, value_states)]
            if start:
                self._rooms[0][..., :start, :], self._rooms[1][..., :start, :] = self.keys, self.values
        self._rooms[0][..., start:end, :] = key_states
        self._rooms[1][..., start:end, :] = value_states
        self.show(end)
        return self.keys, self.values

    @property
    def rooms(self) -> list[Tensor]:
        """All places for keys and for values [B, heads, capacity, head size], the empty ones too; none before the
        first `update`."""
        return self._rooms

    def append(self, keys_BKD: Tensor, values_BKD: Tensor) -> tuple[Tensor, Tensor]:
        """One more token a row, after the first `update`. Gives all keys and values as [B * K, tokens, D]."""
        end = self.get_seq_length() + 1
        if end > self._rooms[0].shape[-2]:
            self.update(keys_BKD[:, :, None], values_BKD[:, :, None])
        else:
            self._rooms[0][:, :, end - 1], self._rooms[1][:, :, end - 1] = keys_BKD, values_BKD
            self.show(end)
        keys, values = (room.flatten(0, 1)[:, :end] for room in self._rooms)
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        if not self._rooms:
            return
        end, count = self.get_seq_length(), len(indices)
        moved = (indices != torch.arange(count, device=indices.device)).nonzero().squeeze(1)
        if count <= len(self._rooms[0]) and bool((indices[moved] >= count).all()):
            # Rows from the end take the places of those that left: nothing else is copied.
            for room in self._rooms:
                room[moved, :, :end] = room[indices[moved], :, :end]
            self._rooms = [room[:count] for room in self._rooms]
        else:
            self._rooms = [torch.index_select(room, 0, indices) for room in self._rooms]
        self.show(end)

    def show(self, end: int) -> None:
        """Count the first `end` places as filled."""
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)

    def _with_room(self, states: Tensor, end: int) -> Tensor:
        batch, heads, _, size = states.shape
        shape = batch, heads, max(self.capacity, end), size
        # A step on static buffers multiplies by the empty places too, with weight 0: no NaN may lie there.
        return states.new_zeros(shape) if states.is_cuda else states.new_empty(shape)
