"""What is counted on the way, the rows that did not come through, and how long texts are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rlhf.core.files import QUARANTINE_TEXT_CHARS

NUM_LENGTH_BINS = 14  # up to 16, 32, ... 65,536 characters, and above
CLIPPED_CHARS = 400

BAD, BROKEN_FILE = "bad row", "broken file"
EXACT, NEAR, ID = "exact duplicate", "near duplicate", "duplicate id"
LEAK = "leaks an evaluation file"


def length_bin(chars: int) -> int:
    """The bin of a length: bin k holds up to 2^(k + 4) characters."""
    return min(NUM_LENGTH_BINS - 1, max(0, (max(1, chars) - 1).bit_length() - 4))


def bin_labels() -> list[str]:
    ends = [1 << (k + 4) for k in range(NUM_LENGTH_BINS - 1)]
    short = [f"{end // 1024}k" if end >= 1024 else str(end) for end in ends]
    return [*short, "more"]


@dataclass
class Tally:
    """reasons: rows that were taken out, by reason. layouts and read: by source. lengths: rows per bin."""

    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    layouts: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    bad_reasons: Counter[str] = field(default_factory=Counter)
    lengths_before: list[int] = field(default_factory=lambda: [0] * NUM_LENGTH_BINS)
    lengths_after: list[int] = field(default_factory=lambda: [0] * NUM_LENGTH_BINS)
    languages: Counter[str] = field(default_factory=Counter)
    broken_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Quarantine:
    """quarantine.jsonl: {"file", "line", "reason", "text"} of every row that was taken out, its text clipped.

    mask: what personal data is in a text is not written down here either.
    """

    def __init__(self, path: Path, mask: Callable[[str], str]) -> None:
        self._file: IO[str] = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._mask = mask
        self.first = ""

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def add_bad(self, file: str, line: int, reason: str, raw: bytes) -> None:
        """A row that cannot be read: as much of its bytes as shows what it is."""
        text = raw[: QUARANTINE_TEXT_CHARS * 4].decode("utf-8", "replace")[:QUARANTINE_TEXT_CHARS]
        self.add(file, line, reason, text, QUARANTINE_TEXT_CHARS)

    def add(self, file: str, line: int, reason: str, text: str, limit: int = CLIPPED_CHARS) -> None:
        self.first = self.first or f"{file}:{line}: {reason}"
        row = {"file": file, "line": line, "reason": reason, "text": self._mask(text[:limit])}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


def general_reason(reason: str) -> str:
    """A reason without what is particular to one row, so that rows of one fault are counted together."""
    head = reason.split(" at byte")[0].split(" at column")[0]
    return " ".join("N" if any(c.isdigit() for c in word) else word for word in head.split()[:12])


def shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [100 * count / total if total else 0.0 for count in counts]
