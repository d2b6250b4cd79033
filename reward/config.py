"""Settings of `rlhf reward` and `rlhf score`. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from tyro.conf import Positional

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings


class RewardConfig(Settings):
    """Train a scalar reward on what people said: an adapter and a score head over the frozen backbone."""

    backbone: str | None = Field(None, description="the supervised model that the adapter sits on")
    snapshot: str | None = Field(
        None, description="snapshot directory of `rlhf export`, or one JSONL of preferences"
    )

    learn_from: tuple[Literal["pairs", "rankings", "scores", "thumbs"], ...] = Field(
        ("pairs", "rankings", "scores", "thumbs"),
        description="kinds of answers that count, where there are any",
    )
    pair_loss: Literal["bradley-terry", "davidson", "rao-kupper"] = Field(
        "bradley-terry",
        description="model of a comparison; the other two have a probability of ties of their own",
    )
    rankings: Literal["pairs", "plackett-luce"] = Field(
        "pairs", description="a ranking as all its pairs, sharing the weight of one, or as a list"
    )
    ties: Literal["half", "ignore"] = Field(
        "half", description="a tie is half a win for each side (or the tie of pair_loss), or left out"
    )
    use_weights: bool = Field(True, description="weight comparisons by the snapshot's weights")
    rater_weights: Literal["none", "dawid-skene", "crowd-bt"] = Field(
        "none", description="weight answers by how reliable each rater is estimated to be"
    )
    rater_labels: Literal["answers", "posterior"] = Field(
        "answers",
        description="what a comparison is trained towards: what each rater said, or the verdict that all answers "
        "together make likely, counted by how sure it is (needs rater_weights)",
    )
    margin_scale: float = Field(
        0.0, ge=0, description="Llama-2 margin per unit of strength; 0 is plain Bradley-Terry"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is wrong")
    center_coef: float = Field(0.01, ge=0, description="pulls the sum of the two scores of a pair to 0")
    scores_coef: float = Field(1.0, gt=0, description="weight of a rated completion beside a comparison")
    thumbs_coef: float = Field(1.0, gt=0, description="weight of a thumb beside a comparison")
    attribute_weights: dict[str, float] = Field(
        default_factory=dict,
        description="the score as this sum of attribute heads, in their deviations; default the head of the "
        "comparisons, or the mean attribute where there are only attribute scores",
    )

    num_epochs: int = Field(4, ge=1, description="passes over the examples, at most")
    batch_pairs: int = Field(
        32, ge=1, description="comparisons (or rankings, rated completions) per optimizer step"
    )
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward and backward")
    patience: int = Field(2, ge=1, description="epochs without a better validation loss before it stops")
    tune: int = Field(
        0, ge=0, description="trials that search lr, dropout, weight decay and epochs (extra: tune)"
    )
    ensemble: int = Field(
        1, ge=1, description="members; each sees the prompts resampled, their spread is the doubt"
    )
    ensemble_of: Literal["heads", "adapters"] = Field(
        "heads", description="members share one adapter, or each has its own (as many passes per score)"
    )
    prompt_part: Literal["all", "main", "judge"] = Field(
        "all", description="train on all prompts, or on one of two disjoint parts (a held-out judge for PPO)"
    )
    judge_share: float = Field(0.3, gt=0, lt=1, description="share of the prompts in the part called judge")
    near_duplicates: float = Field(
        0.8, ge=0, le=1, description="prompts at least so similar (Jaccard) are kept in one split; 0 is off"
    )
    max_tokens: int | None = Field(
        None, ge=8, description="longest prompt + completion; default the model's context"
    )
    on_too_long: Literal["error", "drop"] = Field(
        "error", description="an example longer than max_tokens: stop, or leave it out and count it"
    )

    method: Literal["lora", "full"] = Field(
        "lora", description="train an adapter over the frozen backbone, or all weights of a model of its own"
    )
    lora: LoraSettings = Field(default_factory=lambda: LoraSettings(dropout=0.05))
    optim: OptimSettings = Field(
        default_factory=lambda: OptimSettings(lr=5e-4, schedule="cosine", warmup_steps=10, weight_decay=0.01)
    )
    head_lr: float | None = Field(None, gt=0, description="learning rate of the score head; default optim.lr")
    model: ModelSettings = Field(default_factory=ModelSettings)
    trunk_cache: bool = Field(True, description="compute the layers below the adapter once for all epochs")
    trunk_cache_gib: float = Field(8.0, gt=0, description="memory for the cached trunk states")
    save_steps: int = Field(
        200, ge=1, description="optimizer steps between checkpoints; also after every epoch"
    )
    seed: int = Field(0, ge=0, description="seed of adapter, order and dropout")

    @model_validator(mode="after")
    def _fits_together(self) -> RewardConfig:
        if not self.learn_from:
            raise ValueError("learn_from is empty; expected some of pairs, rankings, scores, thumbs")
        if self.rater_labels == "posterior" and self.rater_weights == "none":
            raise ValueError(
                "rater_labels posterior rests on reliabilities; expected rater_weights dawid-skene or crowd-bt"
            )
        if self.attribute_weights and "scores" not in self.learn_from:
            raise ValueError("attribute_weights need 'scores' in learn_from")
        if self.attribute_weights and self.ensemble > 1:
            raise ValueError(
                "ensemble has members of the comparisons' score; found attribute_weights beside it"
            )
        if self.method == "full" and (self.model.quantization != "none" or self.model.dtype != "float32"):
            raise ValueError(
                "method full trains the weights themselves; expected model.dtype float32, not quantized"
            )
        if self.method == "full" and self.ensemble > 1 and self.ensemble_of == "adapters":
            raise ValueError("method full has no adapters; expected ensemble_of heads")
        if self.method == "full" and self.tune:
            raise ValueError("tune searches adapters; expected method lora")
        return self


class ScoreConfig(Settings):
    """Score completions with a reward run: reads {"prompt", "completion"} rows, adds "score" to each.

    The result goes to --out, by default FILE with .scored.jsonl.
    """

    file: Positional[str] = Field(description="JSONL with prompt (text or messages) and completion (text)")
    reward: str | None = Field(
        None, description="reward run, adapter directory, or any sequence-classification model (NAME#LABEL)"
    )
    backbone: str | None = Field(None, description="the model it sits on; default the one the adapter names")
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    on_too_long: Literal["error", "drop", "truncate-left"] = Field(
        "error",
        description="a row longer than the context: stop, give it no score and count it, or leave out the beginning",
    )
    model: ModelSettings = Field(default_factory=ModelSettings)
