"""Settings of `rlhf sft`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings


class SFTConfig(Settings):
    """Supervised tuning on demonstrations: loss on completions only, LoRA, early stopping, merged at the end."""

    base: str | None = Field(None, description="model to tune: a directory or a hub id")
    data: str | None = Field(
        None, description='JSONL of {"prompt": text or messages, "completion": text} or {"messages": [...]}'
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the prompt groups that is held out to choose the best step"
    )
    max_tokens: int | None = Field(
        None, ge=8, description="longest prompt + completion; default the model's context"
    )
    on_too_long: Literal["error", "drop"] = Field(
        "error", description="a demonstration longer than max_tokens: stop, or leave it out and count it"
    )

    num_epochs: int = Field(3, ge=1, description="passes over the demonstrations, at most")
    batch_size: int = Field(16, ge=1, description="demonstrations per optimizer step")
    micro_batch_size: int = Field(4, ge=1, description="demonstrations per forward and backward")
    eval_steps: int | None = Field(
        None, ge=1, description="optimizer steps between validations; default each epoch"
    )
    patience: int = Field(2, ge=1, description="validations without a better loss before it stops")
    gradient_checkpointing: bool = Field(False, description="recompute layers in the backward pass")

    lora: LoraSettings = Field(
        default_factory=lambda: LoraSettings(dropout=0.05, adapter_layers=1.0), description="adapter"
    )
    optim: OptimSettings = Field(
        default_factory=lambda: OptimSettings(lr=2e-4, schedule="cosine", warmup_steps=10),
        description="optimizer",
    )
    model: ModelSettings = Field(default_factory=ModelSettings, description="precision and device")
    seed: int = Field(0, ge=0, description="seed of adapter, split, order and dropout")

    @model_validator(mode="after")
    def _fits_together(self) -> SFTConfig:
        if self.model.quantization != "none":
            raise ValueError(
                f"model.quantization is {self.model.quantization}; sft needs none (it merges its adapter into the "
                "model that it saves)"
            )
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be divisible by micro_batch_size ({self.micro_batch_size})"
            )
        return self
