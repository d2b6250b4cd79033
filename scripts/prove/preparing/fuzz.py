"""Puts broken files through every step of `rlhf prepare` and counts what ends in anything but a reason."""

from __future__ import annotations

import random
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preparing.mutate import mutated, seeds, strange_rows
from rlhf.core.errors import RlhfError
from rlhf.core.files import Limits, parse_object
from rlhf.core.run import Launch
from sft.prepare.config import PrepareConfig
from sft.prepare.intake import Intake
from sft.prepare.output import plan_splits, write_splits
from sft.prepare.page import page
from sft.prepare.readers import Source, find_sources
from sft.prepare.scratch import Scratch
from sft.prepare.select import Selector
from sft.prepare.summary import make_result
from sft.prepare.tally import Quarantine, Tally

STRANGE_ROWS = 5


@dataclass
class Fuzzed:
    """files, rows: that were tried. kept: rows that came through. faults: tracebacks."""

    files: int = 0
    rows: int = 0
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def fuzz(number: int, seed: int, *, batch: int = 2000) -> Fuzzed:
    """Try `number` files, a batch of them at a time, as one run with many inputs."""
    total = Fuzzed()
    done = 0
    while done < number:
        size = min(batch, number - done)
        with tempfile.TemporaryDirectory() as folder:
            _batch(Path(folder), size, random.Random(f"fuzz {seed} {done}"), total)
        done += size
    return total


def _batch(folder: Path, size: int, rng: random.Random, total: Fuzzed) -> None:
    config = PrepareConfig(data=("fuzz",), languages=("en", "de"), max_line_bytes=1 << 16, max_chars=4000)
    launch = Launch(workspace=folder, db="")
    tally = Tally()
    intake = Intake(config, launch, tally)
    intake.limits = Limits(max_line_bytes=1 << 16, max_file_bytes=1 << 24)
    good = seeds()
    sources: list[Source] = []
    with (
        Quarantine(folder / "quarantine.jsonl", intake.mask) as quarantine,
        Scratch(folder / "rows.tmp") as scratch,
    ):
        for place in range(size):
            name = rng.choice([*good, "strange.jsonl"])
            data = strange_rows(rng, STRANGE_ROWS) if name == "strange.jsonl" else mutated(rng, good[name])
            path = folder / f"{place}-{name}"
            path.write_bytes(data)
            total.files += 1
            try:
                source = find_sources([str(path)], launch, intake.limits)[0]
                intake.take([source], scratch, quarantine, first=len(sources), silent=True)
                sources.append(source)
            except RlhfError as error:
                total.refused[type(error).__name__] += 1
            except Exception:
                total.faults.append(f"{name}: {traceback.format_exc()}\n{data[:2000]!r}")
            path.unlink()
        total.rows += sum(tally.read.values())
        try:
            total.kept += _rest(folder, config, intake, scratch, sources)
        except Exception:
            total.faults.append(traceback.format_exc())


def _rest(
    folder: Path, config: PrepareConfig, intake: Intake, scratch: Scratch, sources: Sequence[Source]
) -> int:
    """Duplicates, splits, files and report of what came through; each row that is written is read back."""
    selection = Selector(scratch, [], folder, 0).select(
        exact=True, unique_ids=True, threshold=0.8, max_near_rows=10**9
    )
    splits = plan_splits(scratch, selection, config, [source.name for source in sources])
    written = write_splits(folder, scratch, splits)
    page(make_result(config, intake, list(sources), scratch, selection, splits, written))
    kept = 0
    for name in written:
        for line in (folder / f"{name}.jsonl").read_bytes().splitlines():
            row = parse_object(line, Limits(max_line_bytes=1 << 20))
            text = row["text"] if "text" in row else row["messages"][-1]["content"]
            if not text.strip() or ("messages" in row and row["messages"][-1]["role"] != "assistant"):
                raise AssertionError(f"a row without an answer was written: {line[:300]!r}")
            kept += 1
    if kept != int(np.count_nonzero(selection.alive)):
        raise AssertionError(f"{kept} rows were written of {np.count_nonzero(selection.alive)}")
    return kept
