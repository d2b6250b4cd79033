"""The rows on their way: texts in a file on disk, a few numbers for each in memory (about 90 bytes a row).

What is decided later than a row is read (duplicates, leaks, splits, mixtures) works on the numbers, and reads a text
again where it has to.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.core.files import to_json
from rlhf.core.near_duplicates import folded
from sft.prepare.rows import Sample

DIGEST_BYTES = 16


def digest(text: str) -> bytes:
    """16 bytes of a text; two of a billion different texts share them with a chance of 1e-21."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


class Names:
    """Texts as small numbers, such as the names of sources and labels."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self.index.setdefault(name, len(self.index))

    @property
    def names(self) -> list[str]:
        return list(self.index)


class Scratch:
    """Rows in the order in which they were read. Use as a context; the file is removed at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "w+b")  # noqa: SIM115 - closed in __exit__
        self._end = 0
        self.offsets, self.sizes = array("q"), array("i")
        self.lines, self.sources, self.labels = array("q"), array("i"), array("i")
        self.lengths, self.difficulties = array("i"), array("d")
        self._whole, self._prompt, self._group = bytearray(), bytearray(), bytearray()
        self.row_ids = array("Q")
        self.is_text = array("b")
        self.label_names = Names()

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.offsets)

    def add(self, sample: Sample, source: int, line: int) -> None:
        """Take up one more row. The group and the row's own id count within their source."""
        raw = to_json({"prompt": sample.prompt, "row": sample.output()}).encode() + b"\n"
        self._file.write(raw)
        self.offsets.append(self._end)
        self.sizes.append(len(raw))
        self._end += len(raw)
        self.lines.append(line)
        self.sources.append(source)
        self.labels.append(self.label_names.number(sample.label))
        self.lengths.append(sample.num_chars)
        self.difficulties.append(float("nan") if sample.difficulty is None else sample.difficulty)
        roles = [(turn["role"], turn["content"]) for turn in sample.messages or ()]
        self._whole += digest(to_json(roles or sample.text) + sample.label)
        self._prompt += digest(folded(sample.prompt))
        self._group += digest(f"{source}\0{sample.group_id}") if sample.group_id else bytes(DIGEST_BYTES)
        own = digest(f"{source}\0{sample.row_id}")[:8] if sample.row_id else bytes(8)
        self.is_text.append(sample.messages is None)
        self.row_ids.append(int.from_bytes(own, "little"))

    def _read(self, place: int) -> Any:
        self._file.seek(self.offsets[place])
        return json.loads(self._file.read(self.sizes[place]))

    def row(self, place: int) -> dict[str, Any]:
        """The row as it is written out, without its group."""
        found: dict[str, Any] = self._read(place)["row"]
        return found

    def text(self, place: int, *, prompt: bool = False) -> str:
        """All texts of a row, or its prompt."""
        found = self._read(place)
        return found["prompt"] if prompt else whole_text(found["row"])

    def texts(self, places: Iterable[int], *, prompt: bool = False) -> Iterator[str]:
        for place in places:
            yield self.text(int(place), prompt=prompt)

    def whole_digests(self) -> np.ndarray:
        """[rows, 2] of uint64: all texts with their roles, and the label."""
        return self._digests(self._whole)

    def prompt_digests(self) -> np.ndarray:
        """[rows, 2] of uint64: the prompt as near-duplicates compare it."""
        return self._digests(self._prompt)

    def group_digests(self) -> np.ndarray:
        """[rows, 2] of uint64: source and group_id; 0 for a row without."""
        return self._digests(self._group)

    @staticmethod
    def _digests(found: bytearray) -> np.ndarray:
        return np.frombuffer(bytes(found), dtype=np.uint64).reshape(-1, 2)


def whole_text(row: dict[str, Any]) -> str:
    """All texts of a row that is written out."""
    if "text" in row:
        text: str = row["text"]
        return text
    return "\n".join(turn["content"] for turn in row["messages"])


def first_of_each(digests: np.ndarray) -> np.ndarray:
    """For each of [N, 2] the place of the first equal one, [N]."""
    if not len(digests):
        return np.zeros(0, dtype=np.int64)
    keys = np.ascontiguousarray(digests).view([("a", np.uint64), ("b", np.uint64)]).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found: np.ndarray = first[inverse.ravel()]
    return found
