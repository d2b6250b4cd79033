"""One row of any layout as what it means: a conversation that ends with the answer, or a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, str]]


@dataclass(slots=True)
class Sample:
    """Either `messages`, ending with the assistant, or `text`. The rest is what the row said beside.

    label: as text. difficulty: a number. row_id: the file's own. metadata: taken over into the output.
    """

    messages: Messages | None = None
    text: str = ""
    layout: str = ""
    group_id: str = ""
    row_id: str = ""
    label: str = ""
    difficulty: float | None = None
    annotator_id: str = ""
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """What is asked, all turns of it; a text without answer is its own prompt."""
        if self.messages is None:
            return self.text
        return "\n".join(turn["content"] for turn in self.messages[:-1])

    @property
    def answer(self) -> str:
        return self.text if self.messages is None else self.messages[-1]["content"]

    @property
    def whole(self) -> str:
        """All texts of the row."""
        if self.messages is None:
            return self.text
        return "\n".join(turn["content"] for turn in self.messages)

    @property
    def num_chars(self) -> int:
        if self.messages is None:
            return len(self.text)
        return sum(len(turn["content"]) for turn in self.messages)

    def change(self, edit: Callable[[str], str]) -> None:
        """Put every text through `edit`."""
        if self.messages is None:
            self.text = edit(self.text)
            return
        for turn in self.messages:
            turn["content"] = edit(turn["content"])

    def change_beside(self, edit: Callable[[str], str]) -> None:
        """Put what stands beside the texts through `edit`: metadata at any depth, annotator and source."""
        self.metadata = _edited(self.metadata, edit)
        self.annotator_id, self.source = edit(self.annotator_id), edit(self.source)

    def output(self) -> dict[str, Any]:
        """The row as `rlhf sft --data` reads it, without its group; a text alone is {"text"} (and its label)."""
        if self.messages is None:
            return {"text": self.text, "label": self.label} if self.label else {"text": self.text}
        row: dict[str, Any] = {"messages": self.messages}
        if self.source:
            row["source"] = self.source
        if self.annotator_id:
            row["annotator_id"] = self.annotator_id
        beside = dict(self.metadata)
        if self.label:
            beside["label"] = self.label
        if beside:
            row["metadata"] = beside
        return row


def _edited(value: Any, edit: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return edit(value)
    if isinstance(value, dict):
        return {edit(key): _edited(item, edit) for key, item in value.items()}
    return [_edited(item, edit) for item in value] if isinstance(value, list) else value
