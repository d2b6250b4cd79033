"""Documents of a plain text file (optionally .gz), streamed: parted by a line, by empty lines, or one per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlhf.core.files import BadRow, Limits, SourceRow, checked_size, physical_lines

END_OF_TEXT = "<|endoftext|>"
LOOKED_AT_LINES = 10_000


def is_text_file(path: Path) -> bool:
    return path.name.removesuffix(".gz").rpartition(".")[2].lower() in ("txt", "text", "md")


def text_rows(path: Path, separator: str, limits: Limits) -> Iterator[SourceRow]:
    """(line on which it begins, its bytes, {"text": ...}) of each document that is not blank.

    separator: 'auto', 'blank', 'line', or the text of the line that parts documents. A document over the cap on
    the bytes of a line is one bad row. Raises DataError like `physical_lines`.
    """
    checked_size(path, limits, "a text file")
    if separator == "auto":
        separator = END_OF_TEXT if _has_line(path, END_OF_TEXT, limits) else "blank"
    mark = separator.encode()
    document = _Document(limits.max_line_bytes)
    for number, line in physical_lines(path, limits):
        stripped = None if line is None else line.strip()
        ends = stripped == (b"" if separator in ("blank", "line") else mark)
        if not ends:
            document.add(number, line)
        if ends or separator == "line":
            yield from document.rows()
            document = _Document(limits.max_line_bytes)
    yield from document.rows()


class _Document:
    """The lines of one document so far; of one that is too long only the beginning is kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.begins, self.size, self.whole = 0, 0, True
        self.lines: list[bytes] = []

    def add(self, number: int, line: bytes | None) -> None:
        self.begins = self.begins or number
        self.size += len(line or b"")
        self.whole = self.whole and line is not None and self.size <= self.max_bytes
        if self.whole and line is not None:
            self.lines.append(line)

    def rows(self) -> Iterator[SourceRow]:
        raw = b"".join(self.lines)
        if not self.whole:
            yield self.begins, raw, BadRow(f"a document longer than {self.max_bytes} bytes")
        elif raw.strip():
            yield self.begins, raw, _text(raw)


def _text(raw: bytes) -> dict[str, str] | BadRow:
    if b"\x00" in raw:
        return BadRow(f"NUL byte at byte {raw.index(0) + 1}")
    try:
        return {"text": raw.decode("utf-8")}
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 at byte {error.start + 1} (0x{raw[error.start]:02x})")


def _has_line(path: Path, wanted: str, limits: Limits) -> bool:
    for number, line in physical_lines(path, limits):
        if line is not None and line.strip() == wanted.encode():
            return True
        if number >= LOOKED_AT_LINES:
            return False
    return False
