"""Settings of the feedback app's commands. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from feedback_app.formats.detect import Format
from rlhf.core.config import Positional, Settings

DEFAULT_PROJECT = "default"
SCOPES = ("read", "write", "admin", "metrics")
Fraction = Annotated[float, Field(ge=0, le=1)]


class AppConfig(Settings):
    """The rating desk: a web server over the feedback store."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(7860, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    public_hosts: tuple[str, ...] = Field(
        (),
        description="host names (with port if unusual) under which people reach the app; others are refused",
    )
    secure_cookies: bool = Field(False, description="set the Secure flag on cookies; for use behind TLS")
    trusted_proxy: bool = Field(False, description="take the client's address from X-Forwarded-For")
    lease_s: float = Field(
        900.0, gt=0, description="seconds a task is held for one annotator without a sign of life"
    )


class UsersConfig(Settings):
    """People who rate: add, disable, enable, password (a one-time link), list; sessions, revoke (log somebody out
    everywhere), erase (their ratings); tokens for programs."""

    action: Positional[
        Literal[
            "add",
            "disable",
            "enable",
            "password",
            "list",
            "sessions",
            "revoke",
            "erase",
            "token",
            "tokens",
            "revoke-token",
        ]
    ] = Field(description="what to do")
    name: Positional[str] = Field(
        "", description="the person's account name; for revoke-token, the token's id"
    )
    role: Literal["annotator", "lead", "admin"] = Field("annotator", description="role of a new account")
    password_stdin: bool = Field(False, description="read the password from standard input; no link is made")
    base_url: str = Field(
        "http://127.0.0.1:7860", description="where the app is reached, for the one-time link"
    )
    reason: str = Field("", max_length=500, description="why ratings are erased; kept in the store")
    account: bool = Field(False, description="erase: the account too, with its name; it cannot be used again")
    yes: bool = Field(False, description="erase: really; an erasure cannot be undone")
    scopes: tuple[str, ...] = Field(
        ("read",), description="what a new token may do: read,write,admin,metrics"
    )
    expires_days: float | None = Field(
        90.0, gt=0, le=3650, description="days until a new token ends; none for never"
    )
    label: str = Field("", max_length=128, description="what a new token is for, shown in the list of tokens")

    @field_validator("scopes", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        parts = [value] if isinstance(value, str) else value
        scopes = tuple(s.strip() for part in parts for s in str(part).split(",") if s.strip())
        wrong = [scope for scope in scopes if scope not in SCOPES]
        if wrong or not scopes:
            raise ValueError(f"expected some of {', '.join(SCOPES)}; found '{wrong[0] if wrong else ''}'")
        return scopes

    @model_validator(mode="after")
    def _needs_a_name(self) -> UsersConfig:
        if self.action not in ("list", "sessions", "tokens") and not self.name.strip():
            raise ValueError(f"'users {self.action}' needs a name; expected: rlhf users {self.action} NAME")
        return self


class ImportConfig(Settings):
    """Bring prompts, completions or existing ratings into the feedback store."""

    file: Positional[Path] = Field(description="JSONL, JSON, CSV or TSV (each also .gz), or Parquet")
    project: str = Field(DEFAULT_PROJECT, description="project that gets the tasks and ratings")
    format: Format = Field("auto", description="what a row looks like; auto looks at the columns of each row")
    task: Literal["", "pairwise", "ranking", "scores", "demonstration", "thumbs"] = Field(
        "", description="kind of task to make of the completions (default: a pairwise task for every pair)"
    )
    gold: bool = Field(
        False, description="the file's answers are the expected ones of gold items, not ratings of somebody"
    )
    overlap: int = Field(1, ge=1, description="how many different people rate each task")
    map: tuple[str, ...] = Field(
        (),
        description="columns called otherwise: ours=theirs, such as prompt=question completion=output.text",
    )
    ignore: tuple[str, ...] = Field((), description="columns to leave out; * for all that are not known")
    score_columns: tuple[str, ...] = Field((), description="columns that hold scores (format scores)")
    scale: tuple[float, float] | None = Field(
        None, description="lowest and highest score in the file, stretched over 1 to 5"
    )
    annotator: str = Field("imported", description="account that ratings without an annotator are booked on")
    simulated: bool = Field(False, description="mark what is imported as simulated, not written by people")
    quarantine: Path | None = Field(
        None, description="where bad rows go with the reason; default FILE.quarantine.jsonl"
    )
    rubric: Path | None = Field(None, description="text file with the rubric of a new project (Markdown)")

    @model_validator(mode="after")
    def _scale_is_one(self) -> ImportConfig:
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale needs a lowest below the highest score; found {self.scale}")
        if self.format == "scores" and not self.score_columns:
            raise ValueError("format scores needs --score-columns: the columns that hold scores")
        return self


class ExportConfig(Settings):
    """Write a snapshot of the ratings: JSONL split by prompt group, in TRL's columns, with a manifest."""

    project: str = Field(DEFAULT_PROJECT, description="project to export")
    seed: int = Field(0, description="seed of the split; the same seed keeps every prompt in its split")
    train: Fraction = Field(0.8, description="share of prompt groups for training")
    validation: Fraction = Field(0.1, description="share of prompt groups for validation; the rest is test")
    unpaired_from_pairs: bool = Field(
        False, description="write both sides of each decided pair into unpaired/, beside the thumbs"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> ExportConfig:
        if self.train + self.validation > 1 + 1e-9:
            raise ValueError(f"train + validation must be at most 1; found {self.train + self.validation:g}")
        return self

    @property
    def fractions(self) -> tuple[float, float, float]:
        return (self.train, self.validation, max(0.0, 1 - self.train - self.validation))


class BackupConfig(Settings):
    """Copy the feedback store into a folder (--out), while servers go on; the copy is checked."""


class RestoreConfig(Settings):
    """Bring a backup back into an empty place, or (--force) set aside what is there."""

    folder: Positional[Path] = Field(description="folder that `rlhf backup` wrote")
