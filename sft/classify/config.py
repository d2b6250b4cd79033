"""Settings of `rlhf classify` and `rlhf label`. Torch-free."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from tyro.conf import Positional

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings


class ClassifyLora(LoraSettings):
    """Low-rank adapters on the linear layers of the blocks, or on those that are named."""

    target_modules: tuple[str, ...] = Field(
        (),
        description="linear layers by the end of their names, as in q_lin,v_lin; default all of the blocks",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            return value
        return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())


class ClassifyConfig(Settings):
    """Sequence classification with an encoder or a decoder: LoRA or all weights, and a report on held-out texts."""

    base: str | None = Field(None, description="model to tune: a directory, a run or a hub id")
    data: str | None = Field(
        None, description='labelled rows {"text", "label"}: .jsonl, .json, .csv, .tsv or .parquet'
    )
    validation: str | None = Field(
        None, description="labelled rows that choose the best step; default a share of the data"
    )
    test: str | None = Field(
        None, description="labelled rows that the report is about; default a share of the data"
    )
    text_column: str = Field("text", min_length=1, description="column of the text")
    label_column: str = Field("label", min_length=1, description="column of the label: text or whole numbers")
    group_column: str | None = Field(
        None, description="column whose equal values are kept in one split, such as a customer or a document"
    )
    labels: tuple[str, ...] = Field(
        (), description="the labels in their order; default those of the training rows, sorted"
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the families held out for choosing"
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share of the families held out for the report")
    near_duplicates: float = Field(
        0.8, ge=0, le=1, description="texts at least so similar (Jaccard) are one family; 0: only equal ones"
    )
    max_tokens: int | None = Field(None, ge=2, description="longest text; default the model's context")
    on_too_long: Literal["error", "drop", "truncate"] = Field(
        "error", description="a text longer than max_tokens: stop, leave it out, or cut its end off; counted"
    )

    method: Literal["lora", "full"] = Field(
        "lora", description="train an adapter and the head, or all weights"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: each label counts alike in the loss, however often it occurs"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over all labels")
    num_epochs: int = Field(10, ge=1, description="passes over the training texts, at most")
    batch_size: int = Field(16, ge=1, description="texts per optimizer step")
    micro_batch_tokens: int = Field(8192, ge=1, description="padded tokens per forward and backward")
    eval_steps: int | None = Field(
        None, ge=1, description="optimizer steps between validations; default each epoch"
    )
    patience: int = Field(3, ge=1, description="validations without a better one before it stops")
    choose_by: Literal["loss", "macro_f1"] = Field("loss", description="what makes a validation the best")
    save_steps: int = Field(
        200, ge=1, description="optimizer steps between checkpoints; also at each validation"
    )

    lora: ClassifyLora = Field(
        default_factory=lambda: ClassifyLora(dropout=0.05, adapter_layers=1.0), description="adapter"
    )
    optim: OptimSettings = Field(
        default_factory=lambda: OptimSettings(
            lr=5e-4, beta2=0.999, schedule="linear", warmup_steps=10, weight_decay=0.01
        ),
        description="optimizer",
    )
    head_lr: float | None = Field(None, gt=0, description="learning rate of the head; default optim.lr")
    model: ModelSettings = Field(default_factory=ModelSettings, description="precision and device")
    seed: int = Field(0, ge=0, description="seed of head, adapter, split, order and dropout")

    @model_validator(mode="after")
    def _fits_together(self) -> ClassifyConfig:
        if self.model.quantization != "none":
            raise ValueError(f"model.quantization is {self.model.quantization}; classify needs none")
        if self.method == "full" and self.model.dtype != "float32":
            raise ValueError("method full trains the weights themselves; expected model.dtype float32")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction ({self.validation_fraction}) and test_fraction ({self.test_fraction}) leave "
                "nothing to train on"
            )
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"labels: expected at least two different ones; found {', '.join(self.labels)}")
        return self


class LabelConfig(Settings):
    """Label the texts of a file with a classify run: adds "predicted", "probability" and "probabilities" to each row.

    Where the file holds labels too, the report of `rlhf classify` is made for them.
    """

    file: Positional[str] = Field(description="rows with a text: .jsonl, .json, .csv, .tsv or .parquet")
    classifier: str | None = Field(
        None, description="a finished classify run, or its adapter or model folder"
    )
    base: str | None = Field(None, description="the model under an adapter; default the one that it names")
    text_column: str | None = Field(None, description="column of the text; default that of the training rows")
    label_column: str | None = Field(
        None, description="column of the label; default that of the training rows, where the file has it"
    )
    on_too_long: Literal["error", "drop", "truncate"] = Field(
        "error", description="a text longer than the classifier takes: stop, no label, or cut its end off"
    )
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    model: ModelSettings = Field(default_factory=ModelSettings, description="precision and device")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
