"""rlhf sft --tune: the best trial has the run, a search goes on inside a trial, and nothing else is seen."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.core.errors import ConfigError, GuardStop, Stopped
from rlhf.core.run import Launch, read_manifest
from rlhf.core.search import PLACES, TRIALS, given, search, search_space, with_proposal
from sft import train as sft_train
from sft.config import SFTConfig
from sft.search import page
from sft.trainer import Trainer


def launch_of(root: Path, name: str, **options: bool) -> Launch:
    return Launch(root / "workspace", "sqlite:///none", out=root / "workspace" / "runs" / name, **options)


def test_a_proposal_takes_its_places_and_leaves_the_rest(sft_options: Callable[..., Any]) -> None:
    config = SFTConfig(**sft_options())
    space = search_space(config)
    assert given(config, space) == {"lr": 1e-2, "dropout": 0.1, "weight_decay": 0.0, "num_epochs": 4}
    assert (space["lr"].low, space["lr"].high) == pytest.approx((1e-3, 1e-1))  # type: ignore[attr-defined]
    changed = with_proposal(config, {"lr": 0.5, "dropout": 0.0, "weight_decay": 0.2, "num_epochs": 1})
    expected = config.model_dump()
    expected["optim"] |= {"lr": 0.5, "weight_decay": 0.2}
    expected["lora"] |= {"dropout": 0.0}
    expected["num_epochs"] = 1
    assert changed.model_dump() == expected
    assert set(search_space(config, dropout=False)) == set(PLACES) - {"dropout"}


@pytest.mark.long
def test_a_search_is_resumed_inside_a_trial_and_ends_with_the_best(
    tmp_path: Path,
    sft_options: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = SFTConfig(**sft_options(tune=2, num_epochs=2, eval_steps=1))
    launch = launch_of(tmp_path, "whole")
    sft_train.run(config, launch)
    whole = launch.out
    assert whole is not None
    rows = [json.loads(line) for line in (whole / TRIALS).read_text().splitlines()]
    assert [row["trial"] for row in rows] == [0, 1]
    assert rows[0]["lr"] == 1e-2
    assert len({row["lr"] for row in rows}) == 2
    best = min(rows, key=lambda row: row["validation_loss"])
    # The run itself: the best trial's settings, trained again to the same loss.
    manifest = read_manifest(whole)
    assert manifest.metrics["validation_loss"] == pytest.approx(best["validation_loss"], abs=1e-6)
    chosen = yaml.safe_load((whole / "chosen.yaml").read_text())
    assert chosen["optim"]["lr"] == best["lr"]
    assert chosen["num_epochs"] == best["num_epochs"]
    assert chosen["tune"] == 0
    assert manifest.settings["tune"] == 2
    assert "best of 2 trials" in capsys.readouterr().out
    page = (whole / "tune.html").read_text()
    for text in ("Trials", "log10 of lr", f"Trial {best['trial']} has the lowest"):
        assert text in page, text
    assert not list(whole.glob("trials/*/checkpoints"))
    assert not list(whole.glob("trials/*/*.safetensors"))

    # Stopped in the second trial's last step: the steps before it are not done again, and all comes out the same.
    original, steps = Trainer.training_step, []

    def counted(self: Trainer, *args: Any, **options: Any) -> Any:
        steps.append(1)
        if len(steps) == stop_at:
            raise Stopped("stopped by SIGTERM; continue with --resume", 15)
        return original(self, *args, **options)

    # a step of 8 demonstrations is two micro-batches
    trials, last = [2 * row["num_steps"] for row in rows], 2 * best["num_steps"]
    stop_at = sum(trials)
    again = launch_of(tmp_path, "halves")
    monkeypatch.setattr(Trainer, "training_step", counted)
    with pytest.raises(Stopped):
        sft_train.run(config, again)
    assert len((again.out / TRIALS).read_text().splitlines()) == 1  # type: ignore[operator]
    stop_at = -1
    steps.clear()
    sft_train.run(config, replace(again, resume=True))
    assert len(steps) == 2 + last  # the step that was stopped, and the run itself
    for name in (TRIALS, "chosen.yaml", "model/model.safetensors"):
        assert (again.out / name).read_bytes() == (whole / name).read_bytes(), name  # type: ignore[operator]


def test_what_cannot_be_searched_is_said_before_anything_is_written(
    tmp_path: Path, sft_options: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="tune does not go with privacy"):
        SFTConfig(**sft_options(tune=2, privacy={"epsilon": 1.0}))
    # None in sys.modules is how Python marks a module that cannot be imported
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("sft.search", "rlhf.core.search"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    launch = launch_of(tmp_path, "one")
    with pytest.raises(ConfigError, match=r"--tune needs optuna; .*rlhf-loop\[tune\]"):
        sft_train.run(SFTConfig(**sft_options(tune=2)), launch)
    assert not launch.workspace.exists()


def test_a_trial_that_a_guard_ends_is_passed_over(tmp_path: Path, sft_options: Callable[..., Any]) -> None:
    config = SFTConfig(**sft_options())
    space = search_space(config)

    def attempt(number: int, proposal: dict[str, Any]) -> dict[str, Any]:
        if number != 1:
            raise GuardStop("step 3: loss is nan")
        return {"validation_loss": 2.5, "best_step": 1, "num_steps": 2}

    options: dict[str, Any] = {"seed": 0, "stage": "sft"}
    first = given(config, space)
    with pytest.raises(GuardStop, match="none of 1 trials came to an end; the last: step 3: loss is nan"):
        search(tmp_path / "one.jsonl", 1, space, first, attempt, **options)
    best = search(tmp_path / "three.jsonl", 3, space, first, attempt, **options)
    rows = [json.loads(line) for line in (tmp_path / "three.jsonl").read_text().splitlines()]
    assert [row["validation_loss"] for row in rows] == [None, 2.5, None]
    assert best == {name: rows[1][name] for name in space}
    said = page(rows, list(space))
    assert "trial 0, have no loss" in said
    assert "Trials that a guard ended have no loss: 0, 2." in said
