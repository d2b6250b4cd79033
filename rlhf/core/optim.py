"""AdamW with the learning-rate schedule of `OptimSettings`, for the loops that are ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from rlhf.core.settings import OptimSettings


def make_optimizer(
    adapter: Sequence[nn.Parameter],
    heads: Sequence[nn.Parameter],
    settings: OptimSettings,
    head_lr: float | None,
) -> AdamW:
    """Adapter and head weights in two groups, so that a head can have its own learning rate and no decay."""
    groups = [
        {"params": list(adapter), "lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": list(heads), "lr": head_lr or settings.lr, "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], betas=(settings.beta1, settings.beta2), eps=settings.eps)


def make_schedule(
    optimizer: AdamW, settings: OptimSettings, num_steps: int, *, done: Callable[[], float] | None = None
) -> LambdaLR:
    """Linear warm-up, then constant, linear or cosine decay to 0 at `num_steps`.

    done: how much of the run is over, from 0 to 1, where that is not a matter of steps.
    """

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return 1.0
        share = min(1.0, (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps))
        share = share if done is None else done()
        return 1 - share if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))

    return LambdaLR(optimizer, factor)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Clip to a global norm, in place; returns the norm before clipping."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
