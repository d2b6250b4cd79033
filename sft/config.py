"""Settings of `rlhf sft`. Torch-free."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings
from sft.privacy.config import PrivacySettings

Method = Literal[
    "lora", "dora", "rslora", "qlora", "full", "ia3", "adapters", "prefix-tuning", "prompt-tuning"
]
# Peak learning rates that are the usual ones for each method; those of the methods with few parameters are large.
LEARNING_RATES: dict[Method, float] = {
    "lora": 2e-4,
    "dora": 2e-4,
    "rslora": 1e-4,
    "qlora": 2e-4,
    "full": 2e-5,
    "ia3": 5e-3,
    "adapters": 1e-3,
    "prefix-tuning": 1e-2,
    "prompt-tuning": 5e-2,
}
LORA_METHODS = ("lora", "dora", "rslora", "qlora")
PROMPT_METHODS = ("prefix-tuning", "prompt-tuning")
# Trained parts that are no change of a weight: nothing can be added to the base's own weights.
UNMERGED_METHODS = ("adapters", *PROMPT_METHODS)
# Before the name of a task in a row of the metrics.
TASK_LOSS = "validation_loss_"


class _TheMethodsOwn(float):
    """NaN as the default learning rate: replaced by the method's own before anything is checked."""

    def __str__(self) -> str:
        return "the method's own"


def _default_optim() -> OptimSettings:
    return OptimSettings.model_construct(
        lr=_TheMethodsOwn("nan"),
        **OptimSettings(schedule="cosine", warmup_steps=10).model_dump(exclude={"lr"}),
    )


