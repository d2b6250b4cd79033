"""How much compute a run may spend, so that methods can be compared at an equal price."""

from __future__ import annotations

import time
from typing import Any

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from rlhf.core.optim import make_schedule
from rlhf.core.settings import OptimSettings

# In passes over a token: a backward costs two forwards (weights' and inputs' gradients of a dense layer).
FORWARD, TRAINED = 1, 3


class Budget:
    """What a run has spent, in seconds and in tokens that went through the model; either may be bounded.

    Only what happens between `start` and `stop` is timed, so evaluations and checkpoints are free. With a bound in
    tokens the end of a run is a function of its settings; in seconds it depends on the machine, as it is meant to.
    """

    def __init__(self, seconds: float | None = None, tokens: int | None = None) -> None:
        self.limit_s, self.limit_tokens = seconds, tokens
        self.seconds, self.tokens = 0.0, 0
        self._started: float | None = None

    @property
    def is_bounded(self) -> bool:
        return self.limit_s is not None or self.limit_tokens is not None

    @property
    def share(self) -> float:
        """How much of the bound is spent; 0 without one."""
        if self.limit_s is not None:
            return self.seconds / self.limit_s
        return self.tokens / self.limit_tokens if self.limit_tokens else 0.0

    @property
    def used_up(self) -> bool:
        return self.is_bounded and self.share >= 1

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        if self._started is not None:
            self.seconds += time.perf_counter() - self._started
            self._started = None

    def spend(self, tokens: int) -> None:
        self.tokens += tokens

    def schedule(self, optimizer: AdamW, settings: OptimSettings, num_steps: int) -> LambdaLR:
        """The learning rate over the run's steps or, where there is a bound, over what of it is spent."""
        return make_schedule(optimizer, settings, num_steps, done=self._done if self.is_bounded else None)

    def _done(self) -> float:
        return min(1.0, self.share)

    def why(self) -> str:
        """The end of the sentence 'the run ended because ...'."""
        if self.limit_s is not None:
            return f"its budget of {self.limit_s:g} s is spent"
        return f"its budget of {self.limit_tokens} tokens is spent"

    def state(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "tokens": self.tokens}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seconds, self.tokens = state["seconds"], state["tokens"]
