"""Settings of `rlhf reward-eval`. Torch-free."""

from __future__ import annotations

from pydantic import Field

from rlhf.core.config import Settings
from rlhf.core.settings import ModelSettings


class RewardEvalConfig(Settings):
    """Examine a reward model: accuracy beside raters and baselines, slices, length, calibration, attacks, bias.

    Writes reward_eval.html, reward_eval.json and scores.jsonl to --out, by default runs/NAME-eval in the workspace.
    """

    reward: str | None = Field(
        None, description="reward run, adapter directory, or any sequence-classification model (NAME#LABEL)"
    )
    backbone: str | None = Field(None, description="the model it sits on; default the one the adapter names")
    snapshot: str | None = Field(
        None,
        description="snapshot directory, or one JSONL of preferences; its test split is used. "
        "Default: the one that the run was trained on",
    )
    set: tuple[str, ...] = Field(
        (), description="files of {prompt, chosen, rejected, subset, id} rows in RewardBench's format"
    )
    terms: str | None = Field(
        None,
        description="YAML of term pairs and templates for the bias figures; default: those that come along",
    )
    num_probes: int = Field(
        300, ge=1, description="held-out completions that are spoiled, reformatted and swapped, at most"
    )
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    model: ModelSettings = Field(default_factory=ModelSettings)
    seed: int = Field(0, ge=0, description="seed of the probes and the bootstrap")
