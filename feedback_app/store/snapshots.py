"""Snapshots: the ratings of a project, frozen for training.

    OUT/train.jsonl, validation.jsonl, test.jsonl   one `Preference` per line, ties included
    OUT/trl/<split>.jsonl                           the same without ties, in TRL's columns only
    OUT/unpaired/<split>.jsonl                      prompt, completion, label: thumbs (and pairs, where asked)
    OUT/sft/<split>.jsonl                           messages: demonstrations, for supervised tuning
    OUT/scores/<split>.jsonl                        prompt, completion, scores: attribute -> 1..5
    OUT/rankings/<split>.jsonl                      prompt, completions best first, their ranks
    OUT/manifest.json                               content hash, counts, split, rubric versions

The three files at the top are always there, those in folders where they hold a row (loaders refuse an empty
file). A prompt group goes to a split by a seeded hash of its id: groups never cross splits, and a group keeps
its split as data grows. Rows are sorted, so the same ratings give the same bytes and the same hash. The rows
are streamed into a folder beside OUT that is renamed at the end: OUT is complete or absent. An answer of a
lead who settled a dispute stands for all other answers to that task.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from array import array
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, insert, select

from feedback_app.store import audit
from feedback_app.store.engine import Store
from feedback_app.store.rows import insert_rows
from feedback_app.store.schema import projects, rubrics, snapshot_members, snapshots
from feedback_app.store.snapshot_rows import (
    Answer,
    answers,
    left_out,
    preference_lines,
    ranking_line,
    scores_lines,
    sft_line,
    unpaired_lines,
)
from rlhf.core.errors import ConfigError, DataError, StoreError
from rlhf.core.files import atomic_folder, write_json
from rlhf.core.records import Split, content_id
from rlhf.core.splits import split_of

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FOLDERS = ("trl", "unpaired", "sft", "scores", "rankings")
FORMAT = 1
MEMBER_CHUNK = 5000
LINES_CHARS = 1 << 17


class SplitCounts(BaseModel):
    """What one split holds. `without_tie` is the number of rows in its TRL file."""

    model_config = ConfigDict(frozen=True)

    rows: int = 0
    ties: int = 0
    without_tie: int = 0
    prompts: int = 0
    groups: int = 0
    annotators: int = 0


class SnapshotManifest(BaseModel):
    """What a snapshot is and where it came from.

    content_hash: of the bytes of the three split files, and of the other folders' except trl, which repeats
    them. files: rows per folder and split. left_out: answers that are not in it, by reason: `corrected` (an
    older version), `erased`, `surplus`, `gold`, `repeat`, `overruled` (a lead decided the task).
    """

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    snapshot_id: str
    project: str
    content_hash: str
    seed: int
    fractions: tuple[float, float, float]
    created_at: float
    counts: dict[Split, SplitCounts]
    num_judgements: int
    num_left_out_of_trl: int
    num_without_comparison: int
    simulated: bool
    num_simulated: int
    rubric_versions: list[int]
    files: dict[str, dict[Split, int]] = {}
    left_out: dict[str, int] = {}
    num_adjudicated: int = 0
    unpaired_from_pairs: bool = False


def export_snapshot(
    store: Store,
    out: Path,
    *,
    project: str,
    seed: int,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    unpaired_from_pairs: bool = False,
    actor: str = "system",
) -> SnapshotManifest:
    """Write a snapshot and record it with its members. Only current, accepted answers are in it.

    unpaired_from_pairs: both sides of a decided pair go into unpaired/ too, as good and bad.
    Raises StoreError for an unknown project or one whose purpose is evaluation, DataError when it holds no
    answer to export, ConfigError when `out` exists or the fractions are not three shares that sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"fractions must be three shares that sum to 1; found {fractions}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; choose another --out, or --force to set it aside")
    with atomic_folder(out) as building:
        writer = _Writer(building, seed, fractions, unpaired_from_pairs)
        with writer.members:
            with writer.files, store.read() as connection:
                _check_project(connection, project)
                _fill(connection, project, writer)
                writer.flush()
            manifest = writer.manifest(project)
            write_json(building / "manifest.json", manifest)
            # Recorded first: a snapshot that a run can learn from is always one the store knows the members of.
            _record(store, out, manifest, writer.members, actor)
    return manifest


