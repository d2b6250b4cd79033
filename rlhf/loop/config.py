"""Settings of `rlhf sample`, `evaluate`, `adjudicate` and `reward-history`. Torch-free."""

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


class AdjudicateConfig(Settings):
    """Send back to the rating desk what a reward model contradicts, and what it cannot decide.

    Ratings that the model gives a small probability become disputes for a lead; undecided pairs come next on the
    desk, and those that one person alone has rated are asked once more. The same command again changes nothing.
    """

    reward: str | None = Field(
        None, description="reward run, adapter directory, or any sequence-classification model (NAME#LABEL)"
    )
    snapshot: str | None = Field(None, description="snapshot directory of `rlhf export` with the ratings")
    project: str | None = Field(
        None, description="project of the feedback store; default the one that the snapshot was exported from"
    )
    threshold: float = Field(
        0.1, gt=0, lt=0.5, description="a rating is contradicted below this calibrated probability"
    )
    contradicted: int = Field(50, ge=0, description="tasks that are brought before a lead, at most")
    uncertain: int = Field(
        100, ge=0, description="open pairs that are moved to the front of the queue, at most"
    )
    second_opinions: int = Field(
        50, ge=0, description="uncertain pairs rated by one person that are asked once more, at most"
    )
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    model: ModelSettings = Field(default_factory=ModelSettings)


class RewardHistoryConfig(Settings):
    """How each new batch of ratings moved accuracy: every finished reward run on the same held-out prompts."""

    snapshot: str | None = Field(
        None, description="snapshot whose test split all runs are measured on, mostly the newest"
    )
    runs: tuple[str, ...] = Field(
        (), description="reward runs to compare; default all finished ones of the workspace"
    )
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    num_resamples: int = Field(2000, ge=100, description="bootstrap resamples of the intervals")
    model: ModelSettings = Field(default_factory=ModelSettings)
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
