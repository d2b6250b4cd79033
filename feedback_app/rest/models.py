"""What the API takes and gives. Times are seconds since the epoch, UTC."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from rlhf.core.records import Message, TaskKind

Name = Annotated[str, Path(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Id = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:\-]+$")]
IdText = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:\-]+$")]
NameText = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Field(max_length=100_000, pattern=r"^[^\x00]*$")]
MAX_ITEMS = 1000


class In(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class Me(Out):
    annotator_id: str
    name: str
    role: str
    scopes: list[str] | None = Field(description="of the token; null for a session, which has no scopes")


class Attribute(In):
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
    definition: Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*$")] = ""


class ProjectIn(In):
    project: NameText
    title: Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")] | None = None
    rubric: Text | None = Field(default=None, description="Markdown; the default rubric if missing")
    attributes: tuple[Attribute, ...] = Field(default=(), max_length=20)


class Project(Out):
    project: str
    title: str
    purpose: str
    simulated: bool
    rubric_version: int
    rubric_title: str
    rubric: str
    attributes: list[dict[str, Any]]
    num_open: int
    settings: dict[str, Any]
    created_at: float
    archived_at: float | None


class Projects(Out):
    items: list[Project]


class PromptIn(In):
    prompt: Text | tuple[Message, ...] = Field(
        description="text, or messages that end with the turn to answer"
    )
    prompt_id: IdText | None = None
    group_id: Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")] | None = None
    source: Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")] = ""
    context: Text | None = None


class PromptsIn(In):
    items: tuple[PromptIn, ...] = Field(min_length=1, max_length=MAX_ITEMS)


class Prompt(Out):
    prompt_id: str
    messages: list[dict[str, Any]]
    source: str
    group_id: str
    context: str | None
    created_at: float


class Prompts(Out):
    items: list[Prompt]
    next: str | None


class CompletionIn(In):
    prompt_id: IdText
    text: Text
    model_id: Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")] = ""
    completion_id: IdText | None = None


class CompletionsIn(In):
    items: tuple[CompletionIn, ...] = Field(min_length=1, max_length=MAX_ITEMS)


class Completion(Out):
    completion_id: str
    prompt_id: str
    text: str
    model_id: str
    created_at: float


class Completions(Out):
    items: list[Completion]
    next: str | None


class Added(Out):
    ids: list[str] = Field(description="of all that were sent, in their order")
    new: int = Field(description="how many of them were not there before")


class TaskIn(In):
    prompt_id: IdText
    completion_ids: tuple[IdText, ...] = Field(default=(), max_length=9)


class TasksIn(In):
    kind: TaskKind = "pairwise"
    items: tuple[TaskIn, ...] = Field(min_length=1, max_length=MAX_ITEMS)
    overlap: int = Field(default=1, ge=1, le=1000)


class TaskIds(Out):
    ids: list[str]


class Task(Out):
    task_id: str
    kind: str
    pool: str
    prompt_id: str
    completion_ids: list[str]
    overlap: int
    num_done: int
    num_held: int
    is_open: bool
    dispute: str | None
    created_at: float
    retired_at: float | None


class Tasks(Out):
    items: list[Task]
    next: str | None


class Annotation(Out):
    annotation_id: str
    task_id: str
    annotator_id: str
    kind: str
    purpose: str
    version: int
    preference: str | None
    strength: int | None
    ranking: list[list[str]] | None
    scores: dict[str, dict[str, int]] | None
    thumb: str | None
    demonstration: str | None
    reason: str
    flags: list[str]
    shown_order: list[str]
    seconds: float | None
    surplus: bool
    simulated: bool
    created_at: float


class Annotations(Out):
    items: list[Annotation]
    next: str | None


class BadRow(Out):
    line: int
    reason: str


class Import(Out):
    rows: int
    bad_rows: int
    first_bad: list[BadRow] = Field(description="up to 20 of them")
    prompts: int
    completions: int
    tasks: int
    ratings: int
    known_ratings: int
    corrected: int
    gold: int
    too_few: int


class SnapshotIn(In):
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    train: float = Field(default=0.8, ge=0, le=1)
    validation: float = Field(default=0.1, ge=0, le=1)
    unpaired_from_pairs: bool = False


class Snapshot(Out):
    snapshot_id: str
    project: str
    content_hash: str
    created_at: float
    simulated: bool
    files: list[str] = Field(description="what can be fetched from .../files/{name}")


class Snapshots(Out):
    items: list[Snapshot]


class Figures(Out):
    """Agreement of a project's pairwise answers; null where it is undefined."""

    alpha: float | None
    alpha_low: float | None
    alpha_high: float | None
    raw_agreement: float | None
    num_items: int
    num_pairs: int
    num_annotators: int


class UserIn(In):
    name: NameText
    role: Literal["annotator", "lead", "admin"] = "annotator"


class UserChange(In):
    disabled: bool


class User(Out):
    annotator_id: str
    name: str
    role: str
    simulated: bool
    disabled: bool
    has_password: bool


class Users(Out):
    items: list[User]


class NewUser(User):
    welcome: str | None = Field(description="path of a one-time link to set the password; told only once")
