"""What plain transformers.Trainer gets wrong when a run is cut short (tests/test_trainer_fault_table.py): reward."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import reward.train as reward_train
import rlhf.cli as cli
from reward.config import RewardConfig
from reward.trainer import RewardTrainer
from rlhf.core.checkpoint import MANIFEST, STATE_FILE, checkpoints, load_state, newest_valid
from rlhf.core.errors import GuardStop, Stopped
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, directory_sha256, is_finished

MakeConfig = Callable[..., RewardConfig]


def out_of(launch: Launch) -> Path:
    assert launch.out is not None
    return launch.out


def settings(reward_config: MakeConfig, **changes: Any) -> RewardConfig:
    """Two epochs of 4 or 5 steps, with a checkpoint every second step."""
    return reward_config(num_epochs=2, batch_pairs=32, save_steps=2, near_duplicates=0, **changes)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[RewardTrainer], None]) -> None:
    """`act` right after the n-th optimizer step of this process, before anything is saved."""
    step, calls = RewardTrainer.train_step, []

    def acting(self: RewardTrainer, check: Callable[[], None]) -> float:
        loss = step(self, check)
        calls.append(1)
        if len(calls) == number:
            act(self)
        return loss

    monkeypatch.setattr(RewardTrainer, "train_step", acting)


def crash(trainer: RewardTrainer) -> None:
    raise OSError("the machine went away")


def result_of(out: Path) -> list[bytes]:
    names = ("adapter/adapter_model.safetensors", "adapter/reward.json", "metrics.jsonl")
    return [(out / name).read_bytes() for name in names]


@pytest.fixture
def stopped_run(reward_launch: Launch, reward_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A run that crashed in its second epoch, with two checkpoints of which the newer is inside that epoch."""
    with monkeypatch.context() as patch:
        at_step(patch, 7, crash)
        with pytest.raises(OSError, match="went away"):
            reward_train.run(settings(reward_config), reward_launch)
    older, newer = checkpoints(out_of(reward_launch) / "checkpoints")
    assert load_state(newer)["step"] > 0
    assert load_state(older)["epoch"] == 1
    return replace(reward_launch, resume=True)


@pytest.fixture
def whole_run(reward_launch: Launch, reward_config: MakeConfig) -> Path:
    launch = replace(reward_launch, out=reward_launch.workspace / "runs" / "whole")
    reward_train.run(settings(reward_config), launch)
    return out_of(launch)


# ---- damaged checkpoints ------------------------------------------------------------------------------------


def damages(original: bytes) -> Iterator[bytes | None]:
    """Bits and bytes changed, cut short at several lengths, one byte too many, and None for no file."""
    size = len(original)
    for place in [0, size // 2, size - 1, *random.Random(0).sample(range(size), 60)]:
        for mask in (1 << place % 8, 0xFF):
            damaged = bytearray(original)
            damaged[place] ^= mask
            yield bytes(damaged)
    yield from (original[:length] for length in (0, size // 3, size - 1))
    yield original + b"\0"
    yield None


def test_damage_to_any_file_of_a_reward_checkpoint_is_found(stopped_run: Launch) -> None:
    older, newer = checkpoints(out_of(stopped_run) / "checkpoints")
    assert sorted(path.name for path in newer.iterdir()) == sorted([MANIFEST, STATE_FILE])
    for path in newer.iterdir():
        original = path.read_bytes()
        for content in damages(original):
            path.unlink() if content is None else path.write_bytes(content)
            assert newest_valid(newer.parent, warn=lambda text: None) == older, path.name
        path.write_bytes(original)
        assert newest_valid(newer.parent, warn=pytest.fail) == newer


def remove(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [remove, flip])
def test_a_damaged_reward_state_costs_steps_and_no_bit(
    stopped_run: Launch,
    whole_run: Path,
    reward_config: MakeConfig,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    damage(checkpoints(out_of(stopped_run) / "checkpoints")[-1] / STATE_FILE)
    reward_train.run(settings(reward_config), stopped_run)
    assert "reward: ignoring a damaged checkpoint" in capsys.readouterr().out
    assert result_of(out_of(stopped_run)) == result_of(whole_run)


def test_an_incomplete_reward_checkpoint_with_the_highest_number_is_ignored(
    stopped_run: Launch, whole_run: Path, reward_config: MakeConfig
) -> None:
    folder = out_of(stopped_run) / "checkpoints"
    newer = checkpoints(folder)[-1]
    for name in (".partial-00000099", "step-00000099"):
        (folder / name).mkdir()
        shutil.copy(newer / STATE_FILE, folder / name / STATE_FILE)
    reward_train.run(settings(reward_config), stopped_run)
    assert result_of(out_of(stopped_run)) == result_of(whole_run)
    assert not (folder / ".partial-00000099").exists()


def test_a_finished_reward_run_trains_nothing(
    whole_run: Path, reward_launch: Launch, reward_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = directory_sha256(whole_run)
    at_step(monkeypatch, 1, crash)
    for resume in (False, True):
        reward_train.run(settings(reward_config), replace(reward_launch, out=whole_run, resume=resume))
    assert directory_sha256(whole_run) == before


# ---- stops and numbers that are not finite ------------------------------------------------------------------


def command_of(launch: Launch, config: RewardConfig) -> list[str]:
    path = launch.workspace / "reward.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    workspace = ["--workspace", str(launch.workspace)]
    return ["reward", *workspace, "--config", str(path), "--out", str(out_of(launch))]


def test_sigterm_ends_a_reward_run_with_143_and_without_an_adapter(
    reward_launch: Launch,
    reward_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, command = out_of(reward_launch), command_of(reward_launch, settings(reward_config))
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
        assert cli.main(command) == 143
    assert "stopped by SIGTERM; continue with --resume" in capsys.readouterr().err
    assert not is_finished(out)
    assert not (out / "adapter").exists()
    assert load_state(checkpoints(out / "checkpoints")[-1])["step"] == 3  # nothing is lost
    assert cli.main([*command, "--resume"]) == 0
    assert is_finished(out)


def saved_weights(out: Path) -> list[torch.Tensor]:
    """Every tensor of every checkpoint's weights."""
    states = [load_state(folder)["weights"] for folder in checkpoints(out / "checkpoints")]
    return [tensor for weights in states for role in weights.values() for tensor in role.values()]


def ruin(trainer: RewardTrainer) -> None:
    with torch.no_grad():
        trainer.parameters[0].fill_(float("inf"))


def test_nan_ends_a_reward_run_with_3_and_no_checkpoint_holds_it(
    reward_launch: Launch,
    reward_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The fourth step is one that is saved: the weights are looked at then, before a loss could say so."""
    at_step(monkeypatch, 4, ruin)
    assert cli.main(command_of(reward_launch, settings(reward_config, patience=2))) == 3
    assert "the run stopped and its last good checkpoint is kept" in capsys.readouterr().err
    out = out_of(reward_launch)
    assert not (out / "adapter").exists()
    assert len(saved_weights(out)) > 0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved_weights(out))
    rows = read_metrics(out / "metrics.jsonl") if (out / "metrics.jsonl").exists() else []
    assert all(row["train_loss"] > 0 for row in rows)


def test_a_stopped_reward_run_saves_no_weights_that_are_not_finite(
    reward_launch: Launch, reward_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruin_and_stop(trainer: RewardTrainer) -> None:
        ruin(trainer)
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(monkeypatch, 3, ruin_and_stop)
    with pytest.raises((GuardStop, Stopped)) as caught:
        reward_train.run(settings(reward_config), reward_launch)
    assert isinstance(caught.value, GuardStop)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved_weights(out_of(reward_launch)))
