"""The key/value cache of a batch that rows join and leave while it is decoded.

All rows end in the same column, so that one more token a row is one more column for all of them; a row of n tokens
fills the last n columns and an attention mask hides what lies before it:

    end = 6     . . . . a b        a row that joined with a prompt of two tokens
                . c c c c c        one that was there before

A row that is longer than all others moves them to the right. Keys hold their rotation already, so it does not matter
in which column they lie. Every layer keeps all columns, sliding windows too: there the mask hides what is too old.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlhf.core.errors import ModelError
from rlhf.core.kv_cache import RoomyLayer

COLUMNS_AT_ONCE = 64


def prompt_cache(config: Any, num_tokens: int) -> DynamicCache:
    """A cache for prompts of at most `num_tokens` tokens, whose rows can be put into a `SharedCache`.

    Raises ModelError for layers that are not attention over keys and values (state spaces, linear attention).
    """
    cache = DynamicCache(config=config)
    other = {type(layer).__name__ for layer in cache.layers} - {
        DynamicLayer.__name__,
        DynamicSlidingWindowLayer.__name__,
    }
    if other:
        raise ModelError(
            f"{config.model_type}: has layers with a state of another kind ({', '.join(sorted(other))}); "
            "expected attention in every layer"
        )
    cache.layers = [RoomyLayer(num_tokens) for _ in cache.layers]
    return cache


class _SharedLayer(RoomyLayer):
    """The first rows and columns of `_all`, tensors [rows, heads, columns, head size] that grow when they must."""

    def __init__(self) -> None:
        super().__init__(0)
        self._all: list[Tensor] = []

    def reserve(self, rows: int, columns: int, like: RoomyLayer) -> None:
        """Room for so many rows and columns; what is in use stays."""
        if not self._all:
            self.lazy_initialization(like.keys, like.values)
            self._all = [states.new_empty(0, states.shape[1], 0, states.shape[3]) for states in like._rooms]
        old_rows, _, old_columns, _ = self._all[0].shape
        if rows > old_rows or columns > old_columns:
            # One and a half times as much as asked, so that growing stays rare.
            rows = old_rows if rows <= old_rows else max(rows, old_rows * 3 // 2)
            if columns > old_columns:
                columns = -(-max(columns, old_columns * 3 // 2) // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE
            else:
                columns = old_columns
            grown = [room.new_zeros(rows, room.shape[1], columns, room.shape[3]) for room in self._all]
            for new, old in zip(grown, self._all, strict=True):
                new[:old_rows, :, :old_columns] = old
            self._all = grown

    def view(self, rows: int, end: int) -> None:
        """Show this many rows and columns as keys and values."""
        self._rooms = [room[:rows] for room in self._all]
        self.show(end)

    def shift(self, rows: int, end: int, by: int) -> None:
        """Move the columns of all rows to the right, or with a negative number to the left."""
        for room in self._all:
            first, last = max(0, -by), end
            room[:rows, :, first + by : last + by] = room[:rows, :, first:last].clone()

    def keep(self, rows_N: Tensor, end: int) -> None:
        """Row i becomes what row rows_N[i] was."""
        moved = (rows_N != torch.arange(len(rows_N), device=rows_N.device)).nonzero().squeeze(1)
        for room in self._all:
            room[moved, :, :end] = room[rows_N[moved], :, :end]

    def put(self, first_row: int, end: int, source: RoomyLayer, owners_N: Tensor) -> None:
        """Rows `owners_N` of another layer as rows from `first_row` on, their last column at `end`."""
        for room, states in zip(self._all, (source.keys, source.values), strict=True):
            width = states.shape[-2]
            room[first_row : first_row + len(owners_N), :, end - width : end] = states[owners_N]


class SharedCache:
    """`cache` is what a model is called with. starts: the first column of each row."""

    def __init__(self, config: Any) -> None:
        self.cache = prompt_cache(config, 0)
        self.layers = [_SharedLayer() for _ in self.cache.layers]
        self.cache.layers = list(self.layers)
        self.starts: list[int] = []
        self.end = 0

    @property
    def num_rows(self) -> int:
        return len(self.starts)

    def add(self, prompts: DynamicCache, owners: list[int], lengths: list[int]) -> None:
        """Rows of a cache of prompts, padded on the left, as new rows. owners: its row for each of them."""
        width = prompts.layers[0].get_seq_length()
        end, first = max(self.end, width), self.num_rows
        owners_N = torch.tensor(owners)
        for layer, source in zip(self.layers, prompts.layers, strict=True):
            layer.reserve(first + len(owners), end + 1, source)
            if end > self.end and first:
                layer.shift(first, self.end, end - self.end)
            layer.put(first, end, source, owners_N.to(source.keys.device))
        self.starts = [start + end - self.end for start in self.starts]
        self.starts += [end - length for length in lengths]
        self.end = end
        self._view()

    def keep(self, rows: list[int]) -> None:
        """Leave only these rows, in this order; columns that none of them uses are given up."""
        if not rows:
            self.clear()
            return
        rows_N = torch.tensor(rows)
        for layer in self.layers:
            layer.keep(rows_N.to(layer.keys.device), self.end)
        self.starts = [self.starts[row] for row in rows]
        unused = min(self.starts)
        # Moving costs as much as a step or two, so it waits until a quarter of the columns is hidden in every row.
        if unused * 4 >= self.end:
            for layer in self.layers:
                layer.shift(len(rows), self.end, -unused)
            self.starts = [start - unused for start in self.starts]
            self.end -= unused
        self._view()

    def clear(self) -> None:
        """No rows, and no memory."""
        self.starts, self.end = [], 0
        self.layers = [_SharedLayer() for _ in self.layers]
        self.cache.layers = list(self.layers)

    def forget(self, rows: list[int]) -> None:
        """These rows hold nothing from now on; they begin anew with the next column."""
        for row in rows:
            self.starts[row] = self.end

    def make_room(self) -> None:
        """Room for the column that the next step fills. Call it before the step."""
        for layer in self.layers:
            layer.reserve(self.num_rows, self.end + 1, layer)
        self._view()

    def stepped(self) -> None:
        """The model has filled one more column."""
        self.end += 1

    def mask(self, device: torch.device, columns: int) -> Tensor | None:
        """[rows, columns] 1 where a row holds a token; None where nothing is hidden."""
        if not any(self.starts):
            return None
        starts_B1 = torch.tensor(self.starts, device=device)[:, None]
        return (torch.arange(columns, device=device) >= starts_B1).long()

    def _view(self) -> None:
        for layer in self.layers:
            layer.view(self.num_rows, self.end)
