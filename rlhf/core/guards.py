"""What ends a run on purpose: a number that is not finite, or a signal."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterable
from types import FrameType, TracebackType

import torch
from torch import nn

from rlhf.core.errors import GuardStop, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalGuard:
    """Turns SIGTERM and SIGINT into `Stopped`, raised where the run calls `check`.

    A handler that raised at once could leave an optimizer half stepped; `check` is called between
    micro-batches and between sampled tokens, so a stop is noticed in well under a second and at a place
    where the state is whole. A second signal is handled as if there were no guard.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> SignalGuard:
        # Python allows handlers in the main thread only; elsewhere the guard is inert.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]
        self._previous.clear()

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.received is not None:
            name = signal.Signals(self.received).name
            raise Stopped(f"stopped by {name}; continue with --resume", self.received)


def require_finite(where: str, **values: float) -> None:
    """Raise GuardStop when a logged number is NaN or infinite. `where` says when, as in 'iteration 7'."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise GuardStop(
                f"{where}: {name} is {value}; the run stopped and its last good checkpoint is kept"
            )


def require_finite_parameters(where: str, parameters: Iterable[nn.Parameter]) -> None:
    """Raise GuardStop when a trained weight is NaN or infinite."""
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise GuardStop(
            f"{where}: a weight is not finite; the run stopped and its last good checkpoint is kept"
        )
