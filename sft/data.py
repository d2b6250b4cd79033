"""Demonstrations and raw text as tokens: every row is checked where it stands, and split so that no prompt or
document is on both sides.

A demonstration is a prompt and a completion; the loss counts on the completion. A raw text, for pre-training on a
domain (Gururangan et al., arXiv:2004.10964), counts on all of its tokens but the first, which nothing predicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, model_validator

from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError
from rlhf.core.files import Limits, collect_rows, validated
from rlhf.core.records import Message, Record, content_id
from rlhf.core.splits import split_of
from rlhf.core.tables import table_rows
from sft.prepare.textfile import is_text_file, text_rows

# A document of a text file may be a whole book; a row of the other files has the usual cap.
TEXT_LIMITS = Limits(max_line_bytes=1 << 26)


class DemonstrationRow(Record):
    """One row of the file. `messages` (ending with the assistant) is read as prompt + completion.

    group_id keeps related prompts in one split; it defaults to the prompt itself.
    """

    prompt: tuple[Message, ...] = Field(min_length=1)
    completion: str
    group_id: str
    prompt_id: str = ""
    annotator_id: str = ""
    source: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _accept_short_forms(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        row = dict(row)
        if "messages" in row:
            if "prompt" in row or "completion" in row:
                raise ValueError("has 'messages' beside 'prompt' or 'completion'; expected one form")
            messages = row.pop("messages")
            if not isinstance(messages, list) or len(messages) < 2:
                raise ValueError("'messages' must be a list of at least a user and an assistant message")
            row["prompt"], row["completion"] = messages[:-1], messages[-1:]
        if isinstance(row.get("prompt"), str):
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        row["completion"] = _assistant_text(row["completion"]) if "completion" in row else None
        if row["completion"] is None:
            del row["completion"]
        if not row.get("group_id"):
            row["group_id"] = row.get("prompt_id") or content_id("p", row.get("prompt"), None)
        return row

    @model_validator(mode="after")
    def _not_empty(self) -> DemonstrationRow:
        if not self.completion.strip():
            raise ValueError("the completion is empty")
        if not self.prompt[-1].content.strip():
            raise ValueError("the last message of the prompt is empty")
        return self


def _assistant_text(completion: Any) -> Any:
    """TRL's conversational form, a list of one assistant message, as text; anything else as it is."""
    if not isinstance(completion, list):
        return completion
    if (
        len(completion) != 1
        or not isinstance(completion[0], dict)
        or completion[0].get("role") != "assistant"
    ):
        raise ValueError("the last message must be one of the assistant")
    return completion[0].get("content")


class TextRow(Record):
    """A raw text to be trained on as it is. A label is left to `rlhf classify`; group_id defaults to the text."""

    text: str
    group_id: str = ""
    label: Any = None
    source: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _not_empty(self) -> TextRow:
        if not self.text.strip():
            raise ValueError("the text is empty")
        return self


Demonstrated = TypeVar("Demonstrated", bound=DemonstrationRow)


