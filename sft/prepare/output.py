"""The files that `rlhf sft` reads: train.jsonl as a mixture in its order, validation.jsonl and test.jsonl as read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.core.files import atomic_file, to_json
from rlhf.core.metrics import progress
from sft.prepare.config import PrepareConfig
from sft.prepare.mixture import ordered, parse_weights, sample_classes
from sft.prepare.scratch import Scratch
from sft.prepare.select import Selection
from sft.prepare.splits import SPLITS, assign, families

ADVANCE_EVERY = 1000


@dataclass
class Splits:
    """rows: of each split in the order of the file (a row may come more than once in train). names: of families.

    left_out: training rows that the mixture did not take. repeated: rows beyond the first time.
    """

    rows: dict[str, np.ndarray]
    roots: np.ndarray
    names: dict[int, str]
    left_out: int = 0
    repeated: int = 0


def plan_splits(
    scratch: Scratch, selection: Selection, config: PrepareConfig, source_names: list[str]
) -> Splits:
    """Which row goes where. Raises ConfigError for weights of a source that there is not."""
    alive = np.flatnonzero(selection.alive)
    roots_alive = families(selection.prompt_roots[alive], scratch.group_digests()[alive])
    prompts = scratch.prompt_digests()
    names = {int(head): f"g-{prompts[alive[head]].tobytes().hex()[:16]}" for head in np.unique(roots_alive)}
    fractions = (
        1 - config.validation_fraction - config.test_fraction,
        config.validation_fraction,
        config.test_fraction,
    )
    by_place = [names.get(place, "") for place in range(len(alive))]
    split = assign(roots_alive, by_place, fractions, config.seed)
    rows = {name: alive[split == number] for number, name in enumerate(SPLITS)}
    roots = np.full(len(scratch), -1, dtype=np.int64)
    roots[alive] = alive[roots_alive] if len(alive) else roots_alive
    found = Splits(rows, roots, {int(alive[head]): name for head, name in names.items()})
    _mix(found, scratch, config, source_names)
    return found


def _mix(found: Splits, scratch: Scratch, config: PrepareConfig, source_names: list[str]) -> None:
    train = found.rows["train"]
    by = "source" if config.weights else config.balance
    if by != "none":
        of_row = np.frombuffer(scratch.sources if by == "source" else scratch.labels, dtype=np.int32)
        classes = of_row[train]
        weights = dict.fromkeys(np.unique(classes).tolist(), 1.0)
        if config.weights:
            named = parse_weights(config.weights, source_names)
            weights = {place: named[source_names[place]] for place in weights}
        mixed = sample_classes(train, classes, weights, repeat=config.repeat, seed=config.seed)
        distinct = len(np.unique(mixed))
        found.left_out, found.repeated = len(train) - distinct, len(mixed) - distinct
        train = mixed
    lengths = np.frombuffer(scratch.lengths, dtype=np.int32)
    difficulties = np.frombuffer(scratch.difficulties, dtype=np.float64)
    found.rows["train"] = ordered(train, config.order, lengths, difficulties, config.seed)


def write_splits(folder: Path, scratch: Scratch, splits: Splits) -> dict[str, dict[str, Any]]:
    """Write the three files; returns rows, families, sources and labels of each."""
    labels = scratch.label_names.names
    found = {}
    with progress("writing", sum(map(len, splits.rows.values())), stage="prepare") as bar:
        for name in SPLITS:
            by_label: Counter[str] = Counter()
            heads: set[int] = set()
            by_source: Counter[int] = Counter()
            with atomic_file(folder / f"{name}.jsonl") as file:
                for done, row in enumerate(splits.rows[name].tolist(), start=1):
                    data = scratch.row(row)
                    head = int(splits.roots[row])
                    if "messages" in data:
                        data["group_id"] = splits.names[head]
                    file.write(to_json(data).encode() + b"\n")
                    heads.add(head)
                    by_label[labels[scratch.labels[row]]] += 1
                    by_source[scratch.sources[row]] += 1
                    if done % ADVANCE_EVERY == 0:
                        bar.advance(ADVANCE_EVERY)
            found[name] = {
                "rows": len(splits.rows[name]),
                "families": len(heads),
                "sources": dict(by_source),
                "labels": {label: number for label, number in by_label.most_common(50) if label},
            }
    return found
