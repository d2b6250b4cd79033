"""Puts broken files through every step of `rlhf prepare` and counts what ends in anything but a reason."""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from preparing.mutate import mutated, seeds, strange_rows
from rlhf.core.errors import RlhfError
from rlhf.core.files import Limits, parse_object, write_json
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
    """files, rows: that were tried. kept: rows that came through. refused: files that ended in one line, by the
    kind of error. faults: tracebacks."""

    seed: int = 0
    files: int = 0
    rows: int = 0
    kept: int = 0
    seconds: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path | None, seed: int) -> Fuzzed:
        """What an earlier call saved for the same seed, or nothing yet."""
        if path is None or not path.exists():
            return cls(seed)
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["seed"] != seed:
            raise SystemExit(f"{path}: is of seed {saved['seed']}, not {seed}")
        return cls(**{**saved, "refused": Counter(saved["refused"])})


def fuzz(
    number: int,
    total: Fuzzed,
    *,
    batch: int = 2000,
    max_seconds: float = math.inf,
    save: Path | None = None,
) -> None:
    """Try files until `total` counts `number` of them, a batch at a time, each batch one run with many inputs.

    The files of a batch follow from the seed and its place, so that a run in parts tries what one run would.
    """
    began = time.perf_counter()
    while total.files < number and time.perf_counter() - began < max_seconds:
        size = min(batch, number - total.files)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            _batch(Path(folder), size, random.Random(f"fuzz {total.seed} {total.files}"), total)
        total.seconds += time.perf_counter() - start
        if save is not None:
            write_json(save, asdict(total))


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
