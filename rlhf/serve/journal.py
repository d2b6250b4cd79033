"""Rows of figures in a JSONL file that does not grow without end: when it is full it is set aside, the oldest go."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from rlhf.core.files import to_json

MAX_BYTES = 8 << 20
NUM_KEPT = 4


class Journal:
    """`path`, and the files before it as path.1 (the newest) to path.NUM_KEPT. Thread-safe.

    A row may be lost when the machine stops or its disk is full (stderr tells of it once); none is ever half read: a
    broken line is passed over.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, num_kept: int = NUM_KEPT) -> None:
        self.path, self.max_bytes, self.num_kept = path, max_bytes, num_kept
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = _opened(path)
        self._closed = self._failing = False

    def add(self, row: dict[str, Any]) -> None:
        line = to_json(row).encode() + b"\n"
        with self._lock:
            if self._closed:
                return
            try:
                if self._file.closed:  # the last row failed half way
                    self._file = _opened(self.path)
                if self._file.tell() + len(line) > self.max_bytes and self._file.tell():
                    self._rotate()
                self._file.write(line)
            except OSError as error:  # a full disk: the answer that a row tells of must not fail with it
                self._file.close()
                if not self._failing:
                    print(f"{self.path}: rows are lost: {error}", file=sys.stderr, flush=True)
                self._failing = True
            else:
                self._failing = False

    def close(self) -> None:
        with self._lock:
            self._closed = True
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
        self._file = _opened(self.path)


def _opened(path: Path) -> FileIO:
    """For rows at the end; a line that was broken off is ended, so that the next row is not lost with it.

    Not buffered: a row that could not be written does not come back with the next one.
    """
    file = open(path, "ab+", buffering=0)  # noqa: SIM115 - closed by the journal
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


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
