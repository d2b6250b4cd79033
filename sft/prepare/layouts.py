"""How the rows of common data sets are laid out, told by their columns.

    alpaca             {"instruction", "input", "output"}             Taori et al. 2023
    dolly              {"instruction", "context", "response"}         Databricks 2023
    sharegpt           {"conversations": [{"from", "value"}]}         also "conversation"
    messages           {"messages": [{"role", "content"}]}            OpenAI, TRL
    hh                 {"chosen", "rejected"}: the chosen transcript   Bai et al., arXiv:2204.05862
    prompt-completion  {"prompt", "completion"}, text or messages     TRL, our own rows
    text               {"text"}                                       raw text; with a label: classification

A row may also carry id, group_id, prompt_id, source, label, annotator_id, metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.core.errors import ConfigError
from rlhf.core.files import BadRow
from rlhf.core.turns import dialogue, is_dialogue, messages, named, text
from sft.prepare.rows import Messages, Sample

Row = dict[str, Any]
MAX_TEXT = (
    1 << 24
)  # the line's own cap is smaller; what is too long for training is counted as such, not as broken
TEXT_COLUMNS = frozenset(
    {
        *(
            "instruction",
            "input",
            "output",
            "context",
            "response",
            "conversations",
            "conversation",
            "messages",
        ),
        *("system", "chosen", "rejected", "prompt", "completion", "text"),
    }
)
BESIDE_COLUMNS = frozenset(
    {"id", "group_id", "prompt_id", "source", "label", "annotator_id", "metadata", "difficulty"}
)


@dataclass(frozen=True)
class Reading:
    """How rows are meant: a layout or 'auto', renamed columns (old -> new), and the columns that are named."""

    layout: str = "auto"
    renamed: dict[str, str] = field(default_factory=dict)
    label_column: str | None = None
    difficulty_column: str | None = None

    def sample(self, row: Row) -> Sample:
        """What a row means. Raises BadRow."""
        if self.renamed:
            row = self._rename(row)
        name = detect(row) if self.layout == "auto" else self.layout
        sample = _LAYOUTS[name](row)
        sample.layout = name
        _beside(sample, row, self.label_column, self.difficulty_column)
        if sample.messages is not None:
            _checked(sample.messages)
        return sample

    def _rename(self, row: Row) -> Row:
        taken = {self.renamed[name] for name in row if name in self.renamed}
        kept = {name: value for name, value in row.items() if name not in self.renamed and name not in taken}
        return kept | {new: row[old] for old, new in self.renamed.items() if old in row}


def parse_map(pairs: Sequence[str]) -> dict[str, str]:
    """`question=prompt` as {old: new}; `prompt=question`, as `rlhf import` has it, means the same where only the
    left one is a column that prepare knows. Raises ConfigError."""
    known = TEXT_COLUMNS | BESIDE_COLUMNS
    renamed: dict[str, str] = {}
    for pair in (part for listed in pairs for part in listed.split(",")):
        old, sign, new = (part.strip() for part in pair.partition("="))
        if not (old and sign and new):
            raise ConfigError(f"--map '{pair}': expected old=new, such as question=prompt")
        if new not in known and old in known:
            old, new = new, old
        if new not in known:
            raise ConfigError(f"--map '{pair}': '{new}' is no column; known: {', '.join(sorted(known))}")
        if old in renamed or new in renamed.values():
            raise ConfigError(f"--map '{pair}': a column is renamed twice")
        renamed[old] = new
    return renamed


def detect(row: Row) -> str:
    """The layout of a row, by its columns. Raises BadRow where they say nothing."""
    if "conversations" in row or "conversation" in row:
        return "sharegpt"
    if "messages" in row:
        return "messages"
    if "chosen" in row:
        return "hh"
    if "instruction" in row:
        return "dolly" if "response" in row else "alpaca"
    if "prompt" in row:
        return "prompt-completion"
    if "text" in row:
        return "text"
    found = ", ".join(sorted(row)[:12]) or "none"
    raise BadRow(
        f"found the columns {found}; expected those of alpaca, dolly, sharegpt, messages, hh, prompt and "
        "completion, or text (--map old=new renames columns)"
    )


def _text(row: Row, name: str, *, optional: bool = False) -> str:
    value = row.get(name)
    return "" if optional and value is None else text(value, name, limit=MAX_TEXT)


def _alpaca(row: Row) -> Sample:
    return _instructed(row, "input", "output")


def _dolly(row: Row) -> Sample:
    return _instructed(row, "context", "response")


def _instructed(row: Row, beside: str, answer: str) -> Sample:
    """Instruction and what it is about as one user turn, as nearly all templates have it."""
    asked, about = _text(row, "instruction"), _text(row, beside, optional=True)
    prompt = f"{asked}\n\n{about}" if about.strip() else asked
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": _text(row, answer)}]
    system = _text(row, "system", optional=True)
    return Sample(messages=[{"role": "system", "content": system}, *turns] if system.strip() else turns)


def _sharegpt(row: Row) -> Sample:
    name = "conversations" if "conversations" in row else "conversation"
    turns = messages(_listed(row.get(name), name), name, limit=MAX_TEXT)
    system = _text(row, "system", optional=True)
    if system.strip():
        turns.insert(0, {"role": "system", "content": system})
    return Sample(messages=turns)


def _messages(row: Row) -> Sample:
    return Sample(messages=messages(_listed(row.get("messages"), "messages"), "messages", limit=MAX_TEXT))


def _hh(row: Row) -> Sample:
    """The chosen side: a transcript, or TRL's preference with its prompt."""
    chosen = row.get("chosen")
    if "prompt" in row and not is_dialogue(chosen):
        return _prompt_completion({**row, "completion": chosen})
    if isinstance(chosen, list):
        return Sample(messages=messages(chosen, "chosen", limit=MAX_TEXT))
    return Sample(messages=dialogue(text(chosen, "chosen", limit=MAX_TEXT), "chosen"))


