"""Settings of `rlhf sample` and `rlhf evaluate`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf.core.config import Settings
from rlhf.core.settings import ModelSettings, SamplingSettings


class SampleConfig(Settings):
    """Write completions of a model into the feedback store as pairwise tasks."""

    model_path: str | None = Field(None, description="model directory, ppo run, adapter directory or hub id")
    prompts: str | None = Field(None, description="JSONL of prompts")
    project: str = Field("default", description="project of the feedback store that gets the tasks")
    samples_per_prompt: int = Field(
        2, ge=2, description="completions per prompt; 1st with 2nd, 3rd with 4th, ..."
    )
    overlap: int = Field(1, ge=1, description="annotators per task")
    max_prompts: int | None = Field(
        None, ge=1, description="take this many prompts from the start of the file"
    )
    sampling: SamplingSettings = Field(default_factory=SamplingSettings)
    on_long_prompt: Literal["error", "drop"] = Field(
        "error", description="a prompt that does not fit the context: stop, or leave it out and count it"
    )
    simulated: bool = Field(False, description="label project and tasks as simulated")
    model: ModelSettings = Field(default_factory=ModelSettings)
    seed: int = Field(0, ge=0, description="seed of the sampling")


class EvaluateConfig(Settings):
    """Win rate of a candidate over a baseline on held-out prompts, with what it cost in KL, length and diversity."""

    candidate: str | None = Field(None, description="ppo run, adapter directory or model directory")
    baseline: str | None = Field(None, description="the same kinds; default the candidate's backbone")
    prompts: str | None = Field(None, description="JSONL of held-out prompts")
    judge: str | None = Field(
        None,
        description="reward run, or file.py:function of (prompts, completions) -> scores "
        "or of (prompts, first, second) -> positive where the first is better, "
        "or 'people': blind pairs on the rating desk; run the command again for the answers so far",
    )
    project: str | None = Field(
        None,
        description="with --judge people: project of the feedback store that gets the pairs; default a new one",
    )
    overlap: int = Field(1, ge=1, description="with --judge people: annotators per pair")
    sampling: SamplingSettings = Field(default_factory=SamplingSettings)
    max_prompts: int | None = Field(
        None, ge=1, description="take this many prompts from the start of the file"
    )
    on_long_prompt: Literal["error", "drop"] = Field(
        "error", description="a prompt that does not fit the context: stop, or leave it out and count it"
    )
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    num_resamples: int = Field(2000, ge=100, description="bootstrap resamples of the intervals")
    model: ModelSettings = Field(default_factory=ModelSettings)
    seed: int = Field(0, ge=0, description="seed of sampling and bootstrap")
