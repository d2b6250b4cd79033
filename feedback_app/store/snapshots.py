"""Snapshots: the ratings of a project, frozen for training.

    OUT/train.jsonl, validation.jsonl, test.jsonl   one `Preference` per line, ties included
    OUT/trl/<split>.jsonl                           the same without ties, in TRL's columns only
    OUT/manifest.json                               content hash, counts, split, rubric versions

A prompt group goes to a split by a seeded hash of its id: groups never cross splits, and a group keeps its
split as data grows. Rows are sorted, so the same ratings give the same bytes and the same hash. The rows are
streamed into a folder beside OUT that is renamed at the end: OUT is complete or absent.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, insert, select

from feedback_app.store import audit
from feedback_app.store.annotations import current_rows
from feedback_app.store.engine import Store
from feedback_app.store.schema import projects, rubrics, snapshot_members, snapshots
from rlhf.core.errors import ConfigError, DataError, StoreError
from rlhf.core.files import to_json, write_json
from rlhf.core.records import Judgement, Split, content_id
from rlhf.core.splits import split_of

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FORMAT = 1


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
    """What a snapshot is and where it came from. `content_hash` covers the bytes of the three split files."""

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


def export_snapshot(
    store: Store,
    out: Path,
    *,
    project: str,
    seed: int,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> SnapshotManifest:
    """Write a snapshot and record it with its members. Only current, accepted answers are in it.

    Raises StoreError for an unknown project or one whose purpose is evaluation, DataError when it holds no
    comparison yet, ConfigError when `out` exists or the fractions are not three shares that sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"fractions must be three shares that sum to 1; found {fractions}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; choose another --out, or --force to set it aside")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        with store.read() as connection:
            _check_project(connection, project)
            writer = _Writer(building, seed, fractions)
            with writer.files:
                for judgement, rows in current_rows(connection, project, with_texts=True):
                    writer.add(judgement, rows)
                writer.rubric_versions = _rubric_versions(connection, writer.rubric_ids)
                writer.flush()
        manifest = writer.manifest(project)
        write_json(building / "manifest.json", manifest)
        # Recorded first: a snapshot that a run can learn from is always one the store knows the members of.
        _record(store, out, manifest, writer.members)
        if out.exists():
            out.rmdir()
        os.replace(building, out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return manifest


class _Writer:
    """Streams judgements into the six split files and counts what goes in."""

    def __init__(self, folder: Path, seed: int, fractions: tuple[float, float, float]) -> None:
        self.seed, self.fractions = seed, fractions
        (folder / "trl").mkdir(parents=True)
        self.files = ExitStack()
        self.rows = {split: self._open(folder / f"{split}.jsonl") for split in SPLITS}
        self.trl = {split: self._open(folder / "trl" / f"{split}.jsonl") for split in SPLITS}
        self.hashes = {split: hashlib.sha256() for split in SPLITS}
        self.counts = {split: dict.fromkeys(("rows", "ties", "without_tie"), 0) for split in SPLITS}
        self.seen: dict[Split, dict[str, set[str]]] = {
            split: {"prompts": set(), "groups": set(), "annotators": set()} for split in SPLITS
        }
        self.members: list[dict[str, str]] = []
        self.rubric_ids: set[str] = set()
        self.num_simulated = self.num_without_comparison = 0
        self.rubric_versions: list[int] = []

    def _open(self, path: Path) -> IO[bytes]:
        return self.files.enter_context(open(path, "wb"))

    def add(self, judgement: Judgement, rows: list[Any]) -> None:
        row = rows[0]
        split = split_of(row.group_id, self.seed, self.fractions)
        texts = {r.completion_id: r.completion_text for r in rows}
        preferences = _preferences(judgement, row, texts)
        if not preferences:
            self.num_without_comparison += 1
            return
        for preference in preferences:
            self._write(split, preference)
        self.members.append({"annotation_id": judgement.judgement_id, "split": split})
        self.num_simulated += bool(row.simulated)
        seen = self.seen[split]
        seen["prompts"].add(judgement.prompt_id)
        seen["groups"].add(row.group_id)
        seen["annotators"].add(judgement.annotator_id)
        if row.rubric_id is not None:
            self.rubric_ids.add(row.rubric_id)

    def _write(self, split: Split, preference: dict[str, Any]) -> None:
        line = to_json(preference).encode("utf-8") + b"\n"
        self.rows[split].write(line)
        self.hashes[split].update(line)
        counts = self.counts[split]
        counts["rows"] += 1
        if preference["tie"]:
            counts["ties"] += 1
        else:
            counts["without_tie"] += 1
            columns = {name: preference[name] for name in ("prompt", "chosen", "rejected")}
            self.trl[split].write(to_json(columns).encode("utf-8") + b"\n")

    def flush(self) -> None:
        for file in (*self.rows.values(), *self.trl.values()):
            file.flush()
            os.fsync(file.fileno())

    def manifest(self, project: str) -> SnapshotManifest:
        if not self.members:
            raise DataError(f"project '{project}' holds no comparison yet; rate some pairs first")
        joined = "".join(self.hashes[split].hexdigest() for split in SPLITS)
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
                    **self.counts[split], **{name: len(ids) for name, ids in self.seen[split].items()}
                )
                for split in SPLITS
            },
            num_judgements=len(self.members),
            num_left_out_of_trl=sum(self.counts[split]["ties"] for split in SPLITS),
            num_without_comparison=self.num_without_comparison,
            simulated=self.num_simulated > 0,
            num_simulated=self.num_simulated,
            rubric_versions=self.rubric_versions,
        )


def _preferences(judgement: Judgement, row: Any, texts: dict[str, str]) -> list[dict[str, Any]]:
    """The comparisons in one answer: one for a pair, all pairs of different rank for a ranking."""
    comparisons: list[tuple[str, str, float, bool]] = []
    if judgement.kind == "pairwise":
        first, second = judgement.completion_ids
        tie = judgement.preference in ("tie", "both_bad")
        if judgement.preference == "second":
            first, second = second, first
        comparisons.append((first, second, 0.0 if tie else float(judgement.strength or 1), tie))
    elif judgement.ranking is not None:
        for better, worse in combinations(judgement.ranking, 2):
            comparisons += [(b, w, 1.0, False) for b in better for w in worse]
    return [
        {
            "prompt": row.messages,
            "chosen": [{"role": "assistant", "content": texts[chosen]}],
            "rejected": [{"role": "assistant", "content": texts[rejected]}],
            "margin": margin,
            "weight": 1.0 / len(comparisons),
            "tie": tie,
            "prompt_id": judgement.prompt_id,
            "group_id": row.group_id,
            "chosen_id": chosen,
            "rejected_id": rejected,
            "annotator_id": judgement.annotator_id,
            "judgement_id": judgement.judgement_id,
        }
        for chosen, rejected, margin, tie in comparisons
    ]


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


def _record(store: Store, out: Path, manifest: SnapshotManifest, members: list[dict[str, str]]) -> None:
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
        for start in range(0, len(members), 5000):
            chunk = [
                {**member, "snapshot_id": manifest.snapshot_id} for member in members[start : start + 5000]
            ]
            connection.execute(insert(snapshot_members), chunk)
        audit.append(
            connection, "system", "snapshot.export", manifest.snapshot_id, content_hash=manifest.content_hash
        )

    store.run(unit)
