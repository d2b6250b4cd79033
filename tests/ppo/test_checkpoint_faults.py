"""Every file of a real run's checkpoint flipped, truncated and deleted: always found, and the older one used.

Proof by exhaustion where that is cheap (every byte of the manifest), by many places elsewhere.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import rlhf.ppo.train as ppo_train
from rlhf.core.checkpoint import MANIFEST, STATE_FILE, checkpoints, newest_valid
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch
from rlhf.ppo.config import PPOConfig

MakeConfig = Callable[..., PPOConfig]


@pytest.fixture
def stopped_run(ppo_launch: Launch, ppo_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that crashed in iteration 4 with checkpoints of iterations 2 and 3; its out directory."""
    monkeypatch.setenv("RLHF_TEST_AT", "6")
    monkeypatch.setenv("RLHF_TEST_DO", "crash")
    with pytest.raises(ValueError, match="the reward crashed"):
        ppo_train.run(settings(ppo_config), ppo_launch)
    monkeypatch.delenv("RLHF_TEST_AT")
    assert ppo_launch.out is not None
    assert [p.name for p in checkpoints(ppo_launch.out / "checkpoints")] == ["step-00000002", "step-00000003"]
    return ppo_launch.out


def settings(ppo_config: MakeConfig) -> PPOConfig:
    return ppo_config(save_every=1, value_adapter=True, micro_batch_tokens=10_000)


def changed_bytes(original: bytes, places: Iterator[int] | range) -> Iterator[tuple[str, bytes]]:
    """One byte changed at each place: one bit of it, and all bits."""
    for place in places:
        for mask in (1 << place % 8, 0xFF):
            damaged = bytearray(original)
            damaged[place] ^= mask
            yield f"byte {place} ^ {mask:#x}", bytes(damaged)


def damages(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(what was done, the file's new bytes or None for no file)."""
    original = path.read_bytes()
    size = len(original)
    if path.name == MANIFEST:
        yield from changed_bytes(original, range(size))
        lengths = range(size)
    else:
        chosen = random.Random(0).sample(range(size), 200)
        yield from changed_bytes(original, iter([0, 1, size // 2, size - 1, *chosen]))
        lengths = [0, 1, size // 3, size - 1, *chosen[:10]]
    yield from ((f"truncated to {length} bytes", original[:length]) for length in lengths)
    yield "one byte longer", original + b"\0"
    yield "deleted", None


def test_damage_anywhere_is_found_and_the_older_checkpoint_used(stopped_run: Path) -> None:
    older, newer = checkpoints(stopped_run / "checkpoints")
    names = sorted(p.name for p in newer.iterdir())
    assert names == sorted([MANIFEST, STATE_FILE])
    count = 0
    for name in names:
        path = newer / name
        original = path.read_bytes()
        for what, content in damages(path):
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
            warnings: list[str] = []
            assert newest_valid(newer.parent, warn=warnings.append) == older, f"{name}: {what} was not found"
            # Without its manifest a folder is no checkpoint at all, and nothing is said.
            assert len(warnings) == (0 if (name, what) == (MANIFEST, "deleted") else 1)
            count += 1
        path.write_bytes(original)
        assert newest_valid(newer.parent, warn=pytest.fail) == newer
    assert count > 600


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {"flipped": flip, "truncated": halve, "deleted": Path.unlink}


def test_a_run_with_a_damaged_newest_checkpoint_goes_on_from_the_older_one(
    stopped_run: Path, ppo_launch: Launch, ppo_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every kind of damage to every file, then a real --resume; with both damaged it starts from the beginning."""
    config = settings(ppo_config)
    whole = ppo_launch.workspace / "runs" / "whole"
    ppo_train.run(config, replace(ppo_launch, out=whole))
    weights = (whole / "adapter" / "adapter_model.safetensors").read_bytes()
    cases = [(name, how, [1]) for name in (STATE_FILE, MANIFEST) for how in DAMAGE]
    for name, how, which in [*cases, (STATE_FILE, "flipped", [0, 1])]:
        out = stopped_run.with_name(f"{name}-{how}-{len(which)}")
        shutil.copytree(stopped_run, out)
        for number in which:
            DAMAGE[how](checkpoints(out / "checkpoints")[number] / name)
        capsys.readouterr()
        ppo_train.run(config, replace(ppo_launch, out=out, resume=True))
        said = capsys.readouterr().out
        # A folder without its manifest is no checkpoint at all, and nothing is said.
        expected = 0 if (name, how) == (MANIFEST, "deleted") else len(which)
        assert said.count("ppo: ignoring a damaged checkpoint") == expected
        assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == weights, f"{name} {how}"
        assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == [0, 1, 2, 3, 4]
