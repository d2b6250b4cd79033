"""Random numbers that depend on what is sampled, not on when or beside what.

The uniform number behind each sampled token is a hash of (seed, prompt cursor, sample index, position).
Batching, length buckets, eviction of finished rows, resume and the number of processes therefore change no
completion. The hash is SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014) in wrapping int64
arithmetic, which gives the same bits on CPU and GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch stores it in."""
    value &= _MASK64
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> on int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniforms(seed: int, cursors_B: Tensor, samples_B: Tensor, positions_B: Tensor) -> Tensor:
    """Numbers in [0, 1), float64 [B], from int64 [B] counters. Equal counters give equal numbers."""
    state = torch.full_like(cursors_B, _signed(seed))
    for counter in (cursors_B, samples_B, positions_B):
        state = _mix((state ^ counter) + _GOLDEN)
    return _shift_right(state, 11).to(torch.float64) * (1.0 / (1 << 53))


def derived_seed(seed: int, *labels: str | int) -> int:
    """A seed for one purpose ("policy adapter", iteration 7, ...), unrelated to the seeds of others."""
    state = torch.tensor([_signed(seed)], dtype=torch.int64)
    for label in labels:
        for byte in str(label).encode() + b"\0":
            state = _mix((state ^ byte) + _GOLDEN)
    return int(state.item()) & 0x7FFF_FFFF_FFFF_FFFF
