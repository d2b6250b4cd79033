"""Files of rows as people have them, and as people who wish us ill would write them."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from rlhf.core.errors import DataError
from rlhf.core.files import BadRow, Limits
from rlhf.core.tables import kind_of_file, read_table

ROWS = [{"prompt": f'question {i}, with "quotes"\nand a second line', "score": str(i)} for i in range(5)]


def written(tmp_path, name, rows=ROWS):
    path = tmp_path / name
    opened = gzip.open if name.endswith(".gz") else open
    if ".csv" in name or ".tsv" in name:
        with opened(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if ".tsv" in name else ",")
            writer.writerow(rows[0])
            writer.writerows(row.values() for row in rows)
    elif ".parquet" in name:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row) for row in rows]
        whole = "[" + ", ".join(lines) + "]" if ".json" in name and ".jsonl" not in name else "\n".join(lines)
        with opened(path, "wt", encoding="utf-8") as file:
            file.write(whole)
    return path


def read(path, **options):
    return list(read_table(path, lambda _, row: row, **options))


def bad(path, tmp_path, **options):
    """(good rows, {number: reason}) with a quarantine."""
    quarantine = tmp_path / "bad.jsonl"
    good = read(path, quarantine=quarantine, **options)
    reasons = [json.loads(line) for line in quarantine.read_text(encoding="utf-8").splitlines()]
    return good, {row["line"]: row["reason"] for row in reasons}


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.ndjson", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    found = read(written(tmp_path, name))
    assert [row for _, row in found] == ROWS
    lines = [2, 4, 6, 8, 10] if "sv" in name else [1, 2, 3, 4, 5]  # a CSV row begins on a line
    assert [number for number, _ in found] == lines


def test_a_file_of_another_kind_is_refused(tmp_path):
    for name in ("a.xlsx", "a", "a.parquet.gz", "a.jsonl.zip"):
        (tmp_path / name).write_text("x")
        with pytest.raises(DataError, match=r"expected \.jsonl, \.json, \.csv"):
            read(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "missing.csv")
    assert kind_of_file(tmp_path / "A.JSONL") == "jsonl"


def test_bad_csv_rows_are_set_aside_with_their_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfprompt,score\n"
        b"good,1\n"
        b"too,many,fields\n"
        b"caf\xe9,2\n"
        b"nul\x00,3\n"
        b'"unclosed" quote,4\n'
        b"\n" + b"x" * 300 + b",5\n"
        b"last,6\n"
    )
    good, reasons = bad(path, tmp_path, limits=Limits(max_line_bytes=200))
    assert good == [(2, {"prompt": "good", "score": "1"}), (9, {"prompt": "last", "score": "6"})]
    assert sorted(reasons) == [3, 4, 5, 6, 8]
    parts = {3: "found 3 fields; the header names 2", 4: "not UTF-8", 5: "NUL", 6: "CSV", 8: "200 bytes"}
    assert not [line for line, part in parts.items() if part not in reasons[line]]


def test_a_quote_that_never_ends_does_not_swallow_memory(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt\nfine\n" + '"never closed\n' + "line\n" * 40_000)
    good, reasons = bad(path, tmp_path)
    assert good[0] == (2, {"prompt": "fine"})
    assert "131072" in reasons[3]


@pytest.mark.parametrize(
    ("header", "part"),
    [(b"a,a\n1,2\n", "'a' twice"), (b"a,,b\n1,2,3\n", "without a name"), (b"a\xff,b\n1,2\n", "not UTF-8")],
)
def test_a_header_that_names_nothing_clearly_is_refused(tmp_path, header, part):
    (tmp_path / "a.csv").write_bytes(header)
    with pytest.raises(DataError, match=part):
        read(tmp_path / "a.csv")


def test_empty_cells_are_missing_and_lists_are_json(tmp_path):
    (tmp_path / "a.csv").write_text('prompt;completions;note\nq;"[""a"", ""b""]";\n')
    assert read(tmp_path / "a.csv") == [(2, {"prompt": "q", "completions": ["a", "b"]})]


def test_empty_files_are_refused(tmp_path):
    for name, content in (
        ("a.csv", ""),
        ("b.csv", "prompt\n"),
        ("c.json", "[]"),
        ("d.json", " "),
        ("e.jsonl", "\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match="file is empty"):
            read(tmp_path / name)


def test_json_lists_with_bad_items(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        '\ufeff [{"a": 1},\n 7, {"a": NaN}, {"a": 1, "a": 2}, {"a": {"b": "]"}}, {"a": "\\u0000"}]'
    )
    good, reasons = bad(path, tmp_path)
    assert [number for number, _ in good] == [1, 5]
    assert {number: reason[:9] for number, reason in reasons.items()} == {
        2: "found a i",
        3: "found NaN",
        4: "key 'a' a",
        6: "text hold",
    }


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('[{"a": 1}, {"a": ', "broken JSON"),
        ('[{"a": 1}', "does not end"),
        ('[{"a": 1}, ' + "[" * 50_000, "nested too deeply"),
        ('[{"a": 1}, {"a": ' + "[" * 40 + "]" * 40 + "}]", "nested deeper than 32"),
        ('[{"a": 1}, {"a": "' + "x" * 2_000_000, "over 1048576 bytes"),
    ],
)
def test_json_lists_that_break_off_keep_what_came_before(tmp_path, content, part):
    (tmp_path / "a.json").write_text(content)
    good, reasons = bad(tmp_path / "a.json", tmp_path)
    assert good == [(1, {"a": 1})]
    assert part in reasons[2]


def test_a_number_too_long_for_an_integer_is_a_bad_item(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, ' + "9" * 5000 + ', {"a": ' + "9" * 5000 + '}, {"a": 2}]')
    good, reasons = bad(path, tmp_path)
    assert [row["a"] for _, row in good] == [1, 2]
    assert set(reasons) == {2, 3}
    assert all("unusable number" in reason for reason in reasons.values())


def test_items_that_cross_the_blocks_of_a_long_list(tmp_path):
    rows = [{"text": "ä" * (i % 997), "i": i} for i in range(2000)]
    found = read(written(tmp_path, "a.json", rows))
    assert [row for _, row in found] == rows


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_decompression_bombs_are_refused(tmp_path, name):
    path = tmp_path / name
    with gzip.open(path, "wb") as file:
        file.write(b'[{"a": 1},' if ".json.gz" in name else b"a\n")
        for _ in range(64):
            file.write((b" " * 65_535 + b"\n") * 16)
    with pytest.raises(DataError, match="decompression bomb"):
        read(path, quarantine=tmp_path / "bad.jsonl")
    with open(path, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(DataError, match=r"not a complete gzip file|bomb"):
        read(path, quarantine=tmp_path / "bad.jsonl")


def test_parquet_values_that_are_no_text(tmp_path):
    rows = {"prompt": ["a", "b", "c"], "score": [1.5, float("nan"), float("inf")], "data": [None, None, b"x"]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    good, reasons = bad(tmp_path / "a.parquet", tmp_path)
    assert good == [(1, {"prompt": "a", "score": 1.5}), (2, {"prompt": "b"})]
    assert list(reasons) == [3]


def test_a_broken_or_swollen_parquet_file_is_refused(tmp_path):
    path = written(tmp_path, "a.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(path)
    path.write_bytes(b"PAR1" + bytes(range(256)) * 4 + b"PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(path)
    table = pyarrow.table({"text": ["x" * 1000] * 5000})
    pyarrow.parquet.write_table(table, path, use_dictionary=False, compression="zstd")
    assert path.stat().st_size < 50_000
    with pytest.raises(DataError, match="expands to"):
        read(path, limits=Limits(max_file_bytes=1 << 20))


def test_the_parsers_own_objections_reach_the_quarantine(tmp_path):
    def parse(number, row):
        if row["score"] == "3":
            raise BadRow("three is refused")
        return row

    path = written(tmp_path, "a.csv")
    with pytest.raises(DataError, match=r"a\.csv:8: three is refused"):
        list(read_table(path, parse))
    found = list(read_table(path, parse, quarantine=tmp_path / "bad.jsonl"))
    assert len(found) == 4
