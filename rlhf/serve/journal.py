"""Rows of figures in a JSONL file that does not grow without end: when it is full it is set aside, the oldest go."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.core.files import to_json

MAX_BYTES = 8 << 20
NUM_KEPT = 4


class Journal:
    """`path`, and the files before it as path.1 (the newest) to path.NUM_KEPT. Thread-safe.

    A row may be lost when the machine stops; none is ever half read: a broken line is passed over.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, num_kept: int = NUM_KEPT) -> None:
        self.path, self.max_bytes, self.num_kept = path, max_bytes, num_kept
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = open(path, "ab")  # noqa: SIM115 - closed by `close`

    def add(self, row: dict[str, Any]) -> None:
        line = to_json(row).encode() + b"\n"
        with self._lock:
            if self._file.closed:
                return
            if self._file.tell() + len(line) > self.max_bytes and self._file.tell():
                self._rotate()
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def newest(self, count: int) -> list[dict[str, Any]]:
        """The last rows, oldest first."""
        kept: deque[dict[str, Any]] = deque(maxlen=count)
        for number in range(self.num_kept, -1, -1):
            kept.extend(_rows(self._numbered(number)))
        return list(kept)

    def _numbered(self, number: int) -> Path:
        return self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self.num_kept - 1, -1, -1):
            if (older := self._numbered(number)).exists():
                older.replace(self._numbered(number + 1))
        self._file = open(self.path, "ab")  # noqa: SIM115


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
    except FileNotFoundError:
        return
