"""Checkpoints are whole or not there: every kind of damage to every file is found, and the older one is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf.core.checkpoint import (
    MANIFEST,
    StateCheckpoints,
    checkpoints,
    commit_checkpoint,
    load_state,
    newest_valid,
    verify_checkpoint,
)
from rlhf.core.errors import CheckpointError


def write(folder: Path) -> None:
    (folder / "nested").mkdir()
    (folder / "nested" / "weights.bin").write_bytes(bytes(range(64)))
    (folder / "state.pt").write_bytes(b"x" * 100)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(root, the older checkpoint, the newer one)."""
    return tmp_path, commit_checkpoint(tmp_path, 3, write), commit_checkpoint(tmp_path, 12, write)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "truncated": truncate,
    "emptied": empty,
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("name", ["state.pt", "nested/weights.bin", MANIFEST])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_found_and_the_older_one_used(
    two: tuple[Path, Path, Path], damage: str, name: str
) -> None:
    root, older, newer = two
    assert newest_valid(root, warn=pytest.fail) == newer
    if (damage, name) == ("truncated", MANIFEST):
        truncate(newer / name)  # the last byte alone is a newline, without which the JSON is still whole
    DAMAGE[damage](newer / name)
    warnings: list[str] = []
    assert newest_valid(root, warn=warnings.append) == older
    # Without a manifest a directory is no checkpoint at all; with one, what is wrong is named.
    assert len(warnings) == (0 if (damage, name) == ("deleted", MANIFEST) else 1)
    assert all("step-00000012" in text for text in warnings)


def test_a_file_that_does_not_belong_is_found(two: tuple[Path, Path, Path]) -> None:
    root, older, newer = two
    (newer / "nested" / "stranger").write_text("x")
    with pytest.raises(CheckpointError, match="nested/stranger is missing or was not part"):
        verify_checkpoint(newer)
    assert newest_valid(root, warn=lambda text: None) == older


@pytest.mark.parametrize(
    "text", ["[]", '{"files": 3}', '{"files": ["state.pt", "nested/weights.bin"]}', "null"]
)
def test_a_manifest_of_another_form_is_damage(two: tuple[Path, Path, Path], text: str) -> None:
    _, _, newer = two
    (newer / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError):
        verify_checkpoint(newer)


def test_a_directory_without_manifest_is_ignored(two: tuple[Path, Path, Path]) -> None:
    root, _, newer = two
    write_into = root / "step-00000099"
    write_into.mkdir()
    write(write_into)
    assert newest_valid(root, warn=pytest.fail) == newer
    assert newest_valid(root / "nothing", warn=pytest.fail) is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4):
        commit_checkpoint(tmp_path, step, write, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000004", "step-00000030"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000030"]  # no litter


def write_new(folder: Path) -> None:
    (folder / "state.pt").write_text("new")


def test_a_valid_checkpoint_of_the_same_step_is_kept(two: tuple[Path, Path, Path]) -> None:
    """Replacing it would open a moment without any; a replayed step has the same state anyway."""
    root, _, newer = two
    before = sorted((p.name, p.stat().st_ino) for p in newer.iterdir())
    assert commit_checkpoint(root, 12, write_new) == newer
    assert sorted((p.name, p.stat().st_ino) for p in newer.iterdir()) == before


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(two: tuple[Path, Path, Path]) -> None:
    root, _, newer = two
    (newer / "state.pt").write_text("damage")
    commit_checkpoint(root, 12, write_new)
    verify_checkpoint(newer)
    assert [p.name for p in newer.iterdir() if p.name != MANIFEST] == ["state.pt"]


def test_a_write_that_fails_leaves_what_was_there(two: tuple[Path, Path, Path]) -> None:
    root, _, newer = two

    def fails(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            commit_checkpoint(root, 13, fails)
    assert newest_valid(root, warn=pytest.fail) == newer
    commit_checkpoint(root, 13, write)  # the half-written one is not in the way
    verify_checkpoint(root / "step-00000013")


def test_states_come_back_equal_and_damage_falls_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = StateCheckpoints(tmp_path / "checkpoints", "ppo", keep=2)
    assert states.newest() is None
    for step in (1, 2):
        states.save(step, {"step": step, "w": {"a": torch.full((3,), float(step))}, "none": None, "x": 1.5})
    state = states.newest()
    assert state is not None
    assert state["step"] == 2
    assert torch.equal(state["w"]["a"], torch.full((3,), 2.0))
    flip(tmp_path / "checkpoints" / "step-00000002" / "state.pt")
    state = states.newest()
    assert state is not None
    assert state["step"] == 1
    assert "ppo: ignoring a damaged checkpoint" in capsys.readouterr().out


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"step": Path("x")}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError):
        load_state(tmp_path)