class SFTConfig(Settings):
    """Supervised tuning on demonstrations or raw text: one of nine methods, early stopping, the best step saved."""

    base: str | None = Field(None, description="model to tune: a directory or a hub id")
    data: tuple[str, ...] = Field(
        (),
        description='files of {"prompt", "completion"}, {"messages"} or raw {"text"} rows: JSONL, JSON, CSV, Parquet, '
        ".txt; NAME=FILE names a task",
    )
    weights: tuple[float, ...] = Field(
        (), description="share of each file in an epoch, one number a file; default as many rows as it has"
    )
    validation: tuple[str, ...] = Field(
        (), description="files to choose the best step by, one for each of data; default a held-out share"
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the prompt groups that is held out to choose the best step"
    )
    max_tokens: int | None = Field(
        None,
        ge=8,
        description="longest prompt + completion, and size of a block; default the model's context",
    )
    on_too_long: Literal["error", "drop"] = Field(
        "error", description="a demonstration longer than max_tokens: stop, or leave it out and count it"
    )
    packing: bool = Field(
        False, description="several rows in one block of max_tokens, each seeing itself alone"
    )

    method: Method = Field("lora", description="what is trained")
    lora: LoraSettings = Field(
        default_factory=lambda: LoraSettings(dropout=0.05, adapter_layers=1.0),
        description="adapter of lora, dora, rslora and qlora; adapter_layers also of ia3 and adapters",
    )
    bottleneck: int = Field(32, ge=1, description="width of the modules of method adapters")
    virtual_tokens: int = Field(20, ge=1, description="trained positions of prefix-tuning and prompt-tuning")

    replay: str | None = Field(
        None, description="general text or demonstrations that are mixed in, so that less of it is forgotten"
    )
    replay_share: float = Field(0.2, gt=0, lt=1, description="share of the replayed rows in an epoch")
    kl_to_base: float = Field(
        0.0, ge=0, description="weight of KL(base || tuned) per token in the loss; 0 leaves it out"
    )
    kl_tokens: Literal["all", "replay"] = Field(
        "all", description="tokens that KL counts on: all that the loss does, or the replayed ones"
    )

    num_epochs: int = Field(3, ge=1, description="passes over the demonstrations, at most")
    batch_size: int = Field(16, ge=1, description="demonstrations (with packing: blocks) per optimizer step")
    micro_batch_size: int = Field(4, ge=1, description="demonstrations or blocks per forward and backward")
    eval_steps: int | None = Field(
        None, ge=1, description="optimizer steps between validations; default each epoch"
    )
    patience: int = Field(2, ge=1, description="validations without a better loss before it stops")
    gradient_checkpointing: bool = Field(False, description="recompute layers in the backward pass")
    neftune_alpha: float = Field(
        0.0, ge=0, description="noise on the embeddings in training (NEFTune), 5 is usual; 0 is none"
    )

    num_samples: int = Field(
        4, ge=0, description="validation prompts answered before and after, for the report"
    )
    sample_tokens: int = Field(48, ge=1, description="longest of these answers")
    optim: OptimSettings = Field(default_factory=_default_optim, description="optimizer")
    privacy: PrivacySettings = Field(
        default_factory=PrivacySettings,
        description="DP-SGD: a bound on what is given away (extra privacy)",
    )
    model: ModelSettings = Field(default_factory=ModelSettings, description="precision and device")
    tune: int = Field(
        0, ge=0, description="trials that first search lr, dropout, weight decay and epochs (extra: tune)"
    )
    seed: int = Field(0, ge=0, description="seed of adapter, split, order and dropout")

    @field_validator("data", "validation", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return () if value is None else (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_method(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optim = values.get("optim", _default_optim())
        optim = optim.model_dump() if isinstance(optim, OptimSettings) else optim
        rate = LEARNING_RATES.get(values.get("method", "lora"))
        if isinstance(optim, dict) and rate is not None:
            given = optim.get("lr")
            if given is None or (isinstance(given, float) and math.isnan(given)):
                optim = optim | {"lr": rate}
        return values | {"optim": optim}

    @model_validator(mode="after")
    def _fits_together(self) -> SFTConfig:
        if self.model.quantization != "none" and self.method != "qlora":
            raise ValueError(
                f"model.quantization is {self.model.quantization}; sft needs none with method {self.method} (a base "
                "in 4 bits is what method qlora trains on)"
            )
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be divisible by micro_batch_size ({self.micro_batch_size})"
            )
        if self.method in PROMPT_METHODS:
            self._check_prompt_method()
        self._check_files()
        self.privacy.check_beside(self)
        if self.tune and self.privacy.on:
            raise ValueError(
                "tune does not go with privacy: each trial reads the data too, and nobody counts what that gives away"
            )
        if self.kl_tokens == "replay" and not self.kl_to_base:
            raise ValueError(
                "kl_tokens is replay, and kl_to_base is 0; expected a weight above 0, or kl_tokens all"
            )
        if self.kl_tokens == "replay" and self.replay is None:
            raise ValueError("kl_tokens is replay, and replay names no file; expected one, or kl_tokens all")
        return self

    def _check_prompt_method(self) -> None:
        if self.packing:
            raise ValueError(
                f"packing does not go with {self.method}: each row needs the virtual tokens before it"
            )
        if self.gradient_checkpointing and self.method == "prefix-tuning":
            raise ValueError(
                "gradient_checkpointing does not go with prefix-tuning: a recomputed layer would not see the prefix"
            )

    def _check_files(self) -> None:
        for name in ("weights", "validation"):
            number = len(getattr(self, name))
            if number and number != len(self.data):
                raise ValueError(
                    f"{name} has {number} entries; expected one for each of {len(self.data)} data files"
                )
        if self.weights and not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"weights are {', '.join(map(str, self.weights))}; expected numbers above 0")

    def room(self, context: int) -> int:
        """The longest row, in tokens, in a model of this context."""
        limit = context - (self.virtual_tokens if self.method in PROMPT_METHODS else 0)
        return limit if self.max_tokens is None else min(self.max_tokens, limit)

    @property
    def base_settings(self) -> ModelSettings:
        """How the base is loaded: in 4 bits for qlora; in fp32 where its own weights are trained, since in bfloat16
        an update smaller than a 256th of a weight is rounded away."""
        change = {"qlora": {"quantization": "nf4"}, "full": {"dtype": "float32"}}.get(self.method, {})
        return self.model.model_copy(update=change)
