"""What a row of an imported file may look like, and what it means.

    {"prompt": ...}                                        a prompt
    {"prompt": ..., "completions": ["...", {"text": ...}]} a prompt with completions: every pair is a task
    {"prompt": ..., "chosen": ..., "rejected": ...}        a rating, in TRL's preference columns
    {"chosen": [messages], "rejected": [messages]}         TRL's implicit prompt: the turns both share

`prompt` is text or a list of messages; `chosen` and `rejected` likewise. A rating may carry `annotator_id`,
`margin` or `strength` (1 to 3), `tie`, `reason`, and ids.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlhf.core.records import Completion, Message, Preference, Prompt, content_id

RowKind = Literal["prompts", "completions", "preferences"]
MAX_COMPLETIONS = 9
_PROMPT_KEYS = ("prompt", "messages", "prompt_id", "source", "group_id", "context", "metadata")
_RATING_KEYS = ("annotator_id", "reason", "strength", "model_chosen", "model_rejected")


class ImportRow(BaseModel):
    """One checked row. `verdict` is about `completions`: the first is the chosen one, unless it is a tie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: RowKind
    prompt: Prompt
    completions: tuple[Completion, ...] = ()
    tie: bool = False
    strength: int | None = Field(default=None, ge=1, le=3)
    annotator: str = Field(default="", max_length=128)
    reason: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        kind = kind_of(row)
        if kind == "preferences":
            return _preference(row)
        if kind == "completions":
            return _with_completions(row)
        return {"kind": "prompts", "prompt": Prompt.model_validate(row)}


def kind_of(row: dict[str, Any]) -> RowKind:
    """What the columns say a row is. Raises ValueError when they say nothing."""
    if "chosen" in row or "rejected" in row:
        return "preferences"
    if "completions" in row:
        return "completions"
    if "prompt" in row or "messages" in row:
        return "prompts"
    found = ", ".join(sorted(row)) or "none"
    raise ValueError(
        f"found the columns {found}; expected 'prompt', 'prompt' and 'completions', "
        "or 'prompt', 'chosen' and 'rejected'"
    )


def _with_completions(row: dict[str, Any]) -> dict[str, Any]:
    row = dict(row)
    given = row.pop("completions")
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_COMPLETIONS:
        raise ValueError(f"'completions' must be a list of 1 to {MAX_COMPLETIONS} answers")
    prompt = Prompt.model_validate(row)
    completions: dict[str, Completion] = {}
    for item in given:
        fields = {"text": item} if isinstance(item, str) else item
        if not isinstance(fields, dict):
            raise ValueError("a completion is text or an object with 'text'")
        if fields.get("prompt_id", prompt.prompt_id) != prompt.prompt_id:
            raise ValueError(f"a completion names another prompt: '{fields['prompt_id']}'")
        completion = Completion.model_validate({**fields, "prompt_id": prompt.prompt_id})
        completions[completion.completion_id] = completion
    return {"kind": "completions", "prompt": prompt, "completions": tuple(completions.values())}


def _preference(row: dict[str, Any]) -> dict[str, Any]:
    row = dict(row)
    extras = {key: row.pop(key, None) for key in _RATING_KEYS}
    if "prompt" not in row:
        row.update(_implicit_prompt(row.get("chosen"), row.get("rejected")))
    strength = extras["strength"]
    if strength is None and "margin" in row and not row.get("tie"):
        strength = _strength_of(row["margin"])
    row.pop("margin", None)
    if row.get("tie"):
        row["margin"] = 0.0
    preference = Preference.model_validate({**row, "annotator_id": extras["annotator_id"] or ""})
    prompt = Prompt(
        prompt_id=preference.prompt_id,
        messages=preference.prompt,
        group_id=preference.group_id,
        source="import",
    )
    first = _completion(preference, preference.chosen, preference.chosen_id, extras["model_chosen"])
    second = _completion(preference, preference.rejected, preference.rejected_id, extras["model_rejected"])
    if first.completion_id == second.completion_id:
        raise ValueError("'chosen' and 'rejected' are the same text; nothing is compared")
    return {
        "kind": "preferences",
        "prompt": prompt,
        "completions": (first, second),
        "tie": preference.tie,
        "strength": None if preference.tie else strength,
        "annotator": preference.annotator_id,
        "reason": extras["reason"] or "",
    }


def _completion(
    preference: Preference, messages: tuple[Message, ...], completion_id: str, model_id: str | None
) -> Completion:
    """One side of a rating. The whole conversation is accepted where it begins with the prompt's turns."""
    prompt = preference.prompt
    if len(messages) > len(prompt) and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = ", ".join(message.role for message in messages)
        raise ValueError(
            f"'chosen' and 'rejected' must be one assistant turn after the prompt; found {roles}"
        )
    text = messages[0].content
    return Completion(
        completion_id=completion_id or content_id("c", preference.prompt_id, text, model_id or "", "import"),
        prompt_id=preference.prompt_id,
        text=text,
        model_id=model_id or "",
        sampling={"imported": True},
    )


def _implicit_prompt(chosen: Any, rejected: Any) -> dict[str, Any]:
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise ValueError("'prompt' is missing; expected it, or 'chosen' and 'rejected' as lists of messages")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise ValueError("'prompt' is missing, and 'chosen' and 'rejected' do not begin with the same turns")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _strength_of(margin: Any) -> int | None:
    """A margin that is one of our strengths is kept; any other number says too little to be one."""
    return int(margin) if margin in (1, 2, 3) else None