def _fill(connection: Connection, project: str, writer: _Writer) -> None:
    for answer in answers(connection, project):
        writer.add(answer)
    writer.left_out = left_out(connection, project, writer.num_members)
    writer.rubric_versions = _rubric_versions(connection, writer.rubric_ids)


class _Lines:
    """A file of lines and the hash of its bytes. Lines are encoded, hashed and written many at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, hashlib.sha256()
        self.waiting: list[str] = []
        self.num_chars = 0

    def add(self, line: str) -> None:
        self.waiting.append(line)
        self.num_chars += len(line)
        if self.num_chars >= LINES_CHARS:
            self._write()

    def _write(self) -> None:
        data = "".join(self.waiting).encode("utf-8")
        self.file.write(data)
        self.hash.update(data)
        self.waiting, self.num_chars = [], 0

    def flush(self) -> None:
        """Everything on disk."""
        self._write()
        self.file.flush()
        os.fsync(self.file.fileno())


class _Writer:
    """Streams answers into the split files and counts what goes in; ids wait on disk, hashes of them in memory."""

    def __init__(
        self, folder: Path, seed: int, fractions: tuple[float, float, float], unpaired_from_pairs: bool
    ) -> None:
        self.folder, self.seed, self.fractions = folder, seed, fractions
        self.unpaired_from_pairs = unpaired_from_pairs
        self.files = ExitStack()
        self.rows = {split: self._open(folder / f"{split}.jsonl") for split in SPLITS}
        self.others: dict[tuple[str, Split], _Lines] = {}
        self.counts = {split: dict.fromkeys(("rows", "ties", "without_tie"), 0) for split in SPLITS}
        self.num_rows: dict[str, Counter[str]] = {name: Counter() for name in FOLDERS}
        self.prompts = {split: array("q") for split in SPLITS}
        self.groups = {split: array("q") for split in SPLITS}
        self.annotators: dict[Split, set[str]] = {split: set() for split in SPLITS}
        self.members = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by the caller
        self.rubric_ids: set[str] = set()
        self.num_members = self.num_simulated = self.num_without_comparison = self.num_adjudicated = 0
        self.rubric_versions: list[int] = []
        self.left_out: dict[str, int] = {}

    def _open(self, path: Path) -> _Lines:
        path.parent.mkdir(exist_ok=True)
        return _Lines(self.files.enter_context(open(path, "wb")))

    def add(self, answer: Answer) -> None:
        row = answer.row
        split = split_of(answer.ask.group_id, self.seed, self.fractions)
        num_comparisons = 0
        for line, trl in preference_lines(answer):
            num_comparisons += 1
            self._compare(split, line, trl)
        self.num_without_comparison += not num_comparisons
        if row.kind == "demonstration" and row.demonstration is not None:
            self._write("sft", split, sft_line(answer))
        elif row.kind == "scores":
            for line in scores_lines(answer):
                self._write("scores", split, line)
        elif row.kind == "ranking":
            self._write("rankings", split, ranking_line(answer))
        for line in unpaired_lines(answer, from_pairs=self.unpaired_from_pairs):
            self._write("unpaired", split, line)
        self.members.write(f"{row.annotation_id} {split}\n")
        self.num_members += 1
        self.num_simulated += bool(row.simulated)
        self.num_adjudicated += row.purpose == "adjudicate"
        if row.rubric_id is not None:
            self.rubric_ids.add(row.rubric_id)
        if num_comparisons:
            self.prompts[split].append(hash(answer.ask.prompt_id))
            self.groups[split].append(hash(answer.ask.group_id))
            self.annotators[split].add(row.annotator_id)

    def _compare(self, split: Split, line: str, trl: str | None) -> None:
        self.rows[split].add(line)
        counts = self.counts[split]
        counts["rows"] += 1
        if trl is None:
            counts["ties"] += 1
        else:
            counts["without_tie"] += 1
            self._write("trl", split, trl)

    def _write(self, folder: str, split: Split, line: str) -> None:
        file = self.others.get((folder, split))
        if file is None:
            file = self.others[folder, split] = self._open(self.folder / folder / f"{split}.jsonl")
        file.add(line)
        self.num_rows[folder][split] += 1

    def flush(self) -> None:
        for file in (*self.rows.values(), *self.others.values()):
            file.flush()

    def manifest(self, project: str) -> SnapshotManifest:
        if not self.num_members:
            raise DataError(
                f"project '{project}' holds no answer that can be exported yet; rate something first"
            )
        joined = "".join(self.rows[split].hash.hexdigest() for split in SPLITS)
        for key in sorted(self.others):
            if key[0] != "trl":  # which holds what the first three files hold
                joined += f"{'/'.join(key)}:{self.others[key].hash.hexdigest()}"
        content_hash = hashlib.sha256(joined.encode()).hexdigest()
        now = time.time()
        return SnapshotManifest(
            snapshot_id=content_id("s", project, content_hash, now),
            project=project,
            content_hash=content_hash,
            seed=self.seed,
            fractions=self.fractions,
            created_at=now,
            counts={
                split: SplitCounts(
                    **self.counts[split],
                    prompts=_num_distinct(self.prompts[split]),
                    groups=_num_distinct(self.groups[split]),
                    annotators=len(self.annotators[split]),
                )
                for split in SPLITS
            },
            num_judgements=self.num_members,
            num_left_out_of_trl=sum(self.counts[split]["ties"] for split in SPLITS),
            num_without_comparison=self.num_without_comparison,
            simulated=self.num_simulated > 0,
            num_simulated=self.num_simulated,
            rubric_versions=self.rubric_versions,
            files={
                folder: {split: self.num_rows[folder][split] for split in SPLITS}
                for folder in FOLDERS
                if self.num_rows[folder]
            },
            left_out=self.left_out,
            num_adjudicated=self.num_adjudicated,
            unpaired_from_pairs=self.unpaired_from_pairs,
        )


def _num_distinct(hashes: array[int]) -> int:
    """Of 64-bit hashes: a million ids cost 8 MB instead of the 100 that a set of strings takes."""
    return int(np.unique(np.frombuffer(hashes, dtype=np.int64)).size) if hashes else 0


def _rubric_versions(connection: Connection, rubric_ids: set[str]) -> list[int]:
    query = select(rubrics.c.version).where(rubrics.c.rubric_id.in_(sorted(rubric_ids)))
    return sorted(connection.execute(query).scalars())


def _check_project(connection: Connection, project: str) -> None:
    row = connection.execute(select(projects.c.purpose).where(projects.c.project_id == project)).first()
    if row is None:
        known = (
            connection.execute(select(projects.c.project_id).order_by(projects.c.project_id)).scalars().all()
        )
        raise StoreError(f"there is no project '{project}'; found {', '.join(known) or 'none'}")
    if row.purpose == "evaluate":
        raise StoreError(
            f"project '{project}' holds blind evaluations, which are never exported for training"
        )


def _record(store: Store, out: Path, manifest: SnapshotManifest, members: IO[str], actor: str) -> None:
    row = {
        "snapshot_id": manifest.snapshot_id,
        "project_id": manifest.project,
        "content_hash": manifest.content_hash,
        "path": str(out),
        "seed": manifest.seed,
        "fractions": list(manifest.fractions),
        "counts": {split: counts.model_dump() for split, counts in manifest.counts.items()},
        "simulated": manifest.simulated,
        "created_at": manifest.created_at,
    }

    def unit(connection: Connection) -> None:
        connection.execute(insert(snapshots), row)
        members.seek(0)
        while lines := list(islice(members, MEMBER_CHUNK)):
            pairs = (line.split() for line in lines)
            chunk = [
                {"snapshot_id": manifest.snapshot_id, "annotation_id": annotation_id, "split": split}
                for annotation_id, split in pairs
            ]
            insert_rows(connection, snapshot_members, chunk)
        audit.append(
            connection, actor, "snapshot.export", manifest.snapshot_id, content_hash=manifest.content_hash
        )

    store.run(unit)
