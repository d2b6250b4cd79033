"""What a tuned model is examined on: held-out demonstrations and texts, read from any kind of file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.core.errors import DataError
from rlhf.core.records import Message, content_id
from sft.data import DemonstrationRow, TextRow, read_rows


class HeldOutRow(DemonstrationRow):
    """A demonstration with what an answer may be measured by beside its completion.

    references: further right answers. context: the text that the answer must rest on (it has to stand in the prompt
    for a model to see it).
    """

    references: tuple[str, ...] = ()
    context: str | None = None


@dataclass(frozen=True)
class Item:
    """A held-out demonstration. references: its completion first, then further right answers."""

    line: int
    group_id: str
    prompt: tuple[Message, ...]
    references: tuple[str, ...]
    context: str | None
    source: str

    @property
    def reference(self) -> str:
        return self.references[0]


@dataclass(frozen=True)
class Text:
    line: int
    group_id: str
    text: str
    source: str


def read_held_out(path: Path, limit: int | None = None) -> tuple[list[Item], list[Text]]:
    """The demonstrations and the texts of a file, at most `limit` rows of it.

    Raises DataError naming file and line: for a row that is neither, and for a file without any.
    """
    items: list[Item] = []
    texts: list[Text] = []
    for line, row in read_rows(path, HeldOutRow):
        if limit is not None and len(items) + len(texts) == limit:
            break
        if isinstance(row, TextRow):
            group = row.group_id or content_id("t", row.text)
            texts.append(Text(line, group, row.text, row.source))
        else:
            references = (row.completion, *(text for text in row.references if text != row.completion))
            items.append(Item(line, row.group_id, row.prompt, references, row.context, row.source))
    return items, texts


def read_items(path: Path, what: str) -> list[Item]:
    """The demonstrations of a file that must hold nothing else. Raises DataError."""
    items, texts = read_held_out(path)
    if texts:
        raise DataError(f"{path}:{texts[0].line}: holds a text; expected 'prompt' and 'completion' ({what})")
    return items


def words_of(prompt: Sequence[Message]) -> str:
    """The last message of a prompt: what is asked."""
    return prompt[-1].content


def as_text(item: Item) -> Text:
    """A demonstration as it is shown among texts."""
    return Text(item.line, item.group_id, f"{words_of(item.prompt)}\n{item.reference}", item.source)
