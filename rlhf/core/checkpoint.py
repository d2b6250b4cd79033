"""Checkpoints that are either whole or not there, and that are checked before they are used.

A checkpoint is a directory. It is written under a temporary name, every file is flushed to disk, a manifest
with each file's SHA-256 is written last, and one rename commits it. A directory without a manifest, or with
a file that does not match it, is never loaded: the newest valid one is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlhf.core.chat import first_line
from rlhf.core.errors import CheckpointError

MANIFEST = "CHECKPOINT.json"
STATE_FILE = "state.pt"


def commit_checkpoint(root: Path, step: int, write: Callable[[Path], None], *, keep: int = 2) -> Path:
    """Write a checkpoint through `write(folder)` and commit it as root/step-NNNNNNNN; keep the newest `keep`.

    A valid checkpoint of the same step is kept as it is: a replayed step gives the same state, and replacing
    it would open a moment in which there is none.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".*-[0-9]*"):  # what a kill in an earlier commit or rotation left behind
        shutil.rmtree(leftover, ignore_errors=True)
    final = root / f"step-{step:08d}"
    if final.exists():
        try:
            verify_checkpoint(final)
            return final
        except CheckpointError:
            os.rename(final, root / f".old-{step:08d}")
    partial = root / f".partial-{step:08d}"
    partial.mkdir()
    write(partial)
    files = {}
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        files[path.relative_to(partial).as_posix()] = _sha256(path)
        _fsync(path)
    manifest = partial / MANIFEST
    manifest.write_text(_manifest_text(step, files), encoding="utf-8")
    _fsync(manifest)
    _fsync(partial)
    os.rename(partial, final)
    _fsync(root)
    for path in checkpoints(root)[:-keep]:
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under its name.
        doomed = root / f".old-{path.name.removeprefix('step-')}"
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    return final


class StateCheckpoints:
    """The training states of one run: `save` commits one, `newest` gives back the newest valid one."""

    def __init__(self, root: Path, stage: str, *, keep: int = 2) -> None:
        self.root, self._stage, self._keep = root, stage, keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        commit_checkpoint(self.root, step, lambda folder: save_state(folder, state), keep=self._keep)

    def newest(self) -> dict[str, Any] | None:
        """None when there is no valid checkpoint; damaged ones on the way are named on standard output."""
        folder = newest_valid(self.root, warn=lambda text: print(f"{self._stage}: {text}"))
        return load_state(folder) if folder is not None else None


def checkpoints(root: Path) -> list[Path]:
    """Committed checkpoints, oldest first, not yet verified."""
    return sorted(p for p in root.glob("step-*") if (p / MANIFEST).is_file()) if root.is_dir() else []


def verify_checkpoint(folder: Path) -> None:
    """Raise CheckpointError unless every file is there and has the bytes that were committed.

    The manifest follows from the folder's name and the files' checksums, so damage to it shows too.
    """
    try:
        # As bytes: reading as text would take one kind of line end for another.
        text = (folder / MANIFEST).read_bytes().decode("utf-8")
        files = json.loads(text)["files"]
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
        if found != set(files):
            different = sorted(found ^ set(files))
            raise CheckpointError(f"{folder}: {different[0]} is missing or was not part of the checkpoint")
        for name, expected in files.items():
            if _sha256(folder / name) != expected:
                raise CheckpointError(f"{folder / name}: does not match its checksum")
        if text != _manifest_text(int(folder.name.removeprefix("step-")), files):
            raise CheckpointError(f"{folder / MANIFEST}: damaged (it was not written like this)")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder / MANIFEST}: damaged ({first_line(error)})") from error


def newest_valid(root: Path, *, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; each damaged one on the way is named through `warn`."""
    for folder in reversed(checkpoints(root)):
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            warn(f"ignoring a damaged checkpoint: {error}")
        else:
            return folder
    return None


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers, strings and containers of them, as one file that loads with `weights_only=True`."""
    torch.save(state, folder / STATE_FILE)


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU. Raises CheckpointError."""
    try:
        return torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what its unpickler happens to meet
        raise CheckpointError(f"{folder / STATE_FILE}: cannot be read ({first_line(error)})") from error


def _manifest_text(step: int, files: dict[str, str]) -> str:
    return json.dumps({"step": step, "files": files}, indent=2) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
