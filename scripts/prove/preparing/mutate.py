"""Files of every format that were right once, and broken copies of them."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_CONVERSATION = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A thing, I am sure."}]
_MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because of that."}]
ROWS: list[dict[str, Any]] = [
    {"instruction": "Name a colour.", "input": "of the sky", "output": "Blue, on most days."},
    {"instruction": "Sum up.", "context": "A long text.", "response": "It is long.", "category": "summary"},
    {"conversations": _CONVERSATION, "id": "c1"},
    {"messages": _MESSAGES, "group_id": "g", "source": "s"},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello there.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
    {"prompt": "Write to me", "completion": "ana@example.com, +1 202-555-0125, 192.0.2.7"},
    {"prompt": _MESSAGES[:1], "completion": _MESSAGES[1:], "metadata": {"k": [1, 2.5, None]}},
    {"text": "A text with an e\u0301, a \u00a0 space and <br> tags &nbsp; and cookies.", "label": "a"},
]
_FLAT = [{"prompt": f"question {i}", "completion": f"answer {i}, it is", "label": str(i)} for i in range(4)]
_STRANGE: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1e308,
        10**30,
        "",
        " ",
        "\u202e",
        "\ud800",
        "\x00",
        "NaN",
        [],
        {},
        [[]],
        [{}],
        {"a": {}},
    ),
    *(
        [None],
        "x" * 5000,
        "👩‍👩‍👧",
        "\u0300" * 50,
        "%s%n{}$(x)",
        "-----BEGIN PRIVATE KEY-----",
        "1" * 400,
        "::::",
    ),
    *("@@@@", [{"role": "user"}], [{"role": "assistant", "content": None}], [{"from": 1, "value": []}]),
    *("\n\nHuman:", "\n\nAssistant:", float("nan"), float("-inf")),
]
_PIECES = [
    *(
        b"\x00",
        b"\xff",
        b'"',
        b"{",
        b"[" * 60,
        b"}",
        b",",
        b"\n",
        b"\r",
        b"\\u",
        b"\\ud800",
        b"NaN",
        b"\t",
        b";",
    ),
    *(
        b"\xef\xbb\xbf",
        b"1e999",
        b"-",
        b"\xed\xa0\x80",
        b"<|endoftext|>\n",
        b"9" * 5000,
        b"\x1f\x8b",
        b"PAR1",
    ),
    b"\n\n\n",
]
_ANY_COLUMN = ["prompt", "text", "messages", "id", "label", "group_id", "metadata", "system"]


def seeds() -> dict[str, bytes]:
    """File name -> its bytes, one for each format that is read."""
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    cells = "".join(f'"{row["prompt"]}","{row["completion"]}",{row["label"]}\r\n' for row in _FLAT)
    csv = f"prompt,completion,label\r\n{cells}"
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_FLAT), table)
    return {
        "a.jsonl": lines,
        "a.json": json.dumps(ROWS).encode(),
        "a.csv": csv.encode(),
        "a.tsv": csv.replace(",", "\t").encode(),
        "a.parquet": table.getvalue(),
        "a.txt": b"First document,\nof two lines.\n\nSecond one.\n<|endoftext|>\nThird.\n",
        "a.jsonl.gz": gzip.compress(lines, mtime=0),
    }


def mutated(rng: random.Random, good: bytes) -> bytes:
    """One to four changes: bytes flipped, cut out, put in, doubled, or swapped."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        span = rng.choice([1, 2, 8, 64])
        change = rng.randrange(5)
        if change == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif change == 1:
            del data[at : at + span]
        elif change == 2:
            data[at:at] = rng.choice(_PIECES)
        elif change == 3:
            data[at:at] = data[at : at + span]
        elif change == 4:
            data[at : at + span] = data[at : at + span][::-1]
    return bytes(data)


def strange_rows(rng: random.Random, number: int) -> bytes:
    """JSONL of rows in which a value, somewhere, is what nobody expects there, or a column is gone."""
    lines = []
    for _ in range(number):
        row = json.loads(json.dumps(rng.choice(ROWS)))
        for _ in range(rng.randint(1, 2)):
            _spoil(rng, row)
        lines.append(json.dumps(row, allow_nan=True).encode())
    return b"\n".join(lines) + b"\n"


def _spoil(rng: random.Random, row: dict[str, Any]) -> None:
    if not row:
        return
    name = rng.choice(list(row))
    inner = row[name]
    if isinstance(inner, list) and inner and isinstance(inner[0], dict) and rng.random() < 0.5:
        _spoil(rng, rng.choice([turn for turn in inner if isinstance(turn, dict)]))
    elif rng.random() < 0.2:
        del row[name]
    elif rng.random() < 0.2:
        row[rng.choice(_ANY_COLUMN)] = copy.deepcopy(rng.choice(_STRANGE))
    else:
        row[name] = copy.deepcopy(rng.choice(_STRANGE))
