"""Text files and data sets of the hub as rows; which input is which."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import BadRow, Limits
from rlhf.core.run import Launch
from sft.prepare.hub import hub_rows
from sft.prepare.layouts import Reading
from sft.prepare.readers import find_sources, read_samples
from sft.prepare.textfile import text_rows

LIMITS = Limits(max_line_bytes=100)


def texts(path: Path, separator: str = "auto") -> list[tuple[int, str]]:
    rows = text_rows(path, separator, LIMITS)
    return [(line, str(row) if isinstance(row, BadRow) else row["text"]) for line, _, row in rows]


def test_documents_are_parted_by_a_line_by_empty_lines_or_by_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n", encoding="utf-8")
    assert texts(path) == texts(path, "blank") == [(1, "one\ntwo\n"), (5, "three\n")]
    assert texts(path, "line") == [(1, "one\n"), (2, "two\n"), (5, "three\n")]
    path.write_bytes(b"\xef\xbb\xbfone\n\ntwo\n<|endoftext|>\nthree")
    assert texts(path) == [(1, "one\n\ntwo\n"), (5, "three")]
    path.write_text("one\n---\ntwo\n", encoding="utf-8")
    assert texts(path, "---") == [(1, "one\n"), (3, "two\n")]
    zipped = tmp_path / "b.txt.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert texts(zipped, "---") == [(1, "one\n"), (3, "two\n")]


def test_documents_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(
        b"caf\xe9\n\na\x00b\n\n" + b"x" * 101 + b"\n\n" + b"y" * 60 + b"\n" + b"z" * 60 + b"\n\ngood\n"
    )
    assert texts(path, "blank") == [
        (1, "not UTF-8 at byte 4 (0xe9)"),
        (3, "NUL byte at byte 2"),
        (5, "a document longer than 100 bytes"),
        (7, "a document longer than 100 bytes"),
        (10, "good\n"),
    ]


def test_sources_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.csv.gz", "sub"):
        (tmp_path / name).mkdir() if name == "sub" else (tmp_path / name).write_text("x")
    (tmp_path / "sub" / "a.jsonl").write_text("x")
    launch = Launch(workspace=tmp_path, db="")
    found = find_sources(["a.jsonl", "b.csv.gz", "other=sub/a.jsonl", "hub:org/set:test"], launch, LIMITS)
    assert [source.name for source in found] == ["a", "b", "other", "set"]
    assert (found[3].hub_id, found[3].split) == ("org/set", "test")
    with pytest.raises(ConfigError, match=r"both called 'a'; expected NAME=sub/a\.jsonl"):
        find_sources(["a.jsonl", "sub/a.jsonl"], launch, LIMITS)
    with pytest.raises(DataError, match="no such file"):
        find_sources(["missing.jsonl"], launch, LIMITS)
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(DataError, match="cannot tell what is in it"):
        find_sources(["a.doc"], launch, LIMITS)


def test_a_local_data_set_is_read_through_datasets(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"prompt": "q", "completion": "a", "empty": None}) + "\n"
    )
    assert [(number, row) for number, _, row in hub_rows(str(tmp_path), "train")] == [
        (1, {"prompt": "q", "completion": "a"})
    ]
    with pytest.raises(DataError, match="has no split 'test'; found: train"):
        list(hub_rows(str(tmp_path), "test"))
    with pytest.raises(DataError, match=r"hub:.*missing: cannot be loaded"):
        list(hub_rows(str(tmp_path / "missing"), "train"))
    source = find_sources([f"hub:{tmp_path}"], Launch(workspace=tmp_path, db=""), LIMITS)[0]
    [(_, _, sample)] = read_samples(source, Reading(), "auto", LIMITS)
    assert not isinstance(sample, BadRow)
    assert sample.answer == "a"


def test_a_parquet_row_that_is_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    # a string column over bytes that are none, as writers in other languages leave them
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"one", b"caf\xe9", b"two"]).buffers())
    pq.write_table(pa.table({"text": broken}), path)
    source = find_sources([str(path)], Launch(workspace=tmp_path, db=""), LIMITS)[0]
    rows = [row for _, _, row in read_samples(source, Reading(), "auto", LIMITS)]
    assert [str(row) if isinstance(row, BadRow) else row.text for row in rows] == [
        "one",
        "not UTF-8 (unexpected end of data)",
        "two",
    ]
