"""Settings of `rlhf ppo`: those of the loop, and when people are asked while it runs. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf.core.config import Settings
from rlhf.ppo.config import PPOConfig


class FeedbackSettings(Settings):
    """What people are asked about the policy that is being trained, and how long the training waits for them."""

    project: str | None = Field(
        None, description="project that gets the pairs; default the one that the reward's snapshot is from"
    )
    num_prompts: int = Field(32, ge=1, description="prompts of the run that are asked about, each time")
    overlap: int = Field(1, ge=1, description="annotators per pair")
    min_share: float = Field(
        0.9, gt=0, le=1, description="share of the answers asked for that the reward model is renewed with"
    )
    when_open: Literal["wait", "go-on"] = Field(
        "wait",
        description="while answers are missing: wait for them, or train on and look again at the next question",
    )
    timeout_s: float | None = Field(
        None, gt=0, description="with wait: seconds after which it trains on all the same; default never"
    )
    poll_s: float = Field(5.0, gt=0, description="seconds between two looks at the store")


class PPOWithPeopleConfig(PPOConfig):
    """Proximal policy optimisation of a policy adapter against a reward, which people may renew as it goes."""

    feedback_every: int = Field(
        0, ge=0, description="iterations after which people are asked about the current policy; 0 asks nobody"
    )
    feedback: FeedbackSettings = Field(
        default_factory=FeedbackSettings, description="what they are asked, and how long it waits"
    )

    @model_validator(mode="after")
    def _one_reward(self) -> PPOWithPeopleConfig:
        if self.feedback_every and self.rewards:
            raise ValueError(
                "feedback_every renews one reward run; expected reward instead of a weighted sum (rewards)"
            )
        return self

    def without_people(self) -> PPOConfig:
        """The settings of the loop alone."""
        return PPOConfig.model_validate(self.model_dump(exclude={"feedback_every", "feedback"}))