def _prompt_completion(row: Row) -> Sample:
    prompt = messages(row.get("prompt"), "prompt", limit=MAX_TEXT)
    completion = row.get("completion")
    if isinstance(completion, list):
        turns = messages(completion, "completion", limit=MAX_TEXT)
        turns = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
        return Sample(messages=[*prompt, *turns])
    answer = text(completion, "completion", limit=MAX_TEXT)
    return Sample(messages=[*prompt, {"role": "assistant", "content": answer}])


def _plain(row: Row) -> Sample:
    return Sample(text=_text(row, "text"))


def _listed(value: Any, name: str) -> Any:
    if not isinstance(value, list):
        raise BadRow(f"'{name}' is {named(value)}; expected a list of messages")
    return value


def _checked(turns: Messages) -> None:
    """A conversation without an answer teaches nothing: questions after the last one are no reason to lose it."""
    while turns and turns[-1]["role"] != "assistant":
        if turns[-1]["role"] != "user" or not any(turn["role"] == "assistant" for turn in turns):
            raise BadRow("the conversation has no answer; expected it to end with an assistant turn")
        turns.pop()
    if len(turns) < 2:
        raise BadRow("the conversation has no question; expected a user turn before the answer")


def _beside(sample: Sample, row: Row, label_column: str | None, difficulty_column: str | None) -> None:
    for name in ("group_id", "annotator_id", "source"):
        if isinstance(row.get(name), str | int) and not isinstance(row[name], bool):
            setattr(sample, name, str(row[name]))
    if not sample.group_id and isinstance(row.get("prompt_id"), str | int):
        sample.group_id = str(row["prompt_id"])
    if isinstance(row.get("id"), str | int):
        sample.row_id = str(row["id"])
    if isinstance(row.get("metadata"), dict):
        sample.metadata = dict(row["metadata"])
    if label_column is not None:
        label = row.get(label_column)
        if not isinstance(label, str | int | float) or str(label).strip() == "":
            raise BadRow(f"'{label_column}' is {named(label)}; expected a label")
        sample.label = str(label)
    elif isinstance(row.get("label"), str | int) and not isinstance(row["label"], bool):
        sample.label = str(row["label"])
    if difficulty_column is not None:
        sample.difficulty = _number(row.get(difficulty_column), difficulty_column)


def _number(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"'{name}' is {named(value)}; expected a finite number")
    return number


_LAYOUTS: dict[str, Callable[[Row], Sample]] = {
    "alpaca": _alpaca,
    "dolly": _dolly,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "hh": _hh,
    "prompt-completion": _prompt_completion,
    "text": _plain,
}
