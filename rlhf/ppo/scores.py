"""From raw scores to what PPO maximises: normalised, clipped, less the penalties.

shaped = clip((score - mean) / std, +-score_clip)
         - missing_end_penalty   for a completion that did not end in time
         - length_penalty        for every token beyond length_penalty_from
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlhf.ppo.completions import Completions
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.rewards import Reward


@dataclass(frozen=True)
class ScoreScale:
    mean: float = 0.0
    std: float = 1.0


class ScoreNormalizer:
    """The scale that scores are brought to.

    saved    the mean and deviation that the reward stage measured (0 and 1 for a reward nobody measured)
    running  the same, then those of all completions of the run so far; the saved figures count as much as one
             rollout, and not at all where the reward was never measured
    none     scores as they are

    `fixed` is the scale of evaluations, which must stay comparable with one another: never the running one.
    """

    def __init__(self, reward: Reward, config: PPOConfig) -> None:
        self._running = config.score_normalization == "running"
        saved = ScoreScale(reward.mean, reward.std)
        self.fixed = ScoreScale() if config.score_normalization == "none" else saved
        # Moments by Welford's method (Chan et al. 1983 for whole batches), in Python's double precision.
        self._count = config.num_prompts * config.samples_per_prompt if saved != ScoreScale() else 0
        self._mean, self._squares = saved.mean, self._count * saved.std**2

    @property
    def scale(self) -> ScoreScale:
        """What the next targets are computed with."""
        if not self._running or not self._count:
            return self.fixed
        variance = self._squares / self._count
        return ScoreScale(self._mean, variance**0.5 if variance > 1e-12 else 1.0)

    def observe(self, scores_B: Tensor) -> None:
        """Take in the raw scores of a rollout."""
        scores_B = scores_B.double()
        count, mean = len(scores_B), scores_B.mean().item()
        squares = (scores_B - mean).square().sum().item()
        total, shift = self._count + count, mean - self._mean
        self._squares += squares + shift**2 * self._count * count / total
        self._mean += shift * count / total
        self._count = total

    def state(self) -> dict[str, float]:
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def load_state(self, state: dict[str, Any]) -> None:
        self._count, self._mean, self._squares = state["count"], state["mean"], state["squares"]


def clipped_share(scores_B: Tensor, scale: ScoreScale, config: PPOConfig) -> float:
    """Share of the scores that score_clip cuts: beyond it a better completion earns no more."""
    return (((scores_B - scale.mean) / scale.std).abs() > config.score_clip).float().mean().item()


def shaped_scores(scores_B: Tensor, completions: Completions, scale: ScoreScale, config: PPOConfig) -> Tensor:
    """Scores [B] as PPO maximises them; see the module's text."""
    shaped_B = ((scores_B - scale.mean) / scale.std).clamp(-config.score_clip, config.score_clip)
    shaped_B = shaped_B - config.missing_end_penalty * (~completions.finished_B)
    beyond_B = (completions.lengths_B - config.length_penalty_from).clamp(min=0)
    return shaped_B - config.length_penalty * beyond_B
