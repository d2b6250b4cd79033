"""`rlhf export`: a snapshot of a project's ratings, ready for `rlhf reward` and for TRL."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path

from feedback_app.collector import fewer_collections
from feedback_app.config import ExportConfig
from feedback_app.store.engine import Store
from feedback_app.store.snapshots import SPLITS, SnapshotManifest, export_snapshot
from rlhf.core.run import Launch, Workspace


def run(settings: ExportConfig, launch: Launch) -> None:
    """Export to --out, or to WORKSPACE/snapshots/PROJECT-DATE."""
    out = launch.out or default_out(Workspace(launch.workspace).snapshots, settings.project)
    with fewer_collections(), Store.open(launch.db, create=False) as store:
        if launch.force:
            _set_aside(out)
        manifest = export_snapshot(
            store,
            out,
            project=settings.project,
            seed=settings.seed,
            fractions=settings.fractions,
            unpaired_from_pairs=settings.unpaired_from_pairs,
        )
    print(describe(manifest, out))


def describe(manifest: SnapshotManifest, out: Path) -> str:
    """The snapshot in a few lines."""
    lines = [f"snapshot {manifest.content_hash[:12]} of '{manifest.project}' in {out}"]
    for split in SPLITS:
        counts = manifest.counts[split]
        lines.append(
            f"  {split:<10} {counts.rows:>7} comparisons ({counts.ties} ties), {counts.prompts} prompts, "
            f"{counts.annotators} raters"
        )
    lines.append(f"  trl/       {manifest.num_left_out_of_trl:>7} ties left out: TRL has no column for them")
    for folder, rows in manifest.files.items():
        if folder != "trl":
            lines.append(f"  {folder + '/':<10} {sum(rows.values()):>7} rows")
    if manifest.num_without_comparison:
        lines.append(f"  {manifest.num_without_comparison} answers of other kinds hold no comparison")
    if manifest.left_out:
        named = ", ".join(f"{number} {why}" for why, number in sorted(manifest.left_out.items()))
        lines.append(f"  answers left out: {named}")
    if manifest.simulated:
        lines.append(f"  simulated: {manifest.num_simulated} of {manifest.num_judgements} answers")
    return "\n".join(lines)


def _set_aside(out: Path) -> None:
    """--force keeps what was there as OUT.old-1, OUT.old-2, ..."""
    if out.exists():
        names = (out.with_name(f"{out.name}.old-{number}") for number in count(1))
        out.rename(next(name for name in names if not name.exists()))


def default_out(folder: Path, project: str) -> Path:
    """A name in the folder of snapshots that is not taken: PROJECT-DATE."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in project)[:64].lstrip(".") or "project"
    stem = f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (stem, *(f"{stem}-{i}" for i in range(2, 1000)))
    return next(folder / name for name in names if not (folder / name).exists())
