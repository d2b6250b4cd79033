"""`rlhf prepare`: clean, masked, deduplicated data in splits, with a report.

OUT/train.jsonl, validation.jsonl, test.jsonl (what `rlhf sft --data` reads), quarantine.jsonl, report.html,
report.json and manifest.json. OUT appears when all of it is there.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import BadRow, atomic_folder, file_sha256, write_json, write_text
from rlhf.core.inputs import require_one_process
from rlhf.core.run import MANIFEST, Launch, Manifest, Parent, Workspace
from sft.prepare.config import PrepareConfig
from sft.prepare.intake import Intake
from sft.prepare.mixture import parse_weights
from sft.prepare.output import plan_splits, write_splits
from sft.prepare.page import page
from sft.prepare.readers import Source, find_sources, read_samples
from sft.prepare.scratch import Scratch
from sft.prepare.select import Check, Selection, Selector
from sft.prepare.summary import location, make_result
from sft.prepare.tally import Quarantine, Tally

DRY_ROWS = 1000


def run(config: PrepareConfig, launch: Launch) -> None:
    """Prepare the data and say in a few lines what came of it."""
    require_one_process("prepare")
    began = time.perf_counter()
    if not config.data:
        raise ConfigError("--data is required: files, such as --data demonstrations.jsonl, or hub:ID")
    tally = Tally()
    intake = Intake(config, launch, tally)
    sources = find_sources(config.data, launch, intake.limits)
    checks = find_sources(config.check, launch, intake.limits)
    if config.weights:
        parse_weights(config.weights, [source.name for source in sources])  # not after an hour of reading
    if launch.dry_run:
        _say_what_is_there(intake, sources)
        return
    out = launch.out or _free_name(Workspace(launch.workspace).root / "prepared")
    _check_out(out, launch)
    with atomic_folder(out) as folder:
        with ExitStack() as stack:
            quarantine = stack.enter_context(Quarantine(folder / "quarantine.jsonl", intake.mask))
            scratch = stack.enter_context(Scratch(folder / "rows.tmp"))
            intake.take(sources, scratch, quarantine)
            if not len(scratch):
                raise DataError(_nothing_left(tally, quarantine, sources))
            read = [
                stack.enter_context(_read_check(config, launch, source, folder / f"check-{i}.tmp"))
                for i, source in enumerate(checks)
            ]
            named = [Check(source.shown, found) for source, found in zip(checks, read, strict=True)]
            selection = Selector(scratch, named, folder, config.seed).select(
                exact=config.duplicates,
                unique_ids=config.unique_ids,
                threshold=config.near_duplicates,
                max_near_rows=config.near_duplicates_max_rows,
            )
            _note_taken_out(scratch, selection, tally, quarantine, sources)
            if not selection.alive.any():
                raise DataError(_nothing_left(tally, quarantine, sources))
            splits = plan_splits(scratch, selection, config, [source.name for source in sources])
            written = write_splits(folder, scratch, splits)
            result = make_result(config, intake, sources, scratch, selection, splits, written)
        write_json(folder / "report.json", result)
        write_text(folder / "report.html", page(result))
        inputs = {source.name: source.path for source in sources}
        inputs |= {f"check_{source.name}": source.path for source in checks}
        _write_manifest(folder, config, launch, inputs, result, time.perf_counter() - began)
        if out.exists() and any(out.iterdir()):  # --force: what was there keeps a name of its own
            out.rename(_old_name(out))
    print(_words(result, out))


def _check_out(out: Path, launch: Launch) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a directory that is not there yet")
    if out.exists() and any(out.iterdir()) and not launch.force:
        raise ConfigError(f"--out {out}: is not empty; choose another directory, or --force to set it aside")


def _old_name(out: Path) -> Path:
    names = (out.with_name(f"{out.name}.old-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _free_name(folder: Path) -> Path:
    stem = time.strftime("%Y%m%d-%H%M%S")
    names = (folder / name for name in (stem, *(f"{stem}-{i}" for i in range(2, 1000))))
    return next(name for name in names if not name.exists())


def _say_what_is_there(intake: Intake, sources: list[Source]) -> None:
    """The first rows of each input: how they are meant, and what is wrong with those that cannot be used."""
    for source in sources:
        layouts: Counter[str] = Counter()
        bad: list[str] = []
        rows = 0
        for line, _, found in read_samples(source, intake.reading, intake.config.separator, intake.limits):
            rows += 1
            if isinstance(found, BadRow):
                bad.append(f"{source.shown}:{line}: {found}")
            else:
                layouts[found.layout] += 1
            if rows >= DRY_ROWS:
                break
        named = ", ".join(f"{name} {number}" for name, number in layouts.most_common()) or "none usable"
        first = f"; {len(bad)} cannot be used, first: {bad[0]}" if bad else ""
        print(f"{source.name}: of the first {rows} rows: {named}{first}")


def _read_check(config: PrepareConfig, launch: Launch, source: Source, path: Path) -> Scratch:
    """An evaluation file, cleaned and masked as the training data are, but not filtered."""
    relaxed = config.model_copy(
        update={
            **{
                "min_chars": 1,
                "max_chars": 1 << 31,
                "model": None,
                "max_tokens": None,
                "keep": None,
                "drop": None,
            },
            **{"languages": (), "label_column": None, "difficulty_column": None},
            "pii": "mask" if config.pii in ("mask", "drop") else "off",
        }
    )
    intake = Intake(relaxed, launch, Tally())
    scratch = Scratch(path)
    for line, _, found in read_samples(source, intake.reading, config.separator, intake.limits):
        if isinstance(found, BadRow):
            raise DataError(f"{source.shown}:{line}: {found}")
        if intake.clean(found)[0] != "empty":
            scratch.add(found, 0, line)
    if not len(scratch):
        raise DataError(f"{source.shown}: holds no row; expected what is evaluated on")
    return scratch


def _nothing_left(tally: Tally, quarantine: Quarantine, sources: list[Source]) -> str:
    if tally.broken_files and not sum(tally.read.values()):
        return tally.broken_files[0]
    if not sum(tally.read.values()):
        return f"{sources[0].shown}: file is empty; expected rows"
    reasons = ", ".join(f"{number} {reason}" for reason, number in tally.reasons.most_common())
    return f"no row is left of {sum(tally.read.values())} ({reasons}); first: {quarantine.first}"


def _note_taken_out(
    scratch: Scratch, selection: Selection, tally: Tally, quarantine: Quarantine, sources: list[Source]
) -> None:
    for row, reason, detail, other in selection.taken_out:
        tally.reasons[reason] += 1
        beside = f" of {location(scratch, sources, other)}" if other >= 0 else ""
        quarantine.add(
            sources[scratch.sources[row]].shown,
            scratch.lines[row],
            f"{reason}{beside}{detail}",
            scratch.text(row),
        )


def _write_manifest(
    folder: Path,
    config: PrepareConfig,
    launch: Launch,
    inputs: dict[str, Path | None],
    result: dict[str, Any],
    seconds: float,
) -> None:
    workspace = Workspace(launch.workspace)
    parents = {
        name: Parent(path=workspace.relative(path), sha256=file_sha256(path))
        for name, path in inputs.items()
        if path is not None
    }
    scale = 1 if sys.platform == "darwin" else 1024
    manifest = Manifest(
        stage="prepare",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parents=parents,
        settings=config.model_dump(mode="json"),
        seed=config.seed,
        metrics={f"{name}_rows": split["rows"] for name, split in result["splits"].items()}
        | {"rows_read": result["rows"]["read"], "rows_kept": result["rows"]["kept"]},
        extra={
            "seconds": round(seconds, 1),
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20),
            "files": {path.name: file_sha256(path) for path in sorted(folder.glob("*.jsonl"))},
        },
    )
    write_json(folder / MANIFEST, manifest)


def _words(result: dict[str, Any], out: Path) -> str:
    rows, splits = result["rows"], result["splits"]
    lines = [f"prepare: {rows['kept']} of {rows['read']} rows are kept in {out}"]
    lines += [
        f"  {name:<10} {split['rows']:>8} rows, {split['families']} prompt families"
        for name, split in splits.items()
    ]
    if rows["reasons"]:
        lines.append(
            "  taken out: " + ", ".join(f"{number} {reason}" for reason, number in rows["reasons"].items())
        )
    items = result["personal_data"]["items"]
    if items:
        done = {"mask": "masked", "drop": "dropped with their rows", "report": "found"}[
            result["personal_data"]["mode"]
        ]
        lines.append(
            f"  personal data {done}: " + ", ".join(f"{number} {kind}" for kind, number in items.items())
        )
    lines += [f"  note: {note}" for note in result["notes"]]
    lines.append(f"  report at {out / 'report.html'}")
    return "\n".join(lines)
