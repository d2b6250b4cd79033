"""FSDP2 sharding of the frozen base: each process keeps a part of every linear weight of the decoder's layers.

`fully_shard` (torch.distributed.fsdp, FSDP2) is put on the linear modules themselves. The roles are clones of
the model that share these very modules, so that one all-gather hook serves every role, the trunk and the top.
Adapters, heads, norms and embeddings stay whole in every process. Nothing is ever merged.

An all-gather needs all processes, but the processes work on different rows and need different numbers of
passes. So before each pass they agree on its kind: one that has nothing to do, or wants another kind first,
takes part with a pass of its own over one token, whose result is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from rlhf.core.errors import ConfigError
from rlhf.core.processes import PeerFailed, Processes

TRUNK, TOP, WHOLE, TRAIN = "trunk", "top", "whole", "train"
_IDLE, _FAILED = "idle", "failed"
# What is asked for first in this list is done first.
_KINDS = (TRUNK, TOP, WHOLE, TRAIN, _IDLE, _FAILED)


class Lockstep:
    """The agreement of all processes on what the next pass over the base is. Idle in one without sharding."""

    def turn(self, kind: str) -> None:
        """Wait until a pass of this kind is the next one. Call it right before the pass.

        `train` is one forward of all trained roles with its backward, after which `done` is called.
        """

    def done(self) -> None:
        """The backward of a training pass is over."""

    def leave(self, *, failed: bool) -> None:
        """This process has no more passes to make: take part in those of the others until they have none."""


class ShardedLockstep(Lockstep):
    """`dummy(kind)` makes a pass of one token that gathers what a real one of that kind does."""

    def __init__(self, processes: Processes, dummy: Callable[[str], None]) -> None:
        self._processes, self._dummy = processes, dummy
        self._inside = False

    def turn(self, kind: str) -> None:
        while not self._inside and (chosen := self._next(kind)) != kind:
            if chosen is None:
                raise PeerFailed
            self._dummy(chosen)
        self._inside = self._inside or kind == TRAIN

    def done(self) -> None:
        self._inside = False

    def leave(self, *, failed: bool) -> None:
        while (chosen := self._next(_FAILED if failed else _IDLE)) not in (None, _IDLE):
            self._dummy(str(chosen))

    def _next(self, kind: str) -> str | None:
        """The kind of the next pass, `idle` when nobody wants one, None when a process has failed."""
        votes = torch.tensor([float(kind == known) for known in _KINDS])
        self._processes.sum_([votes])
        wanted = [known for known, count in zip(_KINDS, votes.tolist(), strict=True) if count]
        return None if _FAILED in wanted else wanted[0]


def device_mesh(processes: Processes) -> DeviceMesh:
    """All processes in one row. Raises ConfigError where there is only one."""
    if processes.size == 1:
        raise ConfigError("shard_base needs several processes; start with `accelerate launch` or `torchrun`")
    return init_device_mesh(torch.device(processes.device).type, (processes.size,))


def shard_linears(layers: nn.ModuleList, mesh: DeviceMesh) -> None:
    """Shard the weights of all linear modules of the decoder's layers, in place."""
    for module in [m for m in layers.modules() if isinstance(m, nn.Linear)]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def shared_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that a clone has to share, since their hooks hold the weights."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def is_sharded(model: nn.Module) -> bool:
    return bool(shared_modules(model))


def dummy_passes(backbone: Any, trained: Sequence[str]) -> Callable[[str], None]:
    """What `ShardedLockstep` needs of a backbone. trained: the roles of a training pass, in order."""
    reference = "reference"

    def hidden(role: str) -> torch.Tensor:
        if backbone.trunk_enabled:
            state = torch.zeros(1, 1, backbone.hidden_size, device=backbone.device, dtype=backbone.dtype)
            return backbone.roles[role].top(inputs_embeds=state, use_cache=False).last_hidden_state
        return whole(role)

    def whole(role: str) -> torch.Tensor:
        decoder = backbone.roles[role].causal_lm.get_decoder()
        return decoder(input_ids=token(), use_cache=False).last_hidden_state

    def token() -> torch.Tensor:
        return torch.zeros(1, 1, dtype=torch.int64, device=backbone.device)

    def dummy(kind: str) -> None:
        if kind == TRAIN:
            with torch.enable_grad():
                # Gradients of exactly zero: the pass counts for the others only.
                totals = [hidden(role).float().sum() for role in trained]
                (torch.stack(totals).sum() * 0.0).backward()
            return
        with torch.no_grad():
            if kind == TRUNK:
                backbone._trunk(input_ids=token(), use_cache=False)
            else:
                whole(reference) if kind == WHOLE else hidden(reference)

    return dummy
