"""Reading what people bring: every kind of broken file ends in one line that names file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from rlhf.core.errors import DataError
from rlhf.core.files import Limits, file_sha256, read_jsonl, read_rows, write_json, write_jsonl, write_text
from rlhf.core.records import Prompt


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str
    value: float = 0.0


GOOD = b'{"id": "a"}\n'


def rows(tmp_path: Path, content: bytes, **options: object) -> list[Row]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return list(read_jsonl(path, Row, **options))  # type: ignore[arg-type]


def test_good_rows_come_in_order_and_blank_lines_do_not_count_as_rows(tmp_path: Path) -> None:
    found = rows(tmp_path, b'{"id": "a", "value": 1.5}\n\n  \r\n{"id": "b"}')
    assert [(row.id, row.value) for row in found] == [("a", 1.5), ("b", 0.0)]


def test_a_byte_order_mark_is_stripped(tmp_path: Path) -> None:
    assert [row.id for row in rows(tmp_path, b"\xef\xbb\xbf" + GOOD)] == ["a"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"id": "a", "value": NaN}', "NaN; expected a finite number"),
        (b'{"id": "a", "value": Infinity}', "Infinity; expected a finite number"),
        (b'{"id": "a", "value": -Infinity}', "-Infinity; expected a finite number"),
        (b'{"id": "a", "value": 1e999}', "1e999, which is too large"),
        (b'{"id": "a", "value": ' + b"9" * 5000 + b"}", "unusable number"),
        (b'{"id": "a", "id": "b"}', "key 'id' appears twice"),
        (b'{"id": "\xff\xfe"}', "not UTF-8 at byte 9 (0xff)"),
        (b'{"id": "\\ud800"}', "lone surrogate (\\ud800)"),
        (b'{"id": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"id": "a\x00b"}', "NUL byte at byte 10"),
        (b'{"id": "a\\u0000b"}', "NUL character"),
        (b'{"id": "a"', "broken JSON at column 11"),
        (b"[" * 2000 + b"]" * 2000, "nested deeper than 32 levels"),
        (b'{"id": ' * 2000 + b"1" + b"}" * 2000, "nested deeper than 32 levels"),
        (b"[", "expected a whole object on one line"),
        (b'["a"]', "found a list; expected a JSON object"),
        (b'"a"', "found a str; expected a JSON object"),
        (b'{"value": 1}', "'id' is missing; found the columns value"),
        (b'{"id": 7}', "'id' expected a valid string; found 7"),
        (b'{"id": "a", "valu": 1}', "'valu' is not a known column; did you mean 'value'?"),
        (b'{"id": "a", "value": "x"}', "'value' expected a valid number"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_or_set_aside(tmp_path: Path, bad: bytes, reason: str) -> None:
    content = GOOD + b"\n" + bad + b"\n" + b'{"id": "z"}\n'
    with pytest.raises(DataError) as caught:
        rows(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'rows.jsonl'}:3: ")
    assert reason in message
    assert "\n" not in message

    quarantine = tmp_path / "bad.jsonl"
    assert [row.id for row in rows(tmp_path, content, quarantine=quarantine)] == ["a", "z"]
    set_aside = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [entry["line"] for entry in set_aside] == [3]
    assert reason in set_aside[0]["reason"]
    assert set_aside[0]["text"][:10] == bad.decode("utf-8", "replace")[:10]


def test_brackets_inside_strings_are_not_nesting(tmp_path: Path) -> None:
    text = "[{" * 500 + '\\"' + "[" * 100
    assert len(rows(tmp_path, b'{"id": "' + text.encode() + b'"}')) == 1


def test_the_deepest_allowed_nesting_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_bytes(b'{"a":' + b"[" * 31 + b"]" * 31 + b"}\n")
    assert len(list(read_rows(path))) == 1
    path.write_bytes(b'{"a":' + b"[" * 32 + b"]" * 32 + b"}\n")
    with pytest.raises(DataError, match="nested deeper than 32"):
        list(read_rows(path))


def test_an_overlong_line_is_skipped_without_being_held(tmp_path: Path) -> None:
    long = b'{"id": "' + b"x" * (30 << 20) + b'"}\n'
    with pytest.raises(DataError, match=r":2: line is longer than 1048576 bytes"):
        rows(tmp_path, GOOD + long + b'{"id": "z"}\n')
    found = rows(tmp_path, GOOD + long + b'{"id": "z"}\n', quarantine=tmp_path / "bad.jsonl")
    assert [row.id for row in found] == ["a", "z"]
    assert json.loads((tmp_path / "bad.jsonl").read_text())["line"] == 2


def test_a_file_over_the_size_cap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at most 20 are read"):
        rows(tmp_path, GOOD * 5, limits=Limits(max_file_bytes=20))


def test_gzip_is_read_and_a_bomb_or_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 3))
    assert len(list(read_jsonl(path, Row))) == 3

    bomb = gzip.compress((b'{"id": "' + b"x" * 1000 + b'"}\n') * 20_000)  # 20 MB in about 60 KB
    assert len(bomb) < 200_000
    path.write_bytes(bomb)
    with pytest.raises(DataError, match="decompression bomb"):
        list(read_jsonl(path, Row))

    one_line_bomb = gzip.compress(b"x" * (40 << 20))
    path.write_bytes(one_line_bomb)
    with pytest.raises(DataError, match=r"decompression bomb"):
        list(read_jsonl(path, Row, quarantine=tmp_path / "bad.jsonl"))

    path.write_bytes(gzip.compress(GOOD * 3)[:-6])
    with pytest.raises(DataError, match="not a complete gzip file"):
        list(read_jsonl(path, Row))
    path.write_bytes(GOOD)
    with pytest.raises(DataError, match="not a complete gzip file"):
        list(read_jsonl(path, Row))


def test_duplicate_ids_name_both_lines(tmp_path: Path) -> None:
    content = GOOD + b'{"id": "b"}\n' + GOOD
    with pytest.raises(DataError, match=r"rows\.jsonl:3: id 'a' was already used on line 1"):
        rows(tmp_path, content, unique="id")
    assert len(rows(tmp_path, content, unique="id", quarantine=tmp_path / "bad.jsonl")) == 2


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="file is empty; expected one JSON object per line"):
        rows(tmp_path, content)
    with pytest.raises(DataError, match="file is empty"):
        rows(tmp_path, content, quarantine=tmp_path / "bad.jsonl")


def test_a_file_without_one_good_row_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable row among 2; first: .*rows\.jsonl:1: broken JSON"):
        rows(tmp_path, b"{\n{\n", quarantine=tmp_path / "bad.jsonl")
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2


def test_missing_file_directory_and_utf16(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl", Row))
    with pytest.raises(DataError, match="is a directory; expected a JSONL file"):
        list(read_jsonl(tmp_path, Row))
    with pytest.raises(DataError, match="is not a regular file; expected a JSONL file"):
        list(read_jsonl(Path("/dev/null"), Row))
    with pytest.raises(DataError, match="UTF-16"):
        rows(tmp_path, '{"id": "a"}'.encode("utf-16"))


def test_records_say_what_is_wrong_in_nested_fields(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": [{"role": "boss", "content": "x"}]}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: 'messages\.0\.role' expected .*found 'boss'"):
        list(read_jsonl(path, Prompt))


def test_writing_round_trips_and_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    assert write_jsonl(path, [Row(id="ä\u2028", value=0.1), {"id": "b", "value": 2}]) == 2
    assert [row.id for row in read_jsonl(path, Row)] == ["ä\u2028", "b"]

    before = path.read_bytes()

    def broken() -> object:
        yield {"id": "c"}
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        write_jsonl(path, broken())  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]


def test_what_is_not_json_is_not_written(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf"), "\ud800", object()):
        with pytest.raises(DataError, match="cannot be written as JSON"):
            write_json(tmp_path / "x.json", {"value": value})
    assert not list(tmp_path.iterdir())


def test_file_sha256(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "abc")  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
