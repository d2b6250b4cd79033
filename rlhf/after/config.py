"""Settings of `rlhf publish`, `merge` and `distill`. Torch-free."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlhf.core.config import Settings
from rlhf.core.settings import ModelSettings, OptimSettings

Combination = Literal["linear", "ties", "dare_linear", "dare_ties", "svd"]
# Combinations that keep only a share of each adapter's numbers.
SPARSE: tuple[Combination, ...] = ("ties", "dare_linear", "dare_ties")

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


class PublishConfig(Settings):
    """A finished run as a folder of safetensors with a model card; pushed to the hub only when asked."""

    run: str | None = Field(None, description="the finished run")
    what: Literal["auto", "model", "adapter"] = Field(
        "auto", description="which result of the run: its whole model where it has one, else its adapter"
    )
    name: str | None = Field(None, description="title of the card; default the name of the run")
    license: str | None = Field(
        None,
        description="the model's licence as the hub abbreviates it, such as apache-2.0; the base's binds you too",
    )
    intended_use: str = Field("", description="for what and for whom it is meant, in your words")
    limits: str = Field("", description="what it must not be used for and what it is known to do badly")
    data: str = Field(
        "", description="what it was trained on, in your words: where from, under which licence"
    )
    base_name: str | None = Field(
        None, description="hub id of an adapter's base, where the run names a folder of the workspace"
    )
    push_to: str | None = Field(
        None, description="owner/name on the hub; without it nothing leaves this machine"
    )
    public: bool = Field(False, description="with push_to: for everybody to see; default private")

    @field_validator("push_to", "base_name")
    @classmethod
    def _is_a_repository(cls, value: str | None) -> str | None:
        if value is not None and not _REPOSITORY.fullmatch(value):
            raise ValueError(f"expected owner/name; found '{value}'")
        return value


class MergeConfig(Settings):
    """One adapter, or a weighted combination of several, folded into the base; with data, how good each is on it."""

    adapters: tuple[str, ...] = Field((), description="runs or adapter directories on one base")
    weights: tuple[float, ...] = Field(
        (), description="how much of each adapter goes in; default one share each of 1 / their number"
    )
    how: Combination = Field(
        "linear",
        description="several adapters: linear (sum of the matrices), ties (arXiv:2306.01708), dare_* "
        "(arXiv:2311.03099), svd (of the summed updates: exact up to svd_rank)",
    )
    density: float = Field(
        0.5, gt=0, le=1, description="ties, dare_*: share of each adapter's numbers that is kept"
    )
    svd_rank: int | None = Field(
        None, ge=1, description="svd: rank of the result; default the sum of the ranks"
    )
    data: str | None = Field(
        None, description="held-out demonstrations: loss of the base, of each adapter alone and of the result"
    )
    base: str | None = Field(None, description="the base, where it is no longer where the adapters name it")
    model: ModelSettings = Field(default_factory=ModelSettings, description="precision and device")
    seed: int = Field(0, ge=0, description="seed of what dare drops")

    @model_validator(mode="after")
    def _fits_together(self) -> MergeConfig:
        if self.weights and len(self.weights) != len(self.adapters):
            raise ValueError(
                f"weights are {len(self.weights)} and adapters {len(self.adapters)}; expected as many"
            )
        if self.model.quantization != "none":
            raise ValueError(
                f"model.quantization is {self.model.quantization}; a base in 4 bits is never merged (expected none)"
            )
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each adapter; one alone goes in whole."""
        return self.weights or tuple(1 / len(self.adapters) for _ in self.adapters)


class DistillConfig(Settings):
    """A smaller student that learns the next-token distributions of a teacher on demonstrations."""

    teacher: str | None = Field(None, description="the model to learn from: a run, a directory or a hub id")
    student: str | None = Field(None, description="the model that learns, with the teacher's vocabulary")
    student_layers: int | None = Field(
        None, ge=1, description="instead of student: this many of the teacher's layers, evenly spread, copied"
    )
    data: str | None = Field(None, description="demonstrations to learn on")
    test_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the prompts that only the final comparison sees"
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the other prompts that chooses the best epoch"
    )
    beta: float = Field(
        0.5,
        ge=0,
        le=1,
        description="generalised Jensen-Shannon divergence: 0 is KL(teacher || student), 1 KL(student || teacher)",
    )
    temperature: float = Field(1.0, gt=0, description="both distributions are taken at this temperature")
    distill_weight: float = Field(
        0.9,
        gt=0,
        le=1,
        description="weight of the divergence; the rest is the loss on the demonstrations' own tokens",
    )
    compare: bool = Field(
        True,
        description="also train the same student without the teacher, with as many steps, for the comparison",
    )
    num_epochs: int = Field(3, ge=1, description="passes over the demonstrations, at most")
    batch_size: int = Field(16, ge=1, description="demonstrations per optimizer step")
    micro_batch_tokens: int = Field(4096, ge=1, description="padded tokens per forward and backward")
    patience: int = Field(2, ge=1, description="epochs without a better validation loss before it stops")
    optim: OptimSettings = Field(
        default_factory=lambda: OptimSettings(lr=5e-4, schedule="cosine", warmup_steps=10),
        description="optimizer",
    )
    model: ModelSettings = Field(
        default_factory=ModelSettings, description="precision and device of the teacher"
    )
    seed: int = Field(0, ge=0, description="seed of split and order")

    @model_validator(mode="after")
    def _fits_together(self) -> DistillConfig:
        if self.student and self.student_layers:
            raise ValueError("student and student_layers were both given; expected one of them")
        return self
