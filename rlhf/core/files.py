"""JSONL in and out, with caps, line numbers, a quarantine file and atomic writes.

Reading never trusts a file: lines, nesting, size and the decompression ratio are capped, and what a JSON
parser would accept in silence (NaN, a duplicate key, a lone surrogate, NUL) is refused with its line number.
Writing goes to a temporary file beside the target, is flushed to disk, and is renamed into place.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError

from rlhf.core.errors import DataError
from rlhf.core.validation import nearest, one_line, problems

Row = TypeVar("Row", bound=BaseModel)

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
QUARANTINE_TEXT_CHARS = 4096
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """What a file may cost. `max_ratio` (decompressed : compressed) counts beyond max_line_bytes."""

    max_line_bytes: int = 1 << 20
    max_depth: int = 32
    max_file_bytes: int = 1 << 30
    max_ratio: float = 100.0


class BadRow(ValueError):
    """One row cannot be used; the rest of the file can."""


# (line or row number, the row's bytes for the quarantine file, the row or what is wrong with it)
SourceRow = tuple[int, bytes, dict[str, Any] | BadRow]


def read_jsonl(
    path: Path,
    model: type[Row],
    *,
    quarantine: Path | None = None,
    unique: str | None = None,
    limits: Limits | None = None,
) -> Iterator[Row]:
    """Rows of a JSONL file (optionally .gz) as records.

    quarantine: None makes the first bad row a DataError('FILE:LINE: ...'); a path collects bad rows there as
    {"line", "reason", "text"} and goes on. unique: an attribute that no two rows may share.
    Raises DataError for a missing, unreadable, oversized or empty file and for one without a good row.
    """
    for _, record in read_numbered(path, model, quarantine=quarantine, unique=unique, limits=limits):
        yield record


def read_numbered(
    path: Path,
    model: type[Row],
    *,
    quarantine: Path | None = None,
    unique: str | None = None,
    limits: Limits | None = None,
) -> Iterator[tuple[int, Row]]:
    """`read_jsonl` with the line number of each row, for callers whose own checks must name it."""
    first_line_of: dict[Any, int] = {}

    def parse(line: int, data: dict[str, Any]) -> Row:
        record = validated(model, data)
        if unique is not None:
            key = getattr(record, unique)
            if key in first_line_of:
                raise BadRow(f"{unique} {key!r} was already used on line {first_line_of[key]}")
            first_line_of[key] = line
        return record

    yield from _read(Path(path), parse, quarantine, limits or Limits())


def read_rows(
    path: Path, *, quarantine: Path | None = None, limits: Limits | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each row; the same checks as `read_jsonl` without a record type."""
    yield from _read(Path(path), lambda _, data: data, quarantine, limits or Limits())


def _read(path: Path, parse: Any, quarantine: Path | None, limits: Limits) -> Iterator[tuple[int, Any]]:
    yield from collect_rows(path, jsonl_rows(path, limits), parse, quarantine, "one JSON object per line")


def collect_rows(
    path: Path, source: Iterable[SourceRow], parse: Any, quarantine: Path | None, expected: str
) -> Iterator[tuple[int, Any]]:
    """(line, parse(line, data)) of each good row of a source; the bad ones are refused or put in quarantine.

    `parse` raises BadRow for a row that it cannot use. `expected` says what a row is, for an empty file.
    """
    good = 0
    bad = _BadRows(path, quarantine)
    with bad:
        for line, raw, data in source:
            try:
                if isinstance(data, BadRow):
                    raise data
                row = parse(line, data)
            except BadRow as error:
                bad.add(line, str(error), raw)
                continue
            good += 1
            yield line, row
    if not good and not bad.count:
        raise DataError(f"{path}: file is empty; expected {expected}")
    if not good:
        raise DataError(
            f"{path}: no usable row among {bad.count}; first: {bad.first}; all are in {quarantine}"
        )


def jsonl_rows(path: Path, limits: Limits) -> Iterator[SourceRow]:
    """The rows of a JSONL file (optionally .gz), parsed and checked."""
    for line, raw in _lines(path, limits):
        if raw is None:
            yield line, b"", BadRow(f"line is longer than {limits.max_line_bytes} bytes")
            continue
        try:
            yield line, raw, parse_object(raw, limits)
        except BadRow as error:
            yield line, raw, error


