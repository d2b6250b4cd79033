"""CSV that a spreadsheet opens as text: no cell becomes a formula."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from itertools import chain
from typing import Any

# What makes a spreadsheet calculate: a sign or '@', also behind a tab, a line break, or in full width.
_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def safe_cell(value: Any) -> Any:
    """The value as a cell: text that a spreadsheet would run gets an apostrophe in front; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    value = value.replace("\0", "�")
    return f"'{value}" if value.lstrip(" \u00a0\ufeff\u200b").startswith(_STARTS) else value


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """CSV text line by line (RFC 4180, CRLF), every cell made safe; for a streamed reply."""
    buffer = StringIO()
    writer = csv.writer(buffer)
    for row in chain([header], rows):
        writer.writerow([safe_cell(cell) for cell in row])
        yield _taken(buffer)


def _taken(buffer: StringIO) -> str:
    line = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return line
