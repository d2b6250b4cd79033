"""Sets made by others, in RewardBench's format (Lambert et al., arXiv:2403.13787), run as they are.

A row: {"prompt", "chosen", "rejected", "subset"?, "id"?}. Each text is plain or a list of messages whose last one is
the assistant's; chosen and rejected may be lists of several texts, as in RewardBench 2. JSONL, JSON, CSV, TSV and
Parquet are read; other columns are left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reward.assess.pool import TextPool
from rlhf.core.errors import DataError
from rlhf.core.figures import flat
from rlhf.core.files import BadRow
from rlhf.core.records import Message
from rlhf.core.stats import bootstrap_mean
from rlhf.core.tables import read_table
from rlhf.core.validation import shown

ROLES = ("system", "user", "assistant", "tool")
EXPECTED = "text or a list of messages"


@dataclass(frozen=True)
class OutsideRow:
    """One row of a set with the rows of its texts in the pool."""

    where: str
    subset: str
    row_id: str
    prompt: tuple[Message, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass
class OutsideSet:
    """A file: its rows, and those left out because a text of theirs is longer than the model's context."""

    path: Path
    rows: list[OutsideRow] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)


def load_set(path: Path, pool: TextPool) -> OutsideSet:
    """Read a set into the pool. Raises DataError 'file:line: ...' for the first row that cannot be used, and for a
    file of which every row is too long."""
    found = OutsideSet(path)
    for number, (prompt, chosen, rejected, subset, row_id) in read_table(path, lambda _, row: parse_row(row)):
        where = f"{path}:{number}"
        try:
            good, bad = ([pool.add(prompt, text) for text in texts] for texts in (chosen, rejected))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        fitting = [row for row in good if row is not None], [row for row in bad if row is not None]
        if len(fitting[0]) < len(good) or len(fitting[1]) < len(bad):
            found.too_long.append(where)
            continue
        found.rows.append(
            OutsideRow(where, subset, row_id or str(number), prompt, tuple(fitting[0]), tuple(fitting[1]))
        )
    if not found.rows:
        raise DataError(
            f"{path}: each of its {len(found.too_long)} rows has a text of more than {pool.max_tokens} tokens"
        )
    return found


Parsed = tuple[tuple[Message, ...], list[str], list[str], str, str]


def parse_row(row: dict[str, Any]) -> Parsed:
    """(prompt, chosen texts, rejected texts, subset, id). Raises BadRow."""
    chosen, rejected = (_conversations(row, key) for key in ("chosen", "rejected"))
    prompt = _messages("prompt", row["prompt"], "user") if row.get("prompt") else chosen[0][:-1]
    if not prompt or not prompt[-1].content.strip():
        raise BadRow(f"'prompt' is missing or empty; expected {EXPECTED}")
    for key, conversations in (("chosen", chosen), ("rejected", rejected)):
        for conversation in conversations:
            if len(conversation) > 1 and conversation[:-1] != prompt:
                raise BadRow(f"'{key}' begins with other messages than the prompt")
    texts = [[conversation[-1].content for conversation in side] for side in (chosen, rejected)]
    return prompt, texts[0], texts[1], str(row.get("subset", "")), str(row.get("id", ""))


def _conversations(row: dict[str, Any], key: str) -> list[tuple[Message, ...]]:
    """One or several completions, each with the messages before it where the row repeats them."""
    if key not in row:
        raise BadRow(f"'{key}' is missing; found the columns {', '.join(row) or 'none'}")
    value = row[key]
    several = isinstance(value, list) and bool(value) and not isinstance(value[0], dict)
    found = [_messages(key, item, "assistant") for item in (value if several else [value])]
    for conversation in found:
        if conversation[-1].role != "assistant":
            raise BadRow(f"'{key}' ends with a {conversation[-1].role} message; expected the assistant's")
    return found


def _messages(key: str, value: Any, role: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message(role=role, content=value),)
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{key}': expected {EXPECTED}; found {shown(value)}")
    made = []
    for item in value:
        good = isinstance(item, dict) and isinstance(item.get("content"), str) and item.get("role") in ROLES
        if not good:
            raise BadRow(
                f"'{key}': expected messages of role ({', '.join(ROLES)}) and content; found {shown(item)}"
            )
        made.append(Message(role=item["role"], content=item["content"]))
    return tuple(made)


def row_accuracy(scores: np.ndarray, row: OutsideRow) -> float:
    """1 where each chosen text scores higher than all rejected ones; a chosen one that shares the top with k
    rejected ones counts 1 / (1 + k); the mean over several chosen ones."""
    rejected = scores[list(row.rejected)]
    top = rejected.max()
    equal = 1 + int((rejected == top).sum())
    return float(
        np.mean([1.0 if s > top else 1 / equal if s == top else 0.0 for s in scores[list(row.chosen)]])
    )


def set_figures(scores: np.ndarray, found: OutsideSet, seed: int) -> dict[str, Any]:
    """Accuracy per subset with intervals over prompts, over all rows, and the mean of the subsets (macro)."""
    values = np.array([row_accuracy(scores, row) for row in found.rows])
    prompts = ["\n".join(message.content for message in row.prompt) for row in found.rows]
    members: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(found.rows):
        members[row.subset].append(place)

    def figures(places: Sequence[int]) -> dict[str, Any]:
        own = [found.rows[place] for place in places]
        interval = bootstrap_mean(values[list(places)], groups=[prompts[p] for p in places], seed=seed)
        chance = float(np.mean([1 / (1 + len(row.rejected)) for row in own]))
        return {"n": len(own), **flat("accuracy", interval), "chance": chance}

    subsets = [{"subset": name or "(none)", **figures(places)} for name, places in sorted(members.items())]
    return {
        "file": found.path.name,
        **figures(range(len(found.rows))),
        "macro_accuracy": float(np.mean([subset["accuracy"] for subset in subsets])),
        "subsets": subsets,
        "num_too_long": len(found.too_long),
        "too_long": [Path(where).name for where in found.too_long[:20]],
    }
