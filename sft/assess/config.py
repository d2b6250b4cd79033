"""Settings of `rlhf sft-eval`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf.core.config import Settings
from rlhf.core.settings import ModelSettings, SamplingSettings


class HarnessSettings(Settings):
    """Tasks of EleutherAI's lm-evaluation-harness (extra lm-eval)."""

    tasks: tuple[str, ...] = Field((), description="names of tasks, such as arc_easy; none by default")
    include: str | None = Field(None, description="folder of task files of your own (YAML)")
    shots: int | None = Field(None, ge=0, description="examples per question; default what each task says")
    limit: int | None = Field(None, ge=1, description="take this many questions of each task")
    batch_size: int = Field(8, ge=1, description="questions per forward")


class SFTEvalConfig(Settings):
    """Examine a tuned model: held-out quality beside the base and few-shot prompting of it, what was forgotten, drift
    of facts, bias in outputs.

    Writes sft_eval.html, sft_eval.json and answers.jsonl to --out, by default runs/NAME-eval in the workspace.
    """

    model: str | None = Field(None, description="sft run, model directory, adapter directory or hub id")
    data: str | None = Field(
        None,
        description='held-out rows: {"prompt", "completion"} (also "references", "context") or {"text"}; '
        "JSONL, JSON, CSV or Parquet",
    )
    base: str | None = Field(None, description="the untouched model; default the one that --model came from")
    train: tuple[str, ...] = Field(
        (), description="demonstrations that few-shot examples are drawn from; default those of the run"
    )
    shots: int = Field(4, ge=0, description="examples before each prompt of the base; 0 leaves few-shot out")
    shot_join: Literal["auto", "blank-line", "end-token"] = Field(
        "auto",
        description="what stands between examples where the base has no chat template; auto takes what makes "
        "training answers likelier",
    )
    judge_by: Literal["nll", "exact_match", "token_f1", "bleu", "rouge_1", "rouge_2", "rouge_l"] = Field(
        "token_f1", description="the measure that says whether tuning beats few-shot prompting"
    )
    general: str | None = Field(
        None, description='text of no special domain, {"text"} or demonstrations: what tuning must not lose'
    )
    num_own: int = Field(
        64, ge=0, description="completions that the base draws itself and both models are measured on"
    )
    questions: str | None = Field(
        None,
        description='fixed questions, {"prompt", "completion"}: which answers turned from right to wrong',
    )
    right_when: Literal["contains", "exact"] = Field(
        "contains", description="an answer is right that holds, or that is, an expected one (normalised)"
    )
    terms: str | None = Field(
        None,
        description="YAML of term pairs and templates for the bias figures; default: those that come along",
    )
    num_probes: int = Field(
        50, ge=0, description="held-out prompts whose terms are swapped, and templates that are answered"
    )
    max_items: int | None = Field(None, ge=1, description="take this many rows from the start of --data")
    sampling: SamplingSettings = Field(
        default_factory=lambda: SamplingSettings(temperature=0.0), description="how answers are drawn"
    )
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    harness: HarnessSettings = Field(
        default_factory=HarnessSettings, description="lm-evaluation-harness, extra lm-eval"
    )
    load: ModelSettings = Field(
        default_factory=ModelSettings, description="how both models are held: precision and device"
    )
    seed: int = Field(0, ge=0, description="seed of examples, samples and bootstrap")

    @model_validator(mode="after")
    def _fits_together(self) -> SFTEvalConfig:
        asked = [
            f"harness.{name}"
            for name in ("include", "shots", "limit")
            if getattr(self.harness, name) is not None
        ]
        if asked and not self.harness.tasks:
            raise ValueError(f"{asked[0]} is given without harness.tasks; expected the tasks to run")
        return self
