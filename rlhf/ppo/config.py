"""Settings of `rlhf ppo`. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings, SamplingSettings

GROUNDEDNESS = "groundedness"
REWARD_KINDS = "a reward run, file.py:function, a rule list (.yaml) or groundedness"


class RewardTerm(Settings):
    """One part of a weighted sum of rewards."""

    source: str = Field(min_length=1, description=REWARD_KINDS)
    weight: float = Field(1.0, allow_inf_nan=False, description="factor of its score in the sum")
    name: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="its name in the metrics; default from the source"
    )
    normalize: bool = Field(
        True, description="to the mean 0 and deviation 1 that a reward run saved, before it is weighted"
    )

    @property
    def label(self) -> str:
        """The name, or what the source is called: the function, the file or the run."""
        if self.name:
            return self.name
        module, _, function = self.source.rpartition(":")
        path = Path(self.source)
        text = function if module else path.stem if path.suffix in (".yaml", ".yml") else path.name
        return re.sub(r"[^\w.-]+", "_", text) or "reward"


class PPOConfig(Settings):
    """Proximal policy optimisation of a policy adapter against a reward."""

    backbone: str | None = Field(
        None, description="the supervised model: reference, and base of every adapter"
    )
    reward: str | None = Field(None, description=REWARD_KINDS)
    rewards: tuple[RewardTerm, ...] = Field(
        (),
        description="instead of reward: terms of a weighted sum, each with source, weight, name, normalize",
    )
    init_adapter: str | None = Field(
        None,
        description="ppo run or adapter directory on the backbone that the policy begins as; default new",
    )
    reference_adapter: str | None = Field(
        None, description="the same kinds: what KL is measured from in place of the backbone"
    )
    prompts: str | None = Field(None, description="JSONL of prompts to train on")
    eval_prompts: str | None = Field(None, description="JSONL of held-out prompts, sampled every eval_every")

    num_iterations: int = Field(100, ge=1, description="rollouts, each followed by its updates")
    num_prompts: int = Field(32, ge=1, description="prompts per iteration")
    samples_per_prompt: int = Field(1, ge=1, description="completions per prompt")
    sampling: SamplingSettings = Field(default_factory=SamplingSettings)
    on_long_prompt: Literal["error", "drop"] = Field(
        "error", description="a prompt that does not fit the context: stop, or leave it out and count it"
    )

    old_logprobs: Literal["auto", "sampler", "recompute"] = Field(
        "auto",
        description="where the first log-probabilities come from; the sampler's only after a subsample agrees "
        "(auto: the sampler's in float32)",
    )
    num_epochs: int = Field(2, ge=1, description="passes over each rollout")
    num_minibatches: int = Field(2, ge=1, description="optimizer steps per pass")
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward and backward")
    clip_range: float = Field(0.2, gt=0, description="the ratio is clipped to 1 +- this")
    dual_clip: float | None = Field(
        None, gt=1, description="bound the loss of negative advantages at this multiple; default off"
    )
    value_clip_range: float = Field(
        0.2, gt=0, description="a new value moves at most this far from the old one"
    )
    value_coef: float = Field(0.5, ge=0, description="weight of the value loss")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    gamma: float = Field(1.0, gt=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="bias against variance of the advantages")
    whiten_advantages: bool = Field(True, description="advantages to mean 0 and variance 1 over all tokens")
    target_kl: float | None = Field(
        None,
        gt=0,
        description="end an iteration's passes when new against old policy exceeds this, nats per token",
    )

    kl_coef: float = Field(0.1, ge=0, description="weight of log(policy / reference) in each token's reward")
    kl_target: float | None = Field(
        None, gt=0, description="nats per completion; given, kl_coef adapts to hold it (Ziegler et al. 2019)"
    )
    kl_horizon: int = Field(2000, ge=1, description="completions over which the adaptive kl_coef reacts")
    score_normalization: Literal["saved", "running", "none"] = Field(
        "saved",
        description="scores to mean 0 and deviation 1 by the figures that the reward saved, or by those of the run",
    )
    score_clip: float = Field(5.0, gt=0, description="normalised scores are clipped to +- this")
    reward_doubt: float = Field(
        0.0, ge=0, description="deviations among an ensemble's members that are taken from its score"
    )
    length_penalty: float = Field(
        0.0, ge=0, description="taken from the score for every token beyond length_penalty_from"
    )
    length_penalty_from: int = Field(0, ge=0, description="tokens of a completion that cost nothing")
    missing_end_penalty: float = Field(
        1.0, ge=0, description="taken from a completion that did not end in time"
    )

    lora: LoraSettings = Field(default_factory=LoraSettings)
    value_adapter: bool = Field(False, description="give the value head an adapter of its own")
    optim: OptimSettings = Field(default_factory=lambda: OptimSettings(lr=3e-4))
    value_lr: float | None = Field(
        None, gt=0, description="learning rate of the value head; default optim.lr"
    )
    model: ModelSettings = Field(default_factory=ModelSettings)
    shard_base: bool = Field(
        False, description="several processes: each keeps a part of the frozen base's weights (FSDP2)"
    )
    trunk_cache: bool = Field(True, description="compute the layers below the adapters once per rollout")
    gradient_checkpointing: bool = Field(False, description="recompute the top layers in the backward pass")

    eval_every: int = Field(10, ge=1, description="iterations between evaluations")
    eval_reward: str | None = Field(
        None, description=f"a second reward that only evaluations see: {REWARD_KINDS}"
    )
    best_metric: str = Field(
        "eval_objective", description="figure of the evaluations whose highest value marks the best policy"
    )
    patience: int | None = Field(
        None, ge=1, description="evaluations without a better best_metric after which the run ends"
    )
    alarm_evaluations: int = Field(
        3, ge=1, description="evaluations over which reward up and eval_reward down raise the alarm"
    )
    on_alarm: Literal["warn", "stop"] = Field(
        "warn", description="what the alarm does: a line, or end the run"
    )
    save_every: int = Field(10, ge=1, description="iterations between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept")
    seed: int = Field(0, ge=0, description="seed of everything random")

    @model_validator(mode="after")
    def _fits_together(self) -> PPOConfig:
        batch = self.num_prompts * self.samples_per_prompt
        if batch < self.num_minibatches:
            raise ValueError(
                f"num_prompts x samples_per_prompt ({batch}) must be at least num_minibatches ({self.num_minibatches})"
            )
        if self.shard_base and self.model.quantization != "none":
            raise ValueError(
                f"shard_base does not go with model.quantization {self.model.quantization}; expected none"
            )
        if self.lora.dropout:
            raise ValueError(
                f"lora.dropout is {self.lora.dropout}; ppo needs 0 (with dropout the ratio does not start at 1)"
            )
        self._check_rewards()
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0; ppo needs a distribution to learn from")
        if self.sampling.top_k or self.sampling.top_p < 1:
            raise ValueError(
                "sampling.top_k and top_p must be off in ppo: the policy is the whole distribution"
            )
        return self

    @property
    def evaluation_metrics(self) -> tuple[str, ...]:
        """What `best_metric` may be: figures of which more is better."""
        names = ["eval_objective", "eval_score", "eval_score_normalized"]
        names += ["eval_heldout_score"] if self.eval_reward else []
        return (*names, *(f"eval_score/{term.label}" for term in self.rewards))

    def _check_rewards(self) -> None:
        if self.reward and self.rewards:
            raise ValueError("reward and rewards were both given; expected one of them")
        labels = [term.label for term in self.rewards]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"two rewards are called {twice[0]!r}; give each a name of its own")
        if self.rewards and all(term.weight == 0 for term in self.rewards):
            raise ValueError("the weights of all rewards are 0")
        if self.best_metric not in self.evaluation_metrics:
            hint = " (it needs eval_reward)" if self.best_metric == "eval_heldout_score" else ""
            raise ValueError(
                f"best_metric is {self.best_metric!r}{hint}; expected one of {', '.join(self.evaluation_metrics)}"
            )
        needs = [
            name
            for name, wrong in (
                ("eval_reward", self.eval_reward and not self.eval_prompts),
                ("patience", self.patience and not self.eval_prompts),
            )
            if wrong
        ]
        if needs:
            raise ValueError(f"{needs[0]} was given without eval_prompts, which it is measured on")
        if self.on_alarm == "stop" and not self.eval_reward:
            raise ValueError("on_alarm is 'stop', but there is no eval_reward that could raise the alarm")
