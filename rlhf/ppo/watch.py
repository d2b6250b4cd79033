"""What the evaluations of a run mean together: which policy is the best, when to give up, when to be alarmed.

The alarm is about reward hacking (Gao et al., arXiv:2210.10760): the reward that is maximised goes on rising
while another one, which the training never sees, falls. Two evaluations answer the same prompts with the same
random numbers, so they are compared prompt by prompt: a change counts when its mean is further from zero than
noise takes it (one-sided 95 %: 1.645 standard errors), once for the rise and once for the fall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlhf.ppo.config import PPOConfig
from rlhf.ppo.evaluate import Evaluation

ONE_SIDED_95 = 1.645


@dataclass(frozen=True)
class Change:
    """Mean difference between two evaluations of the same prompts, and its standard error."""

    mean: float
    error: float

    @classmethod
    def between(cls, before_P: Tensor, after_P: Tensor) -> Change:
        difference_P = (after_P - before_P).double()
        error = difference_P.std().item() / len(difference_P) ** 0.5
        return cls(difference_P.mean().item(), error)

    @property
    def is_up(self) -> bool:
        return self.mean > ONE_SIDED_95 * self.error

    @property
    def is_down(self) -> bool:
        return -self.mean > ONE_SIDED_95 * self.error


class Watch:
    """The evaluations so far. best_*: by `best_metric`; ended: why the run ends early, or nothing; alarm: what the
    newest evaluation has to say about reward hacking, or nothing."""

    def __init__(self, config: PPOConfig) -> None:
        self._config = config
        self.best_iteration, self.best_value = 0, float("-inf")
        self.since_best = 0
        self.ended = self.alarm = ""
        # (iteration, scores [P], held-out scores [P]) of the last evaluations, oldest first
        self._history: list[tuple[int, Tensor, Tensor]] = []

    def see(self, iteration: int, result: Evaluation) -> tuple[bool, dict[str, float]]:
        """(is this the best policy so far, figures to log). Sets `alarm` and `ended`."""
        value = result.figures[self._config.best_metric]
        better = value > self.best_value
        if better:
            self.best_value, self.best_iteration, self.since_best = value, iteration, 0
        else:
            self.since_best += 1
        figures = {}
        if result.heldout_P is not None:
            self.alarm = self._hacking(iteration, result.scores_P, result.heldout_P)
            figures["eval_alarm"] = float(bool(self.alarm))
            if self.alarm and self._config.on_alarm == "stop":
                self.ended = f"the alarm was raised: {self.alarm}"
        patience = self._config.patience
        if patience is not None and self.since_best >= patience and not self.ended:
            self.ended = (
                f"{self._config.best_metric} has not risen for {patience} evaluations (best {self.best_value:.4g} at "
                f"iteration {self.best_iteration})"
            )
        return better, figures

    def _hacking(self, iteration: int, scores_P: Tensor, heldout_P: Tensor) -> str:
        """What changed over the window, where the reward rose and the held-out one fell."""
        self._history = [*self._history, (iteration, scores_P, heldout_P)]
        self._history = self._history[-(self._config.alarm_evaluations + 1) :]
        since, before_P, heldout_before_P = self._history[0]
        if len(self._history) <= self._config.alarm_evaluations or len(scores_P) < 2:
            return ""
        reward = Change.between(before_P, scores_P)
        heldout = Change.between(heldout_before_P, heldout_P)
        if not (reward.is_up and heldout.is_down):
            return ""
        return (
            f"since iteration {since} the reward rose by {reward.mean:.3g} (standard error {reward.error:.2g}) and "
            f"the held-out reward fell by {-heldout.mean:.3g} ({heldout.error:.2g})"
        )

    # ---- state -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "best_iteration": self.best_iteration,
            "best_value": self.best_value,
            "since_best": self.since_best,
            "ended": self.ended,
            "history": [
                {"iteration": i, "scores": scores_P.clone(), "heldout": heldout_P.clone()}
                for i, scores_P, heldout_P in self._history
            ],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.best_iteration, self.best_value = state["best_iteration"], state["best_value"]
        self.since_best, self.ended = state["since_best"], state["ended"]
        self._history = [(row["iteration"], row["scores"], row["heldout"]) for row in state["history"]]
