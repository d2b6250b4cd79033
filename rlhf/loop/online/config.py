"""Settings of `rlhf ppo-people`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reward.config import RewardConfig
from rlhf.core.config import Settings
from rlhf.ppo.config import PPOConfig

FILLED_IN_REWARD = ("backbone", "snapshot", "seed")
FILLED_IN_PPO = ("backbone", "reward", "rewards", "prompts", "init_adapter", "seed")


class OnlineConfig(Settings):
    """PPO whose reward is not fixed: every so many iterations the policy's answers go to the raters, and the reward
    model is trained anew on what they say."""

    backbone: str | None = Field(
        None, description="the supervised model: reference, and base of every adapter"
    )
    reward: str | None = Field(None, description="reward run to begin with")
    prompts: str | None = Field(None, description="JSONL of prompts to train on, and to ask about")
    init_adapter: str | None = Field(
        None, description="ppo run or adapter that the policy begins as; default new"
    )
    project: str = Field(
        "default", description="project of the feedback store whose ratings are learned from"
    )
    simulated: bool = Field(False, description="label new tasks as simulated")

    feedback_every: int = Field(20, ge=1, description="iterations between two visits to the raters")
    num_pairs: int = Field(
        100, ge=1, description="pairs of the policy's answers that are put on the desk each time"
    )
    overlap: int = Field(1, ge=1, description="raters per pair")
    min_answers: int = Field(100, ge=1, description="answers on these pairs that refresh the reward model")
    when_few: Literal["wait", "go-on"] = Field(
        "wait", description="until there are so many: wait, or train on with the reward model as it is"
    )
    max_wait_s: float | None = Field(
        None,
        gt=0,
        description="with wait: end after so many seconds, to be taken up with --resume; default never",
    )
    poll_s: float = Field(10.0, gt=0, description="seconds between two looks at the answers")

    ppo: PPOConfig = Field(
        default_factory=PPOConfig, description="as `rlhf ppo`; num_iterations counts all parts"
    )
    train: RewardConfig = Field(
        default_factory=RewardConfig, description="as `rlhf reward`, for each refresh"
    )
    seed: int = Field(0, ge=0, description="seed of everything random")

    @model_validator(mode="after")
    def _fits_together(self) -> OnlineConfig:
        for part, names, model in (("train", FILLED_IN_REWARD, self.train), ("ppo", FILLED_IN_PPO, self.ppo)):
            default = type(model)()
            given = [name for name in names if getattr(model, name) != getattr(default, name)]
            if given:
                raise ValueError(f"{part}.{given[0]} is filled in by the command; leave it out")
        if self.min_answers > self.num_pairs * self.overlap:
            raise ValueError(
                f"min_answers ({self.min_answers}) is more than num_pairs x overlap ({self.num_pairs * self.overlap})"
            )
        return self

    @property
    def parts(self) -> list[int]:
        """Iterations of each part: feedback_every, and what is left in the last one."""
        whole, rest = divmod(self.ppo.num_iterations, self.feedback_every)
        return [self.feedback_every] * whole + [rest] * (rest > 0)
