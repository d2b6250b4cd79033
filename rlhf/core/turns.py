"""Conversations as people's files have them, as messages with our roles: OpenAI's, ShareGPT's, HH-RLHF's."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

from rlhf.core.files import BadRow
from rlhf.core.records import Message

MAX_TEXT = 100_000
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "prompter": "user",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
_TURN = re.compile(r"\n\n(Human|Assistant):[ \n]?")


def messages(value: Any, name: str = "prompt", *, limit: int = MAX_TEXT) -> list[dict[str, str]]:
    """Text or a list of {role, content} (or {from, value}) as messages with our roles. Raises BadRow."""
    if isinstance(value, str):
        return [{"role": "user", "content": text(value, name, limit=limit)}]
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{name}' is {named(value)}; expected text or a list of messages")
    turns = []
    for turn in value:
        if isinstance(turn, Message):
            turns.append(turn.model_dump())
            continue
        if not isinstance(turn, dict):
            raise BadRow(f"'{name}' holds {named(turn)}; expected messages with 'role' and 'content'")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise BadRow(f"'{name}' has the role {named(role)}; expected user, assistant, system or tool")
        content = turn.get("content", turn.get("value"))
        turns.append({"role": ROLES[role.lower()], "content": text(content, f"{name}.content", limit=limit)})
    return turns


def text(value: Any, name: str, *, limit: int = MAX_TEXT) -> str:
    """Text of a bearable length; numbers are no text (and `true` is no answer, whatever a file says)."""
    if not isinstance(value, str):
        raise BadRow(f"'{name}' is {named(value)}; expected text")
    if len(value) > limit:
        raise BadRow(f"'{name}' has {len(value)} characters; at most {limit} are kept")
    return value


def dialogue(value: str, name: str) -> list[dict[str, str]]:
    """The turns of a dialogue that is written as "\\n\\nHuman: ... \\n\\nAssistant: ..."."""
    parts = _TURN.split(value if value.startswith("\n\n") else f"\n\n{value.lstrip()}")
    if parts[0].strip() or len(parts) < 3:
        raise BadRow(f"'{name}' does not begin with 'Human:'; expected a dialogue")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def is_dialogue(value: Any) -> bool:
    """Whether a text is written as such a dialogue."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def named(value: Any) -> str:
    """A value of a row as a message names it."""
    if value is None:
        return "missing"
    if isinstance(value, BaseModel | dict | list):
        return f"a {type(value).__name__}"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
