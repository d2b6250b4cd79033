"""A folder of files with every planted problem, good rows around each, and what has to come of it."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from preparing.pii_fixture import planted

WORDS = [
    "".join(
        random.Random(i).choice("bcdfghklmnprstvz") + random.Random(i * 7 + k).choice("aeiou")
        for k in range(1 + i % 4)
    )
    for i in range(4000)
]


@dataclass
class Planted:
    """What was put where. good: texts that have to be in the output, by file. faults: (file, words of the reason).

    near_prompts: pairs of prompts that may not be in different splits. leaked: markers of rows that have to go.
    """

    folder: Path
    data: list[str] = field(default_factory=list)
    check: str = ""
    good: dict[str, list[str]] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    near_prompts: list[tuple[str, str]] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


def plant(folder: Path, seed: int = 0, *, long_line: int = 30 << 20, bomb: int = 64 << 20) -> Planted:
    """Write all files. long_line, bomb: bytes of the long line and of what the archive expands to."""
    rng = random.Random(f"problems {seed}")
    found = Planted(folder)
    _duplicates(found, rng)
    _leaks(found, rng)
    _personal(found, seed)
    rows = _good_rows(found, rng)
    _broken_jsonl(found, rows, long_line)
    _other_formats(found, rows)
    _bomb(found, rows, bomb)
    return found


def sentence(rng: random.Random, number: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(number))


def _good_rows(found: Planted, rng: random.Random) -> Callable[[str], Iterator[dict[str, str]]]:
    """Rows for a file that have to come through, each with a marker that is noted."""

    def rows(name: str) -> Iterator[dict[str, str]]:
        while True:
            marker = f"marker{len(found.good.setdefault(name, []))}{name.replace('.', '')}"
            found.good[name].append(marker)
            yield {"prompt": sentence(rng, 8), "completion": f"{marker} {sentence(rng, 20)}"}

    return rows


def _write(found: Planted, name: str, lines: list[bytes]) -> None:
    (found.folder / name).write_bytes(b"".join(line + b"\n" for line in lines))
    found.data.append(name)


def _line(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def _duplicates(found: Planted, rng: random.Random) -> None:
    name, rows = "duplicates.jsonl", []
    for place in range(120):
        row = {"prompt": sentence(rng, 12), "completion": sentence(rng, 40)}
        rows.append(row)
        if place < 20:
            rows.append(dict(row))
            found.copies.append(f"{name}:exact duplicate")
        elif place < 40:
            rows.append({**row, "completion": f"{row['completion']} zzz"})
            found.copies.append(f"{name}:near duplicate")
        elif place < 80:
            near = f"{row['prompt']} {rng.choice('xyz')}"
            rows.append({"prompt": near, "completion": sentence(rng, 40)})
            found.near_prompts.append((row["prompt"], near))
    _write(found, name, [_line(row) for row in rows])


def _leaks(found: Planted, rng: random.Random) -> None:
    evaluation, rows = [], []
    for place in range(40):
        asked = {"prompt": sentence(rng, 12), "completion": sentence(rng, 40)}
        evaluation.append(asked)
        marker = f"leak{place}marker"
        if place < 10:
            rows.append({"prompt": asked["prompt"], "completion": f"{marker} {sentence(rng, 30)}"})
        elif place < 20:
            rows.append({"prompt": f"{asked['prompt']} q", "completion": f"{marker} {sentence(rng, 30)}"})
        elif place < 30:
            piece = " ".join(asked["completion"].split()[5:20])
            rows.append(
                {"prompt": sentence(rng, 9), "completion": f"{marker} {piece.upper()}, {sentence(rng, 40)}"}
            )
        else:
            continue
        found.leaked.append(marker)
    found.check = "evaluation.jsonl"
    (found.folder / found.check).write_bytes(b"".join(_line(row) + b"\n" for row in evaluation))
    _write(found, "leaks.jsonl", [_line(row) for row in rows])


def _personal(found: Planted, seed: int) -> None:
    lines = planted(seed)
    rng = random.Random(f"about {seed}")
    rows = [{"prompt": sentence(rng, 10), "completion": f"{line.text} {sentence(rng, 12)}"} for line in lines]
    found.items = [line.item for line in lines]
    _write(found, "personal.jsonl", [_line(row) for row in rows])


def _broken_jsonl(found: Planted, rows: Callable[[str], Iterator[dict[str, str]]], long_line: int) -> None:
    name = "broken.jsonl"
    good = rows(name)
    faults: list[tuple[bytes, str]] = [
        (b'{"prompt": "p", "completion": "c", "score": NaN}', "NaN"),
        (b'{"prompt": "caf\xe9", "completion": "c"}', "not UTF-8"),
        (b'{"prompt": "' + b"x" * long_line + b'", "completion": "c"}', "longer than"),
        (b'{"prompt": ' + b"[" * 2000 + b"]" * 2000 + b', "completion": "c"}', "nested"),
        (b'{"prompt": "\\ud800 alone", "completion": "c"}', "surrogate"),
        (b'{"prompt": "a\x00b", "completion": "c"}', "NUL"),
        (b'{"prompt": "a\\u0000b", "completion": "c"}', "NUL"),
        (b'{"prompt": "p", "prompt": "q", "completion": "c"}', "twice"),
        (b'{"prompt": "p", "completion": 17}', "expected text"),
        (b'{"prompt": "p", "completion": ', "broken JSON"),
        (b'["prompt", "p"]', "expected a JSON object"),
        (b'{"prompt": "p", "completion": "c", "n": ' + b"9" * 5000 + b"}", "number"),
        (b'{"conversations": [{"from": "nobody", "value": "v"}]}', "role"),
        (b'{"messages": [{"role": "user", "content": "only asked"}]}', "no answer"),
        (b'{"unknown": "columns"}', "found the columns"),
    ]
    lines = [b"\xef\xbb\xbf" + _line(next(good))]  # a byte-order mark is no fault
    for fault, reason in faults:
        lines += [fault, _line(next(good))]
        found.faults.append((name, reason))
    first, second = next(good), next(good)
    lines += [
        _line({**first, "id": "same"}),
        _line({"prompt": "other", "completion": "than the first", "id": "same"}),
    ]
    found.faults.append((name, "duplicate id"))
    lines.append(_line(second))
    _write(found, name, lines)


def _other_formats(found: Planted, rows: Callable[[str], Iterator[dict[str, str]]]) -> None:
    good = rows("table.csv")
    lines = [b"\xef\xbb\xbfprompt,completion"]
    for fault, reason in ((b"one,two,three", "fields"), (b"caf\xe9,c", "UTF-8"), (b"a\x00b,c", "NUL")):
        row = next(good)
        lines += [f"{row['prompt']},{row['completion']}".encode(), fault]
        found.faults.append(("table.csv", reason))
    _write(found, "table.csv", lines)

    good = rows("list.json")
    surrogate = b'{"prompt": "\\udfff", "completion": "c"}'
    listed = [_line(next(good)), b'{"prompt": "p", "completion": NaN}', _line(next(good)), surrogate]
    (found.folder / "list.json").write_bytes(b"[" + b",\n".join([*listed, _line(next(good))]) + b"]")
    found.data.append("list.json")
    found.faults += [("list.json", "NaN"), ("list.json", "surrogate")]

    good = rows("rows.parquet")
    kept = [next(good) for _ in range(3)]
    table = [*kept[:2], {"prompt": "p", "completion": None}, {"prompt": "p", "completion": "a\x00b"}, kept[2]]
    pq.write_table(pa.Table.from_pylist(table), found.folder / "rows.parquet")
    found.data.append("rows.parquet")
    found.faults += [("rows.parquet", "missing"), ("rows.parquet", "NUL")]


def _bomb(found: Planted, rows: Callable[[str], Iterator[dict[str, str]]], size: int) -> None:
    good = rows("bomb.jsonl.gz")
    with gzip.open(found.folder / "bomb.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(3):
            file.write(_line(next(good)) + b"\n")
        for _ in range(size >> 20):
            file.write(b"0" * (1 << 20))
    found.data.append("bomb.jsonl.gz")
    found.faults.append(("bomb.jsonl.gz", "decompression bomb"))
    good = rows("torn.jsonl.gz")
    whole = gzip.compress(b"".join(_line(next(good)) + b"\n" for _ in range(400)))
    found.good["torn.jsonl.gz"] = []  # how many of them can be read depends on where the archive ends
    (found.folder / "torn.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    found.data.append("torn.jsonl.gz")
    found.faults.append(("torn.jsonl.gz", "not a complete gzip file"))
