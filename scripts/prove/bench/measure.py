"""Stopwatches and memory, the same for both sides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PHASES = ("generation", "scoring", "forward", "backward", "optimizer")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def now() -> float:
    """Seconds, after everything the GPU was told to do has been done."""
    synchronize()
    return time.perf_counter()


class PeakMemory:
    """Peak of what is resident above the imports (CPU), or of what torch allocated (GPU), in MB of 10^6 bytes.

    Made after the imports: on Linux the high-water mark is reset there, so that the imports' own peak is out.
    """

    def __init__(self, device: str) -> None:
        self.gpu = device != "cpu"
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            self.start = 0.0
            return
        Path("/proc/self/clear_refs").write_text("5")
        self.start = _status("VmRSS")

    def peak_mb(self) -> float:
        if self.gpu:
            return torch.cuda.max_memory_allocated() / 1e6
        return _status("VmHWM") - self.start


def _status(name: str) -> float:
    """A line of /proc/self/status, given there in KiB, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/self/status has no {name}")


class Phases:
    """Seconds per phase over some iterations. Off until `start`, so that timed iterations carry no stopwatch.

    What is wrapped: generation, backward and the optimizer step. The rest of a rollout is scoring, the rest of
    an update the forward pass with its losses.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.iterations = self.steps = 0
        self.on = False

    def start(self) -> None:
        self.on = True

    def watch(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            with self.timing(phase):
                return function(*args, **options)

        return timed

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        if not self.on:
            yield
            return
        started = now()
        yield
        self.seconds[phase] += now() - started

    def watch_optimizer(self, optimizer: Any) -> None:
        """Count the optimizer's steps, always, and time them when on."""
        began = [0.0]

        def before(*_: Any) -> None:
            began[0] = now() if self.on else 0.0

        def after(*_: Any) -> None:
            self.steps += 1
            if self.on:
                self.seconds["optimizer"] += now() - began[0]

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def end_iteration(self, rollout: float, update: float) -> None:
        """Count an iteration whose rollout and update took so many seconds."""
        self.iterations += 1
        self.seconds["scoring"] += rollout
        self.seconds["forward"] += update

    def means(self) -> dict[str, float]:
        seconds = dict(self.seconds)
        seconds["scoring"] -= seconds["generation"]
        seconds["forward"] -= seconds["backward"] + seconds["optimizer"]
        return {name: value / max(1, self.iterations) for name, value in seconds.items()}
