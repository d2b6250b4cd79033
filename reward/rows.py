"""The rows of a snapshot beside its comparisons, as `rlhf export` writes them: rankings, attribute scores, thumbs."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from rlhf.core.records import Message, Record, as_turns, with_prompt_ids

Turns = tuple[Message, ...]


class RatedRow(Record):
    """What all of them have. A prompt may be a text; missing ids are made from the prompt."""

    prompt: Turns = Field(min_length=1)
    prompt_id: str = ""
    group_id: str = ""
    annotator_id: str = ""
    judgement_id: str = ""
    source: str = ""
    rated_at: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        row = dict(row)
        if "prompt" in row:
            row["prompt"] = as_turns(row["prompt"], "user")
        if "completion" in row:
            row["completion"] = as_turns(row["completion"], "assistant")
        if isinstance(row.get("completions"), list):
            row["completions"] = [as_turns(one, "assistant") for one in row["completions"]]
        return with_prompt_ids(row)


class ThumbRow(RatedRow):
    """A completion that was found good or bad."""

    completion: Turns
    label: bool
    completion_id: str = ""
    model_id: str = ""


class ScoresRow(RatedRow):
    """A completion with its score on each attribute."""

    completion: Turns
    scores: dict[str, float] = Field(min_length=1)
    completion_id: str = ""
    model_id: str = ""


class RankingRow(RatedRow):
    """Completions with their ranks, 1 is best; equal ranks are tied."""

    completions: tuple[Turns, ...] = Field(min_length=2)
    ranks: tuple[int, ...]
    completion_ids: tuple[str, ...] = ()
    model_ids: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_rank_each(self) -> RankingRow:
        if len(self.ranks) != len(self.completions):
            raise ValueError(f"{len(self.ranks)} ranks for {len(self.completions)} completions")
        return self
