"""Settings of `rlhf ppo`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings, SamplingSettings


class PPOConfig(Settings):
    """Proximal policy optimisation of a policy adapter against a reward."""

    backbone: str | None = Field(
        None, description="the supervised model: reference, and base of every adapter"
    )
    reward: str | None = Field(None, description="reward run, or a callable file.py:function")
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
    normalize_scores: bool = Field(
        True, description="scores to the mean 0 and deviation 1 that the reward saved"
    )
    score_clip: float = Field(5.0, gt=0, description="normalised scores are clipped to +- this")
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
    trunk_cache: bool = Field(True, description="compute the layers below the adapters once per rollout")
    gradient_checkpointing: bool = Field(False, description="recompute the top layers in the backward pass")

    eval_every: int = Field(10, ge=1, description="iterations between evaluations")
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
        if self.lora.dropout:
            raise ValueError(
                f"lora.dropout is {self.lora.dropout}; ppo needs 0 (with dropout the ratio does not start at 1)"
            )
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0; ppo needs a distribution to learn from")
        if self.sampling.top_k or self.sampling.top_p < 1:
            raise ValueError(
                "sampling.top_k and top_p must be off in ppo: the policy is the whole distribution"
            )
        return self
