"""Settings of `rlhf plan`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings


class PlanConfig(Settings):
    """Peak memory of a stage, what it consists of, and the largest micro-batch that fits."""

    base: str | None = Field(None, description="model directory or hub id; only its configuration is read")
    stage: Literal["sft", "reward", "ppo"] = Field("sft", description="what is to be run")
    method: Literal["lora", "full"] = Field("lora", description="what sft trains: adapters, or all weights")
    prompt_tokens: int = Field(128, ge=1, description="longest prompt")
    completion_tokens: int = Field(128, ge=1, description="longest completion")
    batch_size: int = Field(
        16, ge=1, description="rows per optimizer step; with ppo, completions of a rollout"
    )
    micro_batch_size: int = Field(
        4,
        ge=1,
        description="rows per forward and backward; for ppo and reward, rows x tokens is micro_batch_tokens",
    )
    num_texts: int = Field(
        0, ge=0, description="reward: texts of the snapshot, whose states below the adapters are kept"
    )
    reward_adapter: bool = Field(True, description="ppo: the reward is an adapter on the same base")
    value_adapter: bool = Field(False, description="ppo: the value head has an adapter of its own")
    trunk_cache: bool = Field(True, description="ppo, reward: states below the adapters are computed once")
    gradient_checkpointing: bool = Field(False, description="recompute layers in the backward pass")
    memory_gb: float | None = Field(
        None, gt=0, description="memory that there is, in 10^9 bytes; default what is free on this machine"
    )
    lora: LoraSettings = Field(
        default_factory=lambda: LoraSettings(adapter_layers=1.0),
        description="the adapters; adapter_layers is 1.0 here, as in sft (ppo and reward take 0.5 by default)",
    )
    model: ModelSettings = Field(default_factory=ModelSettings, description="precision and device")

    @model_validator(mode="after")
    def _fits_together(self) -> PlanConfig:
        if self.method == "full" and self.stage != "sft":
            raise ValueError(f"method is full; {self.stage} trains adapters only (expected lora)")
        if self.method == "full" and self.model.quantization != "none":
            raise ValueError("method is full; a base in 4 bits is never changed (expected lora)")
        return self

    @property
    def row_tokens(self) -> int:
        """The longest row: prompt and completion."""
        return self.prompt_tokens + self.completion_tokens
