"""Settings of `rlhf reward` and `rlhf score`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from tyro.conf import Positional

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings


class RewardConfig(Settings):
    """Train a scalar reward on comparisons: an adapter and a score head over the frozen backbone."""

    backbone: str | None = Field(None, description="the supervised model that the adapter sits on")
    snapshot: str | None = Field(
        None, description="snapshot directory of `rlhf export`, or one JSONL of preferences"
    )

    num_epochs: int = Field(4, ge=1, description="passes over the comparisons, at most")
    batch_pairs: int = Field(32, ge=1, description="comparisons per optimizer step")
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward and backward")
    patience: int = Field(2, ge=1, description="epochs without a better validation loss before it stops")
    ties: Literal["half", "ignore"] = Field(
        "half", description="a tie is half a win for each side, or left out"
    )
    use_weights: bool = Field(True, description="weight comparisons by the snapshot's weights")
    margin_scale: float = Field(
        0.0, ge=0, description="Llama-2 margin per unit of strength; 0 is plain Bradley-Terry"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is wrong")
    center_coef: float = Field(0.01, ge=0, description="pulls the sum of the two scores of a pair to 0")
    max_tokens: int | None = Field(
        None, ge=8, description="longest prompt + completion; default the model's context"
    )
    on_too_long: Literal["error", "drop"] = Field(
        "error", description="a comparison longer than max_tokens: stop, or leave it out and count it"
    )

    lora: LoraSettings = Field(default_factory=lambda: LoraSettings(dropout=0.05))
    optim: OptimSettings = Field(
        default_factory=lambda: OptimSettings(lr=5e-4, schedule="cosine", warmup_steps=10, weight_decay=0.01)
    )
    head_lr: float | None = Field(None, gt=0, description="learning rate of the score head; default optim.lr")
    model: ModelSettings = Field(default_factory=ModelSettings)
    trunk_cache: bool = Field(True, description="compute the layers below the adapter once for all epochs")
    trunk_cache_gib: float = Field(8.0, gt=0, description="memory for the cached trunk states")
    seed: int = Field(0, ge=0, description="seed of adapter, order and dropout")


class ScoreConfig(Settings):
    """Score completions with a reward run: reads {"prompt", "completion"} rows, adds "score" to each.

    The result goes to --out, by default FILE with .scored.jsonl.
    """

    file: Positional[str] = Field(description="JSONL with prompt (text or messages) and completion (text)")
    reward: str | None = Field(None, description="reward run or adapter directory")
    backbone: str | None = Field(None, description="the model it sits on; default the one the adapter names")
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    model: ModelSettings = Field(default_factory=ModelSettings)