class _BadRows:
    """Raises on the first bad row, or collects them in a quarantine file that appears when reading ends."""

    def __init__(self, path: Path, quarantine: Path | None) -> None:
        self.path, self.quarantine = path, quarantine
        self.count, self.first = 0, ""
        self._file: IO[str] | None = None

    def __enter__(self) -> _BadRows:
        return self

    def add(self, line: int, reason: str, raw: bytes) -> None:
        where = f"{self.path}:{line}: {reason}"
        if self.quarantine is None:
            raise DataError(where)
        self.count += 1
        self.first = self.first or where
        if self._file is None:
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(_part(self.quarantine), "w", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        text = raw[: QUARANTINE_TEXT_CHARS * 4].decode("utf-8", "replace")[:QUARANTINE_TEXT_CHARS]
        self._file.write(
            json.dumps({"line": line, "reason": reason, "text": text}, ensure_ascii=False) + "\n"
        )

    def __exit__(self, *exc: object) -> None:
        if self._file is not None and self.quarantine is not None:
            self._file.close()
            os.replace(_part(self.quarantine), self.quarantine)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _lines(path: Path, limits: Limits) -> Iterator[tuple[int, bytes | None]]:
    """(line number, bytes without the newline) of each non-blank line; None for a line over the cap."""
    for number, line in physical_lines(path, limits):
        if line is None or line.strip():
            yield number, line if line is None else line.rstrip(b"\r\n")


def checked_size(path: Path, limits: Limits, expected: str = "a JSONL file") -> int:
    """The size of a file in bytes. Raises DataError when it is missing, no file, or too large."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "not a regular file"
        raise DataError(f"{path}: is {kind}; expected {expected}")
    size = path.stat().st_size
    if size > limits.max_file_bytes:
        raise DataError(f"{path}: {size} bytes; at most {limits.max_file_bytes} are read")
    return size


def physical_lines(path: Path, limits: Limits) -> Iterator[tuple[int, bytes | None]]:
    """(line number, bytes with the newline) of every line of a file or .gz; None for a line over the cap.

    A byte-order mark is removed. Raises DataError for UTF-16, a broken archive and a decompression bomb.
    """
    number = 0
    with _opened(path, limits) as file:
        while chunk := file.readline(limits.max_line_bytes + 1):
            number += 1
            line: bytes | None = chunk
            if len(chunk) > limits.max_line_bytes and not chunk.endswith(b"\n"):
                line = None
                while chunk and not chunk.endswith(b"\n"):
                    chunk = file.readline(limits.max_line_bytes + 1)
            yield number, line if number > 1 or line is None else _without_bom(path, line)


def blocks(path: Path, limits: Limits, size: int) -> Iterator[bytes]:
    """The bytes of a file or .gz in blocks, under the same caps and refusals as `physical_lines`."""
    with _opened(path, limits) as file:
        first = True
        while block := file.read(size):
            yield _without_bom(path, block) if first else block
            first = False


def _without_bom(path: Path, start: bytes) -> bytes:
    if start.startswith(UTF16_BOMS):
        raise DataError(f"{path}: UTF-16 text; expected UTF-8")
    return start.removeprefix(UTF8_BOM)


class _Counted:
    """A file that gives no more than so many bytes, however small it looks on disk."""

    def __init__(self, path: Path, file: IO[bytes] | gzip.GzipFile, max_bytes: int) -> None:
        self.path, self.file, self.max_bytes, self.total = path, file, max_bytes, 0

    def readline(self, size: int) -> bytes:
        return self._count(self.file.readline(size))

    def read(self, size: int) -> bytes:
        return self._count(self.file.read(size))

    def _count(self, data: bytes) -> bytes:
        self.total += len(data)
        if self.total > self.max_bytes:
            raise DataError(
                f"{self.path}: expands beyond {self.max_bytes} bytes; refused as a decompression bomb"
            )
        return data


@contextlib.contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[_Counted]:
    size = checked_size(path, limits)
    zipped = path.suffix == ".gz"
    # A small file may legitimately compress well; the ratio only matters once the output is large.
    max_bytes = limits.max_file_bytes
    if zipped:
        max_bytes = min(max_bytes, int(max(size * limits.max_ratio, limits.max_line_bytes)))
    try:
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            yield _Counted(path, file, max_bytes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file ({one_line(str(error))})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_object(raw: bytes, limits: Limits) -> dict[str, Any]:
    """One JSON object, strictly: no NaN, NUL, duplicate key, lone surrogate or deep nesting. Raises BadRow."""
    if b"\x00" in raw:
        raise BadRow(f"NUL byte at byte {raw.index(0) + 1}")
    if _depth(raw, limits.max_depth) > limits.max_depth:
        raise BadRow(f"nested deeper than {limits.max_depth} levels")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 at byte {error.start + 1} (0x{raw[error.start]:02x})") from error
    try:
        data = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        hint = "; expected a whole object on one line" if raw.strip() in (b"{", b"[") else ""
        raise BadRow(f"broken JSON at column {error.colno}: {error.msg}{hint}") from error
    except BadRow:
        raise
    except ValueError as error:  # an integer with thousands of digits
        raise BadRow(f"unusable number: {one_line(str(error))}") from error
    if not isinstance(data, dict):
        raise BadRow(f"found a {type(data).__name__}; expected a JSON object")
    check_text(data)
    return data


def _depth(raw: bytes, limit: int) -> int:
    """Deepest nesting of brackets outside strings; brackets are counted first, so most lines cost nothing."""
    if raw.count(b"[") + raw.count(b"{") <= limit:
        return 1
    depth = deepest = 0
    for byte in _JSON_STRING.sub(b"", raw):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRow(f"key {twice!r} appears twice in one object")
    return data


def _constant(name: str) -> float:
    raise BadRow(f"found {name}; expected a finite number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRow(f"found {text}, which is too large; expected a finite number")
    return value


# one decoder for all rows: json.loads with options makes a new one at every call
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def check_text(value: Any) -> None:
    """Escapes can smuggle in what the raw bytes were checked for: lone surrogates and NUL."""
    if isinstance(value, str):
        if "\x00" in value:
            raise BadRow("text holds a NUL character (\\u0000)")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow(f"text holds a lone surrogate (\\u{ord(value[error.start]):04x})") from error
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            check_text(item)
    elif isinstance(value, list):
        for item in value:
            check_text(item)


def validated(model: type[Row], data: dict[str, Any]) -> Row:
    """A row as a record. Raises BadRow naming the column, what it holds and what was expected."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        path, message = problems(error)[0]
        name = ".".join(path)
        if not name:
            raise BadRow(message) from error
        if message == "is not a known name":
            message = f"is not a known column{nearest(name, model.model_fields)}"
        elif message == "is missing":
            message = f"is missing; found the columns {', '.join(data) or 'none'}"
        raise BadRow(f"'{name}' {message}") from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path`, renamed onto it when the block ends well, removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_directory(path.parent)


@contextlib.contextmanager
def atomic_folder(out: Path, mode: int = 0o777) -> Iterator[Path]:
    """A folder to fill, which takes the name `out` when it is complete; nothing is left of one that was not.

    At `out` there may be nothing, or an empty folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode)
    try:
        yield building
        if out.exists():
            out.rmdir()
        os.replace(building, out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def clear_folders(out: Path, *names: str) -> None:
    """Make room for these folders of `out`: remove what processes that were killed left of them, complete or not."""
    for name in names:
        for leftover in (out / name, *out.glob(f".{name}.building-[0-9]*")):
            shutil.rmtree(leftover, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(path: Path) -> None:
    """A rename is only durable once its directory is; some filesystems do not offer that and say so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def to_json(value: Any, **options: Any) -> str:
    """JSON text of a record or plain value. Raises DataError for NaN, Infinity and lone surrogates."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain, **options)
        text.encode("utf-8")
    except (ValueError, TypeError) as error:
        raise DataError(f"cannot be written as JSON: {one_line(str(error))}") from error
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "item"):  # numpy and torch scalars
        return value.item()
    raise TypeError(f"a {type(value).__name__} is not JSON")


def write_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> int:
    """Write one object per line, atomically; returns how many rows."""
    count = 0
    with atomic_file(path) as file:
        for row in rows:
            file.write(to_json(row).encode("utf-8") + b"\n")
            count += 1
    return count


def write_json(path: Path, obj: Any) -> None:
    """Write one indented JSON value, atomically."""
    write_text(path, to_json(obj, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
