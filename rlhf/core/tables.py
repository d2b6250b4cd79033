"""Rows out of the files that people have: JSONL, a JSON array, CSV, TSV, Parquet; text files optionally .gz.

Every kind is streamed and capped, and gives (number, row) like `rlhf.core.files.read_rows`: the number is the
line of JSONL, the line on which a CSV row begins, and the position of an item or row in JSON and Parquet.
An empty CSV cell and a null are both a missing column; CSV values are text, except that the columns in
`JSON_COLUMNS` hold JSON.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
import pyarrow.parquet

from rlhf.core.errors import DataError
from rlhf.core.files import (
    BadRow,
    Limits,
    SourceRow,
    blocks,
    check_text,
    checked_size,
    collect_rows,
    jsonl_rows,
    parse_object,
    physical_lines,
)
from rlhf.core.validation import one_line

Item = TypeVar("Item")

JSON_COLUMNS = frozenset({"messages", "completions"})
PARQUET_BATCH = 256
BLOCK_BYTES = 1 << 16
_TOO_LONG = "\x00"  # stands for a line over the cap, since no text may hold it anyway
_EXPECTED = {
    "jsonl": "one JSON object per line",
    "json": "a JSON list of objects",
    "csv": "a header and one row per line",
    "tsv": "a header and one row per line",
    "parquet": "rows",
}
_SUFFIXES = {"ndjson": "jsonl", "pq": "parquet"}


def kind_of_file(path: Path) -> str:
    """jsonl, json, csv, tsv or parquet, by the name. Raises DataError for any other."""
    name = path.name[: -len(".gz")] if path.name.endswith(".gz") else path.name
    suffix = name.rpartition(".")[2].lower()
    kind = _SUFFIXES.get(suffix, suffix)
    if kind not in _EXPECTED or (kind == "parquet" and path.name.endswith(".gz")):
        raise DataError(
            f"{path}: cannot tell what is in it; expected .jsonl, .json, .csv, .tsv (each also .gz) or .parquet"
        )
    return kind


def read_table(
    path: Path,
    parse: Callable[[int, dict[str, Any]], Item],
    *,
    quarantine: Path | None = None,
    limits: Limits | None = None,
) -> Iterator[tuple[int, Item]]:
    """(number, parse(number, row)) of each good row of a file of any kind.

    quarantine: None makes the first bad row a DataError; a path collects them there, with the reason for each.
    Raises DataError for a missing, unreadable, oversized or empty file and for one without a good row.
    """
    path = Path(path)
    source, kind = table_rows(path, limits or Limits())
    yield from collect_rows(path, source, parse, quarantine, _EXPECTED[kind])


def table_rows(path: Path, limits: Limits) -> tuple[Iterator[SourceRow], str]:
    """The rows of a file, good and bad ones, and the kind that it is (a .json without a list is jsonl).

    Raises DataError at once for a file that is missing, too large or of no known kind, and while the rows are
    read for one that cannot be read on.
    """
    checked_size(path, limits, "a file of rows")
    kind = kind_of_file(path)
    if kind == "json" and not _is_list(path, limits):
        kind = "jsonl"
    if kind == "parquet":
        return _parquet_rows(path, limits), kind
    if kind == "jsonl":
        return jsonl_rows(path, limits), kind
    if kind == "json":
        return _json_items(path, limits), kind
    return _csv_rows(path, limits, tabs=kind == "tsv"), kind


# --- JSON lists -----------------------------------------------------------------------------------------


def _is_list(path: Path, limits: Limits) -> bool:
    return next((b.lstrip()[:1] == b"[" for b in blocks(path, limits, BLOCK_BYTES) if b.strip()), False)


def _json_items(path: Path, limits: Limits) -> Iterator[SourceRow]:
    """The objects of a JSON list, one at a time: a lenient decoder finds where each ends, a strict one reads it.

    Where an item is broken the next one cannot be found: it is the last bad row.
    """
    chunks = _text_chunks(path, limits)
    # Numbers stay text: Python refuses to make an integer of more than 4,300 digits.
    decoder, number = json.JSONDecoder(parse_int=str, parse_float=str), 0
    buffer, position = _skip("", 0, chunks, " \t\r\n")
    position += 1  # past the '[' that `_is_list` saw
    while True:
        buffer, position = _skip(buffer, position, chunks, " \t\r\n,")
        if position >= len(buffer) or buffer[position] == "]":
            if position >= len(buffer):
                yield number + 1, b"", BadRow("the list does not end; expected ']'")
            return
        number += 1
        while True:
            try:
                _, end = decoder.raw_decode(buffer, position)
            except (json.JSONDecodeError, RecursionError) as error:
                too_deep = isinstance(error, RecursionError)
                more = "" if too_deep or len(buffer) - position > limits.max_line_bytes else next(chunks, "")
                if more:
                    buffer, position = buffer[position:] + more, 0
                    continue
                what = (
                    "nested too deeply" if too_deep else f"broken JSON or over {limits.max_line_bytes} bytes"
                )
                raw = buffer[position : position + 4096].encode("utf-8", "replace")
                yield number, raw, BadRow(f"{what}; the rest of the list cannot be read")
                return
            break
        raw = buffer[position:end].encode("utf-8", "surrogatepass")
        try:
            yield number, raw, parse_object(raw, limits)
        except BadRow as error:
            yield number, raw, error
        position = end


def _skip(buffer: str, position: int, chunks: Iterator[str], passed: str) -> tuple[str, int]:
    while True:
        while position < len(buffer) and buffer[position] in passed:
            position += 1
        if position < len(buffer):
            return buffer, position
        more = next(chunks, None)
        if more is None:
            return "", 0
        buffer, position = more, 0


def _text_chunks(path: Path, limits: Limits) -> Iterator[str]:
    """The text of a file in pieces: a list is often one line, which is never read as a whole."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    try:
        for block in blocks(path, limits, BLOCK_BYTES):
            yield decoder.decode(block)
            read += len(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 near byte {read + error.start + 1}") from error


# --- CSV ------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, limits: Limits, *, tabs: bool) -> Iterator[SourceRow]:
    begins = [1]

    def decoded() -> Iterator[str]:
        for number, line in physical_lines(path, limits):
            begins[0] = number
            yield f"{_TOO_LONG}\n" if line is None else line.decode("utf-8", "surrogateescape")

    lines = decoded()
    first = next((line for line in lines if line.strip()), "")
    delimiter = "\t" if tabs else ";" if first.count(";") > first.count(",") else ","
    reader = csv.reader(_first_then(first, lines), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{path}:1: the header cannot be read ({error})") from error
    _check_header(path, names)
    while True:
        line = begins[0] + 1
        fields: list[str] = []
        try:
            fields = next(reader)
            if not fields:
                continue
            yield line, _csv_text(fields), _csv_row(names, fields, limits)
        except StopIteration:
            return
        except (csv.Error, BadRow) as error:
            reason = error if isinstance(error, BadRow) else BadRow(f"not readable as CSV ({error})")
            yield line, _csv_text(fields), reason


def _first_then(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _check_header(path: Path, names: list[str]) -> None:
    if not names:
        return
    if any("\udc80" <= c <= "\udcff" or c == _TOO_LONG for name in names for c in name):
        raise DataError(f"{path}:1: the header is not UTF-8 text; expected the names of the columns")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not all(names):
        found = f"'{twice}' twice" if twice else "a column without a name"
        raise DataError(f"{path}:1: the header has {found}; expected a different name for each column")


def _csv_row(names: list[str], fields: list[str], limits: Limits) -> dict[str, Any]:
    if any(_TOO_LONG in field for field in fields):
        raise BadRow(f"a line longer than {limits.max_line_bytes} bytes, or a NUL character")
    if any("\udc80" <= c <= "\udcff" for field in fields if not field.isascii() for c in field):
        raise BadRow("not UTF-8")
    if len(fields) != len(names):
        raise BadRow(f"found {len(fields)} fields; the header names {len(names)}: {', '.join(names[:12])}")
    row: dict[str, Any] = {}
    for name, field in zip(names, fields, strict=True):
        if field == "":
            continue
        if name in JSON_COLUMNS and field[0] == "[":
            row[name] = parse_object(f'{{"value": {field}}}'.encode(), limits)["value"]
        else:
            row[name] = field
    return row


def _csv_text(fields: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue().encode("utf-8", "replace")


# --- Parquet --------------------------------------------------------------------------------------------


def _parquet_rows(path: Path, limits: Limits) -> Iterator[SourceRow]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
            if sum(groups) > limits.max_file_bytes:
                raise DataError(
                    f"{path}: expands to {sum(groups)} bytes; at most {limits.max_file_bytes} are read"
                )
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for found in _batch_rows(batch):
                    number += 1
                    yield number, repr(found)[:4096].encode("utf-8", "replace"), _parquet_row(found, limits)
    except DataError:
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError, MemoryError) as error:  # a damaged file
        raise DataError(f"{path}: cannot be read as Parquet ({one_line(str(error))[:200]})") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read as Parquet ({error.strerror or one_line(str(error))})"
        ) from error


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a batch; one that Python cannot hold (broken UTF-8, a date beyond its calendar) is a bad row."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        for place in range(batch.num_rows):
            try:
                yield batch.slice(place, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield BadRow(f"not UTF-8 ({error.reason})")
            except (ValueError, OverflowError) as error:
                yield BadRow(f"holds a value that cannot be read ({one_line(str(error))[:100]})")
    else:
        yield from rows


def _parquet_row(found: dict[str, Any] | BadRow, limits: Limits) -> dict[str, Any] | BadRow:
    if isinstance(found, BadRow):
        return found
    try:
        row = {key: _plain(value, limits.max_depth) for key, value in found.items()}
        check_text(row)
    except BadRow as error:
        return error
    return {key: value for key, value in row.items() if value is not None}


def _plain(value: Any, depth: int) -> Any:
    """A Parquet value as JSON would hold it; NaN is how pandas writes a missing number."""
    if depth < 0:
        raise BadRow("nested too deeply")
    if isinstance(value, float):
        if math.isinf(value):
            raise BadRow(f"found {value}; expected a finite number")
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if value is None or isinstance(value, str | int | bool):
        return value
    raise BadRow(f"found a value of type {type(value).__name__}; expected text, numbers, lists and objects")
