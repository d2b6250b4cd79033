"""What ends a run on purpose, a number that is not finite or a signal, and what need not end it: too little memory."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType, TracebackType
from typing import TypeVar

import torch
from torch import nn

from rlhf.core.batching import token_budget_batches
from rlhf.core.errors import GuardStop, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
Result = TypeVar("Result")


class SignalGuard:
    """Turns SIGTERM and SIGINT into `Stopped`, raised where the run calls `check`.

    A handler that raised at once could leave an optimizer half stepped; `check` is called between
    micro-batches and between sampled tokens, so a stop is noticed in well under a second and at a place
    where the state is whole. A second signal is handled as if there were no guard.

    echo_s: with several processes a stop comes twice, from the terminal and from the launcher that passes it on;
    for so many seconds a second signal means the first.
    """

    def __init__(self, echo_s: float = 0.0) -> None:
        self.received: int | None = None
        self._echo_s, self._until = echo_s, 0.0
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
        if self.received is None:
            self.received, self._until = number, time.monotonic() + self._echo_s
        elif time.monotonic() >= self._until:
            self._restore()
            os.kill(os.getpid(), number)
        if not self._echo_s:
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


class TokenBudget:
    """Padded tokens per forward and backward, halved whenever memory runs out and never raised again.

    fixed: a pass cannot be repeated, since other processes take part in it; the first lack of memory ends the run.
    name, shorter: what messages call the budget, and the setting that makes rows shorter.
    """

    def __init__(
        self,
        tokens: int,
        *,
        fixed: bool = False,
        name: str = "micro_batch_tokens",
        shorter: str = "sampling.max_completion_tokens",
    ) -> None:
        self.tokens, self._fixed, self._name, self._shorter = tokens, fixed, name, shorter

    def fit(self, work: Callable[[int], Result], lengths: Sequence[int]) -> Result:
        """`work(tokens)`, from its start again with half the budget each time memory runs out.

        lengths: of the rows that `work` cuts into micro-batches. Raises GuardStop when one row alone is too much.
        """
        while True:
            try:
                return work(self.tokens)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self._fixed:
                    raise self._given_up() from error
                self._halve(lengths)
            # Here the error and with it the frames that held the tensors are gone.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _given_up(self) -> GuardStop:
        stop = GuardStop(
            f"out of memory in a pass over the sharded base with {self.tokens} padded tokens; set a smaller "
            "micro_batch_tokens and continue with --resume --force"
        )
        stop.alone = True
        return stop

    def _halve(self, lengths: Sequence[int]) -> None:
        longest = max(lengths)
        # A budget far above what the rows can fill is first brought down to what they did fill.
        used = max(len(b) * max(lengths[i] for i in b) for b in token_budget_batches(lengths, self.tokens))
        if used <= longest:
            raise GuardStop(
                f"out of memory with one row of {longest} tokens at a time; expected more memory, a smaller "
                f"{self._shorter}, --gradient-checkpointing or --model.dtype bfloat16"
            )
        self.tokens = max(longest, used // 2)
        print(f"out of memory: {self._name} is {self.tokens} from here on")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocator refused: torch's on a GPU, or the one for the CPU, which has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
