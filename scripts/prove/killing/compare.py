"""Two finished runs, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf.core.checkpoint import MANIFEST, checkpoints
from rlhf.core.metrics import read_metrics
from rlhf.core.run import CHECKPOINTS, METRICS, is_finished, read_manifest

# Figures of time differ from run to run, as do those of memory.
TIMES = ("seconds", "episodes_per_s", "tokens_per_s", "peak")
# trl counts its tokens from 0 again in a resumed run; the count stands in its own log only and nothing reads it.
UNCOUNTED = "num_tokens"


def without_times(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if not name.startswith(TIMES)}


def equal(one: Any, two: Any) -> bool:
    """Nested values with tensors, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def difference(one: Path, two: Path, folders: Sequence[str], *, skipped: Sequence[str] = ()) -> str:
    """The first thing in which two finished runs differ; empty when they are equal.

    folders: those of the result, compared byte for byte. skipped: files of a checkpoint that name the run's own
    directory; all its others are compared, with tensors and JSON read where the bytes differ.
    """
    if not (is_finished(one) and is_finished(two)):
        return "one is not finished"
    for place in ("", CHECKPOINTS):  # also what a kill may have left lying about
        names = [_entries(out / place) for out in (one, two)]
        if names[0] != names[1]:
            return f"{place or 'what it holds'}: {sorted(set(names[0]) ^ set(names[1]))}"
    for folder in folders:
        if found := _bytes_differ(one / folder, two / folder):
            return f"{folder}/{found}"
    rows = [[without_times(row) for row in read_metrics(out / METRICS)] for out in (one, two)]
    if rows[0] != rows[1]:
        return METRICS
    if without_times(read_manifest(one).metrics) != without_times(read_manifest(two).metrics):
        return "the manifest's metrics"
    # The last is that of the end; the one before it may be of a step at which only one of them was stopped.
    saved = [{folder.name for folder in checkpoints(out / CHECKPOINTS)} for out in (one, two)]
    for step in sorted(saved[0] & saved[1] | {max(saved[0])}):
        name = f"{CHECKPOINTS}/{step}"
        if found := _bytes_differ(one / name, two / name, skipped=(MANIFEST, *skipped)):
            return f"{name}/{found}"
    return ""


def _entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("step-"))


def _bytes_differ(one: Path, two: Path, skipped: Sequence[str] = ()) -> str:
    """The first file that differs between two folders; empty when there is none."""
    names = [_names(folder) for folder in (one, two)]
    if names[0] != names[1]:
        return f" (files {sorted(set(names[0]) ^ set(names[1]))})"
    for name in names[0]:
        if name not in skipped and not _equal_files(one / name, two / name):
            return name
    return ""


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _equal_files(one: Path, two: Path) -> bool:
    """Equal bytes, or bytes that stand for equal values: a pickle's depend on which of its strings happened to be
    one object."""
    if one.read_bytes() == two.read_bytes():
        return True
    if one.suffix in (".pt", ".pth"):
        return equal(*(torch.load(path, map_location="cpu", weights_only=True) for path in (one, two)))
    if one.suffix == ".json":
        return equal(*(_without_counts(json.loads(path.read_text(encoding="utf-8"))) for path in (one, two)))
    return False


def _without_counts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_counts(inner) for key, inner in value.items() if key != UNCOUNTED}
    return [_without_counts(inner) for inner in value] if isinstance(value, list) else value
