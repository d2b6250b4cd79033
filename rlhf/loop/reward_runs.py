"""The reward runs of a workspace, and which prompts each of them has learned from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.data import SPLITS, families, load_preferences
from reward.rows import RankingRow, ScoresRow, ThumbRow
from rlhf.core.files import read_numbered
from rlhf.core.run import MANIFEST, Launch, Manifest, Workspace, content_sha256, is_finished, read_manifest
from rlhf.core.splits import split_of

OTHER_KINDS = (("rankings", RankingRow), ("scores", ScoresRow), ("unpaired", ThumbRow))


@dataclass(frozen=True)
class RewardRun:
    """A finished reward run. name: its path relative to the workspace."""

    path: Path
    name: str
    manifest: Manifest

    @property
    def num_pairs(self) -> int | None:
        """Comparisons in its training split."""
        number = self.manifest.extra.get("splits", {}).get("train", {}).get("num_pairs")
        return None if number is None else int(number)


@dataclass(frozen=True)
class Learned:
    """Prompt groups that a run was trained on, and those by which its epoch and temperature were chosen."""

    train: frozenset[str]
    validation: frozenset[str]


def finished_runs(launch: Launch) -> list[RewardRun]:
    """All finished reward runs under the workspace's `runs`, the oldest first; not those that --force set aside."""
    workspace = Workspace(launch.workspace)
    found = []
    for path in sorted(workspace.runs.rglob(MANIFEST)):
        folder = path.parent
        if ".old-" in folder.name or not is_finished(folder):
            continue
        manifest = read_manifest(folder)
        if manifest.stage == "reward":
            found.append(RewardRun(folder, workspace.relative(folder), manifest))
    return sorted(found, key=lambda run: (run.manifest.created, run.name))


def run_of(folder: Path) -> Path | None:
    """The run that an adapter or model directory belongs to: itself or the folder above it."""
    return next((path for path in (folder, folder.parent) if (path / MANIFEST).is_file()), None)


def learned_from(manifest: Manifest, launch: Launch) -> Learned | None:
    """What a reward run has seen, read from its own snapshot; None where that is no longer there as it was.

    A run moves prompts that are nearly the same into one split; here the whole family counts as seen if any of it
    lies in a split that the run looks at.
    """
    if manifest.stage != "reward" or manifest.snapshot is None:
        return None
    snapshot = Workspace(launch.workspace).resolve(manifest.snapshot.path)
    if not snapshot.exists() or content_sha256(snapshot) != manifest.snapshot.sha256:
        return None
    ratings = list(_ratings(snapshot, manifest.seed))
    family = families(ratings, float(manifest.settings.get("near_duplicates", 0.0)))
    seen: dict[str, set[str]] = defaultdict(set)
    for split, _, rating in ratings:
        seen[family[rating.group_id]].add(split)
    if snapshot.is_file():
        for name in list(seen):
            seen[name].add(split_of(name, manifest.seed))
    groups = {split: frozenset(g for g, name in family.items() if split in seen[name]) for split in SPLITS}
    return Learned(groups["train"], groups["validation"])


def _ratings(snapshot: Path, seed: int) -> Iterator[tuple[Any, str, Any]]:
    """(split, where, rating) of everything in a snapshot, whatever kinds of it a run used."""
    yield from load_preferences(snapshot, seed)
    for folder, row_type in OTHER_KINDS if snapshot.is_dir() else ():
        for split in SPLITS:
            path = snapshot / folder / f"{split}.jsonl"
            if path.is_file() and path.stat().st_size:
                yield from ((split, f"{path}:{line}", row) for line, row in read_numbered(path, row_type))
