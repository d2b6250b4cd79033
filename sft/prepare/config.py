"""Settings of `rlhf prepare`. Torch-free."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from rlhf.core.config import Settings

Layout = Literal[
    "auto",
    "alpaca",
    "sharegpt",
    "messages",
    "hh",
    "dolly",
    "prompt-completion",
    "text",
]


class PrepareConfig(Settings):
    """Clean, mask, deduplicate, filter, split and mix data for supervised tuning; writes what `rlhf sft` reads.

    OUT/train.jsonl, validation.jsonl, test.jsonl, quarantine.jsonl, report.html, report.json, manifest.json.
    """

    # ---- what is read
    data: tuple[str, ...] = Field(
        (),
        description="files (.jsonl, .json, .csv, .tsv, .parquet, .txt), or hub:ID[:SPLIT]; NAME=FILE names a source",
    )
    layout: Layout = Field("auto", description="how the rows are meant; auto tells it by their columns")
    map: tuple[str, ...] = Field((), description="old=new renames a column, such as question=prompt")
    separator: str = Field(
        "auto",
        description="what parts the documents of a .txt: a line of this text, 'blank' (empty lines) or 'line'; "
        "auto: <|endoftext|> lines where there are some, else empty lines",
    )
    label_column: str | None = Field(
        None, description="column with a label, kept for classification and skew"
    )
    difficulty_column: str | None = Field(None, description="column with a number, for --order difficulty")
    unique_ids: bool = Field(
        True, description="a second row of the same 'id' in a file with other content is put in quarantine"
    )
    max_line_bytes: int = Field(8 << 20, ge=64, description="longest line of a file that is read")
    max_file_bytes: int = Field(
        1 << 40, ge=1, description="largest file that is read, also when decompressed"
    )

    # ---- cleaning
    unicode: bool = Field(True, description="Unicode normal form NFC")
    control: bool = Field(True, description="take out control and invisible characters")
    whitespace: bool = Field(
        True, description="one form of line ends and spaces; no trailing ones, at most one empty line"
    )
    boilerplate: bool = Field(True, description="take out or drop what the patterns name")
    patterns: str | None = Field(
        None, description="YAML of boilerplate patterns; default: those that come along"
    )
    min_chars: int = Field(1, ge=1, description="shortest answer (or text without one), in characters")
    max_chars: int = Field(100_000, ge=1, description="longest row, all its texts together, in characters")
    model: str | None = Field(
        None, description="model whose tokenizer says what is too long: a directory, a run or a hub id"
    )
    max_tokens: int | None = Field(
        None, ge=8, description="longest row in tokens; default the model's context"
    )
    keep: str | None = Field(None, description="regular expression that a row must contain")
    drop: str | None = Field(None, description="regular expression that a row must not contain")
    languages: tuple[str, ...] = Field(
        (), description="ISO 639-1 codes that are kept, such as en de; none: all"
    )
    language_min_confidence: float = Field(
        0.7, ge=0, le=1, description="rows of which the language is less certain are kept"
    )

    # ---- personal data
    pii: Literal["mask", "drop", "report", "off"] = Field(
        "mask", description="personal data: masks such as [EMAIL], drop the row, count only, do not look"
    )
    pii_engine: Literal["patterns", "presidio"] = Field(
        "patterns",
        description="presidio (extra) also finds names and places with a language model of its own",
    )
    pii_model: str | None = Field(
        None,
        description="spaCy model of presidio: an installed one, such as en_core_web_md, or its folder; default the "
        "largest installed one for English",
    )
    phone_region: str | None = Field(
        "US", pattern=r"^[A-Z]{2}$", description="country of phone numbers without +; none: those are left"
    )

    # ---- duplicates and leaks
    duplicates: bool = Field(True, description="of rows with the same texts the first is kept")
    near_duplicates: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Jaccard similarity of character 5-grams from which rows are the same; 0 off",
    )
    near_duplicates_max_rows: int = Field(
        5_000_000, ge=0, description="with more rows than this only exact duplicates are looked for"
    )
    check: tuple[str, ...] = Field((), description="evaluation files that no row may leak")

    # ---- splits, mixture, order
    validation_fraction: float = Field(0.05, ge=0, lt=1, description="share of the prompt families")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of the prompt families")
    weights: str | None = Field(
        None, description="share of each source in training, such as a=2,b=1; default: all rows of all"
    )
    balance: Literal["none", "source", "label"] = Field(
        "none", description="as many training rows of each source or label"
    )
    repeat: bool = Field(
        False,
        description="weights and balance repeat rows of what is rare, and drop none of what is frequent",
    )
    order: Literal["shuffle", "keep", "length", "difficulty"] = Field(
        "shuffle", description="of the training rows; length and difficulty begin with the easy ones"
    )
    seed: int = Field(0, ge=0, description="seed of splits, sampling and order")

    @model_validator(mode="after")
    def _fits_together(self) -> PrepareConfig:
        if self.validation_fraction + self.test_fraction >= 1:
            total = self.validation_fraction + self.test_fraction
            raise ValueError(f"validation_fraction + test_fraction is {total:g}; expected less than 1")
        if self.weights and self.balance != "none":
            raise ValueError("weights and balance exclude each other; expected one of them")
        if self.balance == "label" and not self.label_column:
            raise ValueError("balance 'label' needs label_column")
        if self.order == "difficulty" and not self.difficulty_column:
            raise ValueError("order 'difficulty' needs difficulty_column")
        if self.max_tokens and not self.model:
            raise ValueError("max_tokens needs model, whose tokenizer counts")
        if self.max_chars < self.min_chars:
            raise ValueError(f"max_chars ({self.max_chars}) is less than min_chars ({self.min_chars})")
        for name in ("keep", "drop"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise ValueError(f"{name} is no regular expression ({error})") from error
        return self
