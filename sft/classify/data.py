"""Labelled texts: every row is checked where it stands, and near-duplicates are on one side of a split. Torch-free."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf.core.errors import DataError
from rlhf.core.files import BadRow
from rlhf.core.near_duplicates import folded, near_duplicate_groups
from rlhf.core.records import Split, content_id
from rlhf.core.splits import split_of
from rlhf.core.tables import read_table
from rlhf.core.validation import shown
from sft.classify.config import ClassifyConfig

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class LabelledText:
    """One row. where: FILE:LINE. group: of the group column, empty without one. family: set by the split."""

    where: str
    text: str
    label: str
    group: str = ""
    family: str = ""


@dataclass
class LabelledData:
    """labels: in the order of the classifier's outputs. rows: of each split.

    num_leaked: rows of the data left out because a given validation or test file has a near-duplicate of them.
    contradictions: families of equal texts that carry more than one label. num_moved: families that changed sides so
    that every split has rows and every label is trained.
    """

    labels: tuple[str, ...]
    rows: dict[Split, list[LabelledText]]
    num_families: int = 0
    num_leaked: int = 0
    num_moved: int = 0
    contradictions: list[dict[str, Any]] = field(default_factory=list)

    def targets(self, split: Split) -> list[int]:
        """The label of each row as a number."""
        number = {label: k for k, label in enumerate(self.labels)}
        return [number[row.label] for row in self.rows[split]]

    def counts(self) -> list[dict[str, Any]]:
        """How often each label occurs in each split."""
        found = {split: Counter(row.label for row in self.rows[split]) for split in SPLITS}
        return [{"label": label, **{split: found[split][label] for split in SPLITS}} for label in self.labels]


def text_of(row: dict[str, Any], column: str) -> str:
    """The text of a row. Raises BadRow."""
    value = _value(row, column)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"'{column}': expected a text; found {shown(value)}")
    return value


def label_of(row: dict[str, Any], column: str) -> str:
    """The label of a row as text: a text, a whole number, true or false. Raises BadRow."""
    value = _value(row, column)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"'{column}': expected a text, a whole number, true or false; found {shown(value)}")
    return value.strip()


def _value(row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise BadRow(f"'{column}' is missing; found the columns {', '.join(row) or 'none'}")
    return row[column]


def read_labelled(
    path: Path, text_column: str, label_column: str, group_column: str | None = None
) -> list[LabelledText]:
    """All rows of a file. Raises DataError naming file and line for the first that cannot be used."""

    def parse(number: int, row: dict[str, Any]) -> LabelledText:
        group = "" if group_column is None else str(_value(row, group_column))
        text, label = text_of(row, text_column), label_of(row, label_column)
        return LabelledText(f"{path}:{number}", text, label, group)

    return [row for _, row in read_table(path, parse)]


def load_labelled(
    config: ClassifyConfig, data: Path, validation: Path | None, test: Path | None
) -> LabelledData:
    """Read and split. Raises DataError: a row that cannot be used, fewer than two labels, too few families."""
    files: dict[Split, Path | None] = {"train": data, "validation": validation, "test": test}
    given = {
        split: read_labelled(path, config.text_column, config.label_column, config.group_column)
        for split, path in files.items()
        if path is not None
    }
    labels = _labels(config, given["train"], str(data))
    for row in (row for rows in given.values() for row in rows):
        if row.label not in labels:
            raise DataError(f"{row.where}: label {row.label!r}; expected one of {', '.join(labels)}")
    ordered: list[Split] = [split for split in ("test", "validation", "train") if split in given]
    families = iter(_families([row for split in ordered for row in given[split]], config.near_duplicates))
    rows = {split: [replace(row, family=next(families)) for row in given[split]] for split in ordered}
    found = LabelledData(labels, {split: [] for split in SPLITS})
    found.num_families = len({row.family for split in ordered for row in rows[split]})
    found.contradictions = _contradictions(row for split in ordered for row in rows[split])
    _place(found, rows, config, str(data))
    return found


def _labels(config: ClassifyConfig, rows: Sequence[LabelledText], source: str) -> tuple[str, ...]:
    seen = {row.label for row in rows}
    if config.labels:
        unseen = [label for label in config.labels if label not in seen]
        if unseen:
            raise DataError(f"{source}: no row has the label {unseen[0]!r} of --labels")
        return config.labels
    if len(seen) < 2:
        raise DataError(
            f"{source}: every row has the label {next(iter(seen))!r}; expected at least two labels"
        )
    whole = all(label.lstrip("-").isdecimal() for label in seen)
    return tuple(sorted(seen, key=int) if whole else sorted(seen))


def _families(rows: Sequence[LabelledText], threshold: float) -> list[str]:
    """For each row the name of its family: near-duplicates, equal groups, and what hangs together by them.

    A family is named after its first text, so that it stays in its split while rows are added behind it.
    """
    texts = [row.text for row in rows]
    alike = near_duplicate_groups(texts, threshold=threshold) if threshold else _equal(texts)
    parent: dict[tuple[str, Any], tuple[str, Any]] = {}

    def root(node: tuple[str, Any]) -> tuple[str, Any]:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for row, number in zip(rows, alike, strict=True):
        if row.group:
            parent[root(("group", row.group))] = root(("alike", number))
    names: dict[tuple[str, Any], str] = {}
    return [
        names.setdefault(root(("alike", number)), content_id("family", row.group or folded(row.text), None))
        for row, number in zip(rows, alike, strict=True)
    ]


def _equal(texts: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(folded(text), len(numbers)) for text in texts]


def _contradictions(rows: Iterable[LabelledText]) -> list[dict[str, Any]]:
    """Texts that are equal (apart from case and white space) and carry more than one label."""
    found: dict[str, list[LabelledText]] = defaultdict(list)
    for row in rows:
        found[folded(row.text)].append(row)
    return [
        {
            "text": same[0].text,
            "labels": sorted({row.label for row in same}),
            "where": [r.where for r in same],
        }
        for same in found.values()
        if len({row.label for row in same}) > 1
    ]


def _place(
    found: LabelledData, rows: dict[Split, list[LabelledText]], config: ClassifyConfig, source: str
) -> None:
    """Fill the splits: what was given as a file stays there, families of the data go by a hash of name and seed."""
    taken: set[str] = set()
    for split in ("test", "validation"):
        if split in rows:  # a family of the test file is in no other split
            found.rows[split] = [row for row in rows[split] if row.family not in taken]
            found.num_leaked += len(rows[split]) - len(found.rows[split])
            taken |= {row.family for row in found.rows[split]}
    left = [row for row in rows["train"] if row.family not in taken]
    found.num_leaked += len(rows["train"]) - len(left)
    wanted: tuple[Split, ...] = tuple(s for s in SPLITS if s == "train" or s not in rows)
    families = list(dict.fromkeys(row.family for row in left))
    if len(families) < len(wanted):
        raise DataError(
            f"{source}: its rows are {len(families)} families of near-duplicates; expected at least {len(wanted)}, "
            f"for {', '.join(wanted)}"
        )
    shares = {
        "validation": config.validation_fraction if "validation" in wanted else 0.0,
        "test": config.test_fraction if "test" in wanted else 0.0,
    }
    fractions = (1 - shares["validation"] - shares["test"], shares["validation"], shares["test"])
    side: dict[str, Split] = {name: split_of(name, config.seed, fractions) for name in families}
    found.num_moved = _repair(side, left, wanted, source)
    for row in left:
        found.rows[side[row.family]].append(row)
    trained = {row.label for row in found.rows["train"]}
    for label in found.labels:
        if label not in trained:
            raise DataError(
                f"{source}: no row with the label {label!r} is left to train on; the validation and test files have "
                "near-duplicates of all of them"
            )


def _repair(
    side: dict[str, Split], rows: Sequence[LabelledText], wanted: Sequence[Split], source: str
) -> int:
    """With few families chance can leave a split empty or a label untrained; families then change sides.

    Returns how many did. Raises DataError where there are too few.
    """
    before = dict(side)
    of_label: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        of_label[row.label].append(row.family)
    for families in of_label.values():
        if not any(side[name] == "train" for name in families):
            side[families[0]] = "train"
    for split in wanted:
        if split in side.values():
            continue
        trained = Counter(row.label for row in rows if side[row.family] == "train")
        for name in [name for name, where in side.items() if where == "train"]:
            own = Counter(row.label for row in rows if row.family == name)
            if all(trained[label] > number for label, number in own.items()):
                side[name] = split
                break
        else:
            raise DataError(
                f"{source}: nothing is left for {split}, since each family of near-duplicates is the last one of a "
                "label; expected more texts of each label"
            )
    return sum(side[name] != before[name] for name in side)