@dataclass(frozen=True)
class Example:
    """Tokens of one demonstration, or of a text or a part of one; completion_mask is 1 where the loss counts, end
    token included, and never at the first token. task: which of several data sets it is from."""

    line: int
    group_id: str
    input_ids: list[int]
    completion_mask: list[int]
    task: str = ""

    @property
    def num_targets(self) -> int:
        return sum(self.completion_mask)

    @property
    def prompt_ids(self) -> list[int]:
        """What stands before the first target; of a text its first tokens (at most 16), for it to be continued."""
        first = self.completion_mask.index(1)
        return self.input_ids[: first if first > 1 else min(16, (len(self.input_ids) + 1) // 2)]


def load_examples(
    path: Path, codec: ChatCodec, *, max_tokens: int, drop_too_long: bool = False, task: str = ""
) -> tuple[list[Example], int]:
    """All rows of a file of any kind, and how many demonstrations were left out as too long.

    Raises DataError naming file and line: for a row that cannot be used, for a prompt that leaves no room in
    the model's context and, unless `drop_too_long`, for a demonstration longer than `max_tokens`. A raw text that is
    longer becomes several examples.
    """
    examples: list[Example] = []
    num_too_long = 0
    for line, row in read_rows(path, DemonstrationRow):
        if isinstance(row, TextRow):
            group = row.group_id or content_id("t", row.text)
            examples += [
                Example(line, group, ids, [0] + [1] * (len(ids) - 1), task)
                for ids in text_parts(row.text, codec, max_tokens)
            ]
            continue
        try:
            prompt_ids = codec.prompt_ids(row.prompt)
        except DataError as error:
            raise DataError(f"{path}:{line}: {error}") from error
        completion_ids = codec.completion_ids(row.completion)
        length = len(prompt_ids) + len(completion_ids)
        if length > max_tokens:
            if drop_too_long:
                num_too_long += 1
                continue
            raise DataError(
                f"{path}:{line}: {_too_long(len(prompt_ids), length, max_tokens, codec.max_tokens)}"
            )
        mask = [0] * len(prompt_ids) + [1] * len(completion_ids)
        examples.append(Example(line, row.group_id, [*prompt_ids, *completion_ids], mask, task))
    if not examples:
        raise DataError(f"{path}: all {num_too_long} demonstrations are longer than {max_tokens} tokens")
    return examples, num_too_long


def read_rows(path: Path, demonstration: type[Demonstrated]) -> Iterator[tuple[int, Demonstrated | TextRow]]:
    """The line and record of each row of a file of any kind. Raises DataError naming file and line."""
    if is_text_file(path):
        source, expected = text_rows(path, "auto", TEXT_LIMITS), "text"
    else:
        source, expected = table_rows(path, Limits())[0], "rows of demonstrations or texts"

    def parse(line: int, data: dict[str, Any]) -> Demonstrated | TextRow:
        raw = "text" in data and data.keys().isdisjoint({"prompt", "completion", "messages"})
        return validated(TextRow, data) if raw else validated(demonstration, data)

    yield from collect_rows(path, source, parse, None, expected)


def text_parts(text: str, codec: ChatCodec, max_tokens: int) -> list[list[int]]:
    """The tokens of a document in parts of at most max_tokens, begun with bos where the tokenizer has one and ended
    with the end token. A part begins with the last token of the one before it, so that every token is predicted
    exactly once."""
    bos = codec.tokenizer.bos_token_id
    ids = [*([] if bos is None else [bos]), *codec.completion_ids(text)]
    return [ids[start : start + max_tokens] for start in range(0, max(1, len(ids) - 1), max_tokens - 1)]


def _too_long(prompt: int, total: int, limit: int, context: int) -> str:
    if prompt >= context:
        return f"the prompt has {prompt} tokens; the model's context is {context}"
    hint = "shorten it, or give --on-too-long drop"
    return f"prompt and completion have {total} tokens; at most {limit} are used ({hint})"


def split_examples(
    examples: Sequence[Example], fraction: float, seed: int, source: str
) -> tuple[list[Example], list[Example]]:
    """(train, validation), whole prompt groups each. Both get at least one group; raises DataError for one group."""
    groups = sorted({example.group_id for example in examples})
    if len(groups) < 2:
        raise DataError(
            f"{source}: all demonstrations answer one prompt; expected at least 2 prompts (of raw texts: documents), "
            "or a file of --validation"
        )
    held_out = {g for g in groups if split_of(g, seed, (1 - fraction, fraction, 0.0)) == "validation"}
    # With few groups chance can put all on one side; one of them then changes sides.
    if not held_out:
        held_out = {groups[seed % len(groups)]}
    elif len(held_out) == len(groups):
        held_out.remove(groups[seed % len(groups)])
    train = [example for example in examples if example.group_id not in held_out]
    return train, [example for example in examples if example.group_id in held_out]
