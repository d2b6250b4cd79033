"""The processes of one run: who takes which rows, and how they agree.

Every process holds the whole model and the same adapters, takes a contiguous share of the rows, and adds up
gradients with the others. There is no wrapper around the model. Between two exchanges a process works alone,
inside `together`: what goes wrong there in one process (an error, a signal) ends all of them with the same
error, so that nobody waits for somebody who has left. With one process everything here does nothing.

Started by `accelerate launch` or `torchrun`, which set WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT. Small things (texts, counts, errors) travel over gloo, gradients over nccl where there are GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf.core import errors
from rlhf.core.errors import ConfigError, PeerError, RlhfError, Stopped

Value = TypeVar("Value")
# Processes wait for each other at every exchange, for a long rollout too; who has died is noticed at once.
_PATIENCE = timedelta(days=1)


class PeerFailed(Exception):
    """Raised in the midst of work done alone, when another process has failed: `together` says how."""


class Processes:
    """Process `rank` of `size`. device: where this process computes, in the words of `model.device`."""

    def __init__(self, rank: int = 0, size: int = 1, device: str = "auto") -> None:
        self.rank, self.size, self.device = rank, size, device
        # Called at the end of work done alone, with whether it failed: see `rlhf.core.sharding`.
        self.leave: Callable[[bool], None] = lambda failed: None

    @property
    def is_main(self) -> bool:
        """Rank 0 alone holds the run directory, writes and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        if self.is_main:
            print(text)

    def share(self, count: int) -> range:
        """The rows of this process: contiguous, and no share is more than one row longer than another."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that each process does alone. An exception in one of them is raised in all.

        A signal counts less than an error: launchers answer a failed process with a signal to the others.
        """
        if self.size == 1:
            yield
            return
        mine: Exception | None = None
        try:
            yield
        except PeerError:
            raise  # the others are gone: there is nobody to agree with
        except PeerFailed:
            pass  # everybody knows already
        except Exception as error:
            if isinstance(error, RlhfError) and error.alone:
                raise
            mine = error
            self.leave(True)
        else:
            self.leave(False)
        failed = [
            (rank, report) for rank, report in enumerate(self.gather(_report(mine))) if report is not None
        ]
        if not failed:
            return
        rank, report = min(failed, key=lambda item: item[1]["kind"] == Stopped.__name__)
        if rank == self.rank and mine is not None:
            # Rank 0 is the one that speaks, except about a fault of ours: that needs its own traceback.
            if isinstance(mine, RlhfError):
                mine.quiet = not self.is_main
            raise mine
        raise _rebuilt(rank, report, quiet=not self.is_main)

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _noticing_who_left():
            dist.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: Sequence[Value]) -> list[Value]:
        """The shares of all processes, put together again."""
        return [row for share in self.gather(list(rows)) for row in share]

    def from_main(self, value: Value) -> Value:
        """The value that rank 0 has."""
        return self.gather(value if self.is_main else None)[0]  # type: ignore[return-value]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype and device by their sum over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _noticing_who_left():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up gradients over all processes; one that had no rows adds zeros."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for dtype in sorted({p.dtype for p in parameters}, key=str):
            self.sum_([p.grad for p in parameters if p.dtype == dtype and p.grad is not None])

    def require_same(self, what: str, parameters: Sequence[nn.Parameter]) -> None:
        """Raise GuardStop unless all processes hold the same weights, up to the rounding of a sum."""
        if self.size == 1:
            return
        sums = self.gather([p.detach().double().sum().item() for p in parameters])
        for rank, other in enumerate(sums):
            if any(abs(a - b) > 1e-6 * max(1.0, abs(a)) for a, b in zip(sums[0], other, strict=True)):
                raise errors.GuardStop(f"{what}: process {rank} holds other weights than process 0")


ALONE = Processes()


def _report(error: Exception | None) -> dict[str, Any] | None:
    if error is None:
        return None
    known = isinstance(error, RlhfError) and getattr(errors, type(error).__name__, None) is type(error)
    return {
        "kind": type(error).__name__ if known else None,
        "message": " ".join(str(error).split()) if known else f"{type(error).__name__}: {error}",
        "exit_code": error.exit_code if isinstance(error, RlhfError) else PeerError.exit_code,
    }


def _rebuilt(rank: int, report: Mapping[str, Any], *, quiet: bool) -> RlhfError:
    error: RlhfError
    if report["kind"] is None:
        # The process with the fault prints it; the others only end.
        error, quiet = PeerError(f"process {rank} failed: {report['message']}"), True
    elif report["kind"] == Stopped.__name__:
        error = Stopped(report["message"], report["exit_code"] - 128)
    else:
        error = getattr(errors, report["kind"])(report["message"])
    error.exit_code, error.quiet = report["exit_code"], quiet
    return error


@contextmanager
def _noticing_who_left() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerError("another process of this run has ended; its own message says why") from error


@contextmanager
def start_processes(device: str) -> Iterator[Processes]:
    """Join the processes that a launcher started; without a launcher this is the only one.

    device: `model.device`; with several processes on GPUs each takes the one of its local rank. Raises ConfigError.
    """
    size = int(os.environ.get("WORLD_SIZE") or "1")
    if size == 1:
        yield Processes(device=device)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {missing[0]} is not set; start with `accelerate launch` or `torchrun`"
        )
    rank = int(os.environ["RANK"])
    device = _local_device(device, int(os.environ.get("LOCAL_RANK") or "0"))
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield Processes(rank, size, device)
    finally:
        dist.destroy_process_group()


def _local_device(device: str, local_rank: int) -> str:
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not num_gpus):
        return "cpu"
    if device not in ("auto", "cuda"):
        raise ConfigError(
            f"model.device is {device}; expected auto or cpu: several processes take the GPUs of their local ranks"
        )
    if local_rank >= num_gpus:
        raise ConfigError(
            f"local rank {local_rank} has no GPU of {num_gpus}; expected a process per GPU, or model.device cpu"
        )
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"
