"""The records that flow between people, the store and the stages. Torch-free; pydantic checks every field.

    Prompt -> Completion -> Judgement (what a person said) -> Preference (what a stage trains on)
    Demonstration: an answer a person wrote, for supervised tuning.

Judgements are stored in the canonical order of the task's completions; how the completions were shown to
that annotator is kept beside it (`shown_order`), never mixed into it. Preferences are derived at export and
use TRL's conversational column names (`prompt`, `chosen`, `rejected`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant", "tool"]
TaskKind = Literal["pairwise", "ranking", "scores", "demonstration", "thumbs"]
Verdict = Literal["first", "second", "tie", "both_bad"]
Split = Literal["train", "validation", "test"]


# one encoder for all ids: json.dumps with options makes a new one at every call
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def content_id(prefix: str, *parts: Any) -> str:
    """A short id that depends only on content: the same text gets the same id in every workspace."""
    canonical = _CANONICAL.encode(parts)
    return f"{prefix}-{hashlib.sha256(canonical.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    role: Role
    content: str


class Prompt(Record):
    """What is asked. `messages` ends with the turn to answer; `group_id` keeps related prompts in one split."""

    prompt_id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    source: str = ""
    group_id: str = ""
    context: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _accept_short_forms(cls, row: Any) -> Any:
        """`{"prompt": "text"}`, `{"prompt": [messages]}` and `{"messages": [...]}` are all prompts.

        A missing `prompt_id` is made from the messages and the context, a missing `group_id` is the
        `prompt_id`.
        """
        if not isinstance(row, dict):
            return row
        row = dict(row)
        if "prompt" in row:
            if "messages" in row:
                raise ValueError("has both 'prompt' and 'messages'; expected one of them")
            row["messages"] = row.pop("prompt")
        if isinstance(row.get("messages"), str):
            row["messages"] = [{"role": "user", "content": row["messages"]}]
        if not row.get("prompt_id") and isinstance(row.get("messages"), list | tuple):
            messages = [m.model_dump() if isinstance(m, Message) else m for m in row["messages"]]
            row["prompt_id"] = content_id("p", messages, row.get("context"))
        if not row.get("group_id"):
            row["group_id"] = row.get("prompt_id", "")
        return row

    @model_validator(mode="after")
    def _has_something_to_answer(self) -> Prompt:
        if not self.messages[-1].content.strip():
            raise ValueError("the last message is empty")
        return self

    @property
    def text(self) -> str:
        """The last message: what the person or program asked."""
        return self.messages[-1].content


class Completion(Record):
    """One answer to a prompt, with the identity of what wrote it (never shown to annotators)."""

    completion_id: str
    prompt_id: str
    text: str
    model_id: str = ""
    sampling: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_id(cls, row: Any) -> Any:
        if isinstance(row, dict) and not row.get("completion_id"):
            keys = ("prompt_id", "text", "model_id", "sampling")
            row = {**row, "completion_id": content_id("c", *[row.get(key) for key in keys])}
        return row


class Demonstration(Record):
    """An answer that somebody wrote or edited, to be imitated."""

    prompt_id: str
    text: str
    annotator_id: str = ""


class Judgement(Record):
    """What one annotator said about one task: exactly one of preference, ranking, scores, text or thumb.

    completion_ids: the task's completions in canonical order; `preference` "first" means completion_ids[0].
    shown_order: the same ids as they were shown, left to right or top to bottom.
    strength: 1 slightly, 2 clearly, 3 much better; None for ties and for kinds without strength.
    ranking: groups of completion ids, best first; ids in one group are tied.
    scores: attribute -> {completion id -> 1..5}.
    """

    judgement_id: str
    task_id: str
    prompt_id: str
    annotator_id: str
    kind: TaskKind = "pairwise"
    completion_ids: tuple[str, ...]
    shown_order: tuple[str, ...] = ()
    preference: Verdict | None = None
    strength: int | None = Field(default=None, ge=1, le=3)
    ranking: tuple[tuple[str, ...], ...] | None = None
    scores: dict[str, dict[str, int]] | None = None
    demonstration: str | None = None
    thumb: Literal["up", "down"] | None = None
    reason: str = ""
    flags: tuple[str, ...] = ()
    version: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _one_answer_of_the_right_kind(self) -> Judgement:
        answer = {
            "pairwise": self.preference,
            "ranking": self.ranking,
            "scores": self.scores,
            "demonstration": self.demonstration,
            "thumbs": self.thumb,
        }
        given = [kind for kind, value in answer.items() if value is not None]
        if given != [self.kind]:
            raise ValueError(f"a {self.kind} task needs exactly that answer; found {given or 'none'}")
        if self.kind == "pairwise":
            if len(self.completion_ids) != 2:
                raise ValueError(f"a pairwise task has 2 completions; found {len(self.completion_ids)}")
            if self.preference in ("tie", "both_bad") and self.strength is not None:
                raise ValueError(f"'{self.preference}' has no strength; found {self.strength}")
        if self.ranking is not None:
            ranked = sorted(i for group in self.ranking for i in group)
            if ranked != sorted(self.completion_ids):
                raise ValueError("a ranking names every completion of the task exactly once")
        if self.shown_order and sorted(self.shown_order) != sorted(self.completion_ids):
            raise ValueError("shown_order must hold the task's completions")
        return self


def as_turns(value: Any, role: str) -> Any:
    """A text as one turn of `role`; anything else is left to a record's checks."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def with_prompt_ids(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a rating with a `prompt_id` made from its prompt, and that as `group_id`, where it has none."""
    if not row.get("prompt_id") and isinstance(row.get("prompt"), list | tuple):
        messages = [m.model_dump() if isinstance(m, Message) else m for m in row["prompt"]]
        row["prompt_id"] = content_id("p", messages, None)
    if not row.get("group_id"):
        row["group_id"] = row.get("prompt_id", "")
    return row


class Preference(Record):
    """One comparison as a stage trains on it. In a tie `chosen` and `rejected` are in canonical order.

    margin: how much better, in the annotator's strength (1..3); 0 for a tie. weight: how much it counts.
    source: the prompt's. chosen_model, rejected_model: ids of the models. rated_at: seconds since 1970, when the
    answer was given (its newest version).
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float = Field(default=1.0, ge=0)
    weight: float = Field(default=1.0, gt=0)
    tie: bool = False
    prompt_id: str = ""
    group_id: str = ""
    chosen_id: str = ""
    rejected_id: str = ""
    chosen_model: str = ""
    rejected_model: str = ""
    annotator_id: str = ""
    judgement_id: str = ""
    source: str = ""
    rated_at: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_plain_text(cls, row: Any) -> Any:
        """TRL's standard format (three strings) is read as a one-turn conversation; ids are filled in."""
        if not isinstance(row, dict):
            return row
        row = dict(row)
        for key, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            if key in row:
                row[key] = as_turns(row[key], role)
        return with_prompt_ids(row)

    @model_validator(mode="after")
    def _is_a_comparison(self) -> Preference:
        for name in ("prompt", "chosen", "rejected"):
            if not getattr(self, name):
                raise ValueError(f"'{name}' is empty; expected text or a list of messages")
        if self.tie and self.margin:
            raise ValueError(f"a tie has margin 0; found {self.margin}")
        return self
