"""Our own rows and TRL's columns, which are the same where both have a name for a thing; HH-RLHF dialogues.

    {"prompt": ...}                                        a prompt
    {"prompt": ..., "completions": ["...", {"text": ...}]} a prompt with completions to be rated
    {"prompt": ..., "completion": ...}                     a demonstration; a completion where --task is given
    {"prompt": ..., "completion": ..., "label": true}      unpaired preference: a thumb
    {"prompt": ..., "chosen": ..., "rejected": ...}        preference
    {"chosen": [messages], "rejected": [messages]}         the implicit prompt is the turns that both share
    {"messages": [..., {"role": "assistant", ...}]}        a demonstration
    {"chosen": "\\n\\nHuman: ...", "rejected": ...}          HH-RLHF

`prompt` is text or a list of messages. A rating may carry `annotator_id`, `margin` or `strength` (1 to 3),
`tie`, `reason`, and ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from feedback_app.formats.items import (
    MAX_COMPLETIONS,
    Answer,
    Item,
    make_completion,
    make_prompt,
    number,
    refuse_same,
    refuse_unknown,
    truth,
    whole,
)
from rlhf.core.files import BadRow
from rlhf.core.turns import dialogue, messages, text

Row = dict[str, Any]

_PROMPT = frozenset({"prompt", "messages", "prompt_id", "source", "group_id", "context", "metadata"})
_SAID = frozenset({"annotator_id", "reason", "explanation"})
# What a snapshot says beside. It is not taken over: an import is an answer of its own, given when it was imported.
_SNAPSHOT = frozenset({"judgement_id", "rated_at"})
_KNOWN = {
    "prompts": _PROMPT,
    "completions": _PROMPT | {"completions"},
    "completion": _PROMPT | {"completion", "model_id", "completion_id"},
    "unpaired": _PROMPT | _SAID | {"completion", "label", "model_id", "completion_id"} | _SNAPSHOT,
    "sft": _PROMPT | _SAID | {"completion", "annotator_id"},
    "preference": _PROMPT
    | _SAID
    | {"chosen", "rejected", "margin", "strength", "tie", "weight", "chosen_id", "rejected_id"}
    | {"model_chosen", "model_rejected", "score_chosen", "score_rejected"}
    | {"chosen_model", "rejected_model"}
    | _SNAPSHOT,
}


def prompts(row: Row, ignored: frozenset[str]) -> Item:
    """A prompt alone."""
    refuse_unknown(row, _KNOWN["prompts"], ignored)
    if "prompt" in row and "messages" in row:
        raise BadRow("has both 'prompt' and 'messages'; expected one of them")
    return Item(make_prompt(row, row.get("prompt", row.get("messages")), "import"))


def completions(row: Row, ignored: frozenset[str]) -> Item:
    """A prompt with the completions that are to be rated."""
    refuse_unknown(row, _KNOWN["completions"], ignored)
    given = row.get("completions")
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_COMPLETIONS:
        raise BadRow(f"'completions' must be a list of 1 to {MAX_COMPLETIONS} answers")
    prompt = make_prompt(row, row.get("prompt", row.get("messages")), "import")
    found = {}
    for value in given:
        fields = {"text": value} if isinstance(value, str) else value
        if not isinstance(fields, dict) or "text" not in fields:
            raise BadRow("a completion is text or an object with 'text'")
        if fields.get("prompt_id", prompt.prompt_id) != prompt.prompt_id:
            raise BadRow(f"a completion names another prompt: '{fields['prompt_id']}'")
        completion = make_completion(
            prompt, fields["text"], model=fields.get("model_id"), completion_id=fields.get("completion_id")
        )
        found[completion.completion_id] = completion
    return Item(prompt, tuple(found.values()))


def completion(row: Row, ignored: frozenset[str]) -> Item:
    """A prompt with one completion that is to be rated; rows of one prompt that follow each other are joined."""
    refuse_unknown(row, _KNOWN["completion"], ignored)
    prompt = make_prompt(row, row.get("prompt"), "import")
    return Item(prompt, (_one(prompt, row),))


def unpaired(row: Row, ignored: frozenset[str]) -> Item:
    """TRL's unpaired preference: a thumb on one completion."""
    refuse_unknown(row, _KNOWN["unpaired"], ignored)
    prompt = make_prompt(row, row.get("prompt"), "import")
    thumb: Literal["up", "down"] = "up" if truth(row.get("label"), "label") else "down"
    return Item(prompt, (_one(prompt, row),), (Answer("thumbs", thumb=thumb, **_said(row)),))


def sft(row: Row, ignored: frozenset[str]) -> Item:
    """A demonstration: prompt and completion, or a conversation that ends with the answer."""
    refuse_unknown(row, _KNOWN["sft"], ignored)
    if "messages" in row:
        turns = messages(row["messages"], "messages")
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise BadRow("'messages' must end with the assistant's answer to somebody")
        prompt, written = make_prompt(row, turns[:-1], "import"), turns[-1]["content"]
    else:
        prompt = make_prompt(row, row.get("prompt"), "import")
        written = make_completion(prompt, row.get("completion")).text
    if not written.strip():
        raise BadRow("the demonstration is empty")
    return Item(prompt, (), (Answer("demonstration", demonstration=written, **_said(row)),))


def preference(row: Row, ignored: frozenset[str]) -> Item:
    """TRL's preference, with explicit or implicit prompt, text or messages."""
    refuse_unknown(row, _KNOWN["preference"], ignored)
    row = dict(row)
    if "prompt" not in row:
        row.update(_implicit_prompt(row.get("chosen"), row.get("rejected")))
    prompt = make_prompt(row, row["prompt"], "import")
    sides = refuse_same(
        [
            make_completion(
                prompt,
                row.get(side),
                model=row.get(f"model_{side}") or row.get(f"{side}_model"),
                completion_id=row.get(f"{side}_id"),
                name=side,
            )
            for side in ("chosen", "rejected")
        ]
    )
    tie = truth(row["tie"], "tie") if row.get("tie") is not None else False
    strength = None
    if not tie and row.get("strength") is not None:
        strength = whole(row["strength"], "strength", 1, 3)
    elif not tie and row.get("margin") is not None:
        margin = number(row["margin"], "margin")
        strength = int(margin) if margin in (1, 2, 3) else None  # any other number says too little to be one
    choice = "tie" if tie else 0
    return Item(prompt, sides, (Answer("pairwise", choice=choice, strength=strength, **_said(row)),))


def hh_rlhf(row: Row, ignored: frozenset[str]) -> Item:
    """HH-RLHF: two dialogues as text that share their beginning."""
    sides = {side: dialogue(text(row.get(side), side), side) for side in ("chosen", "rejected")}
    return preference({**row, **sides}, ignored)


def _one(prompt: Any, row: Mapping[str, Any]) -> Any:
    return make_completion(
        prompt, row.get("completion"), model=row.get("model_id"), completion_id=row.get("completion_id")
    )


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {
        "annotator": row.get("annotator_id"),
        "reason": row.get("reason"),
        "explanation": row.get("explanation"),
    }
    return {name: text(value, name) for name, value in fields.items() if value}


def _implicit_prompt(chosen: Any, rejected: Any) -> dict[str, Any]:
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise BadRow("'prompt' is missing; expected it, or 'chosen' and 'rejected' as lists of messages")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise BadRow("'prompt' is missing, and 'chosen' and 'rejected' do not begin with the same turns")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
