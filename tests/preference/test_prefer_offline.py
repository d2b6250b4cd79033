"""`rlhf prefer` on ratings: what comes out, what is read, and that a stopped run goes on to the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from rlhf.core.backbone import Backbone
from rlhf.core.config import load_settings
from rlhf.core.errors import ConfigError, DataError, GuardStop, Stopped
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, is_finished, read_manifest
from rlhf.loop.models import ModelPool
from rlhf.preference import save
from rlhf.preference.config import PreferConfig
from rlhf.preference.data import PreferenceData, load
from rlhf.preference.picture import offline_picture
from rlhf.preference.train import run
from rlhf.preference.trainer import OfflineTrainer

Make = Callable[..., PreferConfig]


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """One test draws it; half a second each is too much for all."""
    monkeypatch.setattr(save, "draw_offline", lambda *_: None)


@pytest.mark.parametrize("method", ["dpo", "ipo", "robust", "kto", "orpo", "cpo", "simpo"])
def test_every_offline_method_learns_the_planted_rule(
    method: str, prefer_config: Make, prefer_launch: Launch
) -> None:
    run(prefer_config(method, num_epochs=3), prefer_launch)
    out = prefer_launch.out
    assert out is not None
    assert is_finished(out)
    manifest = read_manifest(out)
    assert manifest.metrics["test_accuracy"] > 0.9, manifest.metrics
    assert (manifest.stage, set(manifest.parents)) == ("prefer", {"backbone", "snapshot"})
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[-1]["validation_loss"] < rows[0]["loss"]
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert not (out / "adapter" / "value_head.safetensors").exists()


def test_the_result_is_a_candidate_like_any_other(
    prefer_config: Make, prefer_launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `rlhf evaluate`, `sample` and the gates load; the backbone's bytes stay as they were."""
    weights = prefer_launch.workspace / "models" / "base" / "model.safetensors"
    before = weights.read_bytes()
    run(prefer_config(num_epochs=1), prefer_launch)
    generator = ModelPool(prefer_config().model, prefer_launch).generator(str(prefer_launch.out))
    assert generator.model_id.startswith("runs/prefer/adapter@")
    assert weights.read_bytes() == before
    assert prefer_launch.out is not None
    rows = read_metrics(prefer_launch.out / "metrics.jsonl")
    assert offline_picture(rows, "dpo", "run").startswith(b"\x89PNG")


def test_the_first_loss_is_the_one_of_an_untouched_policy(
    prefer_config: Make, prefer_launch: Launch, load_tiny: Callable[..., Backbone]
) -> None:
    """policy = reference: dpo and robust log 2, ipo (1 / (2 beta))^2 = 25 at beta 0.1, kto 1 - s(0) = 0.5."""
    expected = {"dpo": 0.693147, "robust": 0.693147, "ipo": 25.0, "kto": 0.5}
    for method, value in expected.items():
        config = prefer_config(method)
        backbone = load_tiny()
        trainer = OfflineTrainer(backbone, read(config, prefer_launch, backbone), config)
        assert trainer.train_step()["loss"] == pytest.approx(value, rel=1e-5), method


def read(config: PreferConfig, launch: Launch, backbone: Backbone) -> PreferenceData:
    return load(launch.workspace / "snapshots" / "1", backbone.codec, config, backbone.codec.max_tokens)


def test_micro_batches_and_the_trunk_change_nothing(
    prefer_config: Make, prefer_launch: Launch, load_tiny: Callable[..., Backbone]
) -> None:
    weights = []
    for changes in ({}, {"micro_batch_tokens": 40}, {"trunk_cache": False}):
        for method in ("dpo", "kto"):
            config, backbone = prefer_config(method, **changes), load_tiny()
            trainer = OfflineTrainer(backbone, read(config, prefer_launch, backbone), config)
            trainer.train_step()
            trainer.train_step()
            weights.append((method, torch.cat([p.detach().flatten() for p in trainer.parameters])))
    for method, found in weights[2:]:
        first = dict(weights[:2])[method]
        assert torch.allclose(found, first, atol=1e-4), (method, (found - first).abs().max())


def test_what_is_read_from_a_snapshot(
    prefer_config: Make, prefer_launch: Launch, load_tiny: Callable[..., Backbone]
) -> None:
    """24 training pairs of which 4 are ties, the first judged by two raters; 6 thumbs; 3 demonstrations."""
    backbone = load_tiny()
    pairs = read(prefer_config(), prefer_launch, backbone)
    assert len(pairs.examples["train"]) == 24
    assert sum(e.weight for e in pairs.examples["train"]) == 25
    ties = [e for e in pairs.examples["train"] if e.outcome[1] == 1.0]
    assert len(ties) == pairs.num_ties == 4
    assert len(read(prefer_config(ties="ignore"), prefer_launch, backbone).examples["train"]) == 20
    with_margins = read(prefer_config(margin_scale=0.5), prefer_launch, backbone)
    assert {abs(e.margin) for e in with_margins.examples["train"]} == {0.0, 0.5, 1.0, 1.5}
    assert {e.margin for e in with_margins.examples["validation"]} == {0.0}

    # kto: both sides of 20 decided pairs, 6 thumbs, 3 demonstrations
    verdicts = read(prefer_config("kto"), prefer_launch, backbone)
    train = verdicts.examples["train"]
    assert len(train) == 2 * 20 + 6 + 3
    assert verdicts.num_demonstrations == 9
    assert sum(e.good for e in train) == 20 + 3 + 3
    no_others = prefer_config("kto", learn_from=("pairs",))
    assert len(read(no_others, prefer_launch, backbone).examples["train"]) == 40
    for example in train:  # the KL estimate: the same prompt, the completion of another one
        length = verdicts.prompt_lengths[example.row]
        own, other = verdicts.rows[example.row], verdicts.rows[example.kl_row]
        assert verdicts.prompt_lengths[example.kl_row] == length
        assert own[:length] == other[:length]
        assert example.kl_row != example.row


def test_a_stopped_run_goes_on_to_the_same_bits(
    prefer_config: Make, prefer_launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the step that spends its budget, in the midst of an epoch, before and after the interruption."""
    changes = {"budget_tokens": 12_000, "num_epochs": 50}
    config = prefer_config("kto", lora={"dropout": 0.1}, save_steps=2, **changes)
    whole = replace(prefer_launch, out=prefer_launch.workspace / "runs" / "whole")
    run(config, whole)
    calls = 0
    step = OfflineTrainer.train_step

    def stopped(self: OfflineTrainer, check: Callable[[], None]) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, check)

    monkeypatch.setattr(OfflineTrainer, "train_step", stopped)
    with pytest.raises(Stopped, match="SIGTERM"):
        run(config, prefer_launch)
    monkeypatch.setattr(OfflineTrainer, "train_step", step)
    assert prefer_launch.out is not None
    assert not is_finished(prefer_launch.out)
    run(config, replace(prefer_launch, resume=True))
    assert whole.out is not None
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl"):
        assert (prefer_launch.out / name).read_bytes() == (whole.out / name).read_bytes(), name
    assert 12_000 <= read_manifest(whole.out).metrics["tokens_spent"] < 13_000


def test_a_weight_that_is_not_finite_ends_the_run(
    prefer_config: Make, prefer_launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = OfflineTrainer.train_step

    def broken(self: OfflineTrainer, check: Callable[[], None]) -> dict[str, float]:
        figures = step(self, check)
        if self.global_step == 2:
            self.parameters[0].data[0, 0] = float("nan")
        return figures

    monkeypatch.setattr(OfflineTrainer, "train_step", broken)
    with pytest.raises(GuardStop, match="step 3"):
        run(prefer_config(), prefer_launch)
    assert prefer_launch.out is not None
    assert not (prefer_launch.out / "adapter").exists()


def test_a_budget_that_is_spent_before_the_first_step_is_said(
    prefer_config: Make, prefer_launch: Launch
) -> None:
    with pytest.raises(
        GuardStop, match="nothing was learned: its budget of 10 tokens is spent before the first step"
    ):
        run(prefer_config(budget_tokens=10), prefer_launch)
    assert prefer_launch.out is not None
    assert not (prefer_launch.out / "adapter").exists()


def test_what_does_not_fit_is_one_line(prefer_config: Make, prefer_launch: Launch) -> None:
    rows = (prefer_launch.workspace / "snapshots" / "1" / "train.jsonl").read_text().splitlines()
    (prefer_launch.workspace / "snapshots" / "1" / "train.jsonl").write_text(
        "".join(row + "\n" for row in rows if '"tie": true' in row)
    )
    with pytest.raises(DataError, match="4 training comparisons are ties"):
        run(prefer_config(ties="ignore"), prefer_launch)
    assert prefer_launch.out is not None
    assert not prefer_launch.out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "r"], "reward was given, but dpo learns from a snapshot"),
        (["--method", "grpo", "--snapshot", "s"], "snapshot was given, but grpo learns from a reward"),
        (["--method", "ipo", "--margin-scale", "1"], "margin_scale is for dpo, cpo, simpo; found method ipo"),
        (["--method", "orpo", "--label-smoothing", "0.1"], "label_smoothing is for dpo, robust, cpo, simpo"),
        (["--learn-from", "thumbs"], r"learn_from is \['thumbs'\]; dpo learns from pairs, rankings"),
        (["--method", "kto", "--learn-from", "demonstrations"], "kto learns from pairs, rankings, thumbs"),
        (["--beta", "0"], "beta is 0; dpo needs a positive one"),
        (["--sampling.temperature", "0"], "sampling.temperature is 0; dpo compares log-probabilities"),
        (
            ["--engine", "trl", "--ties", "ignore", "--no-use-weights", "--sampling.temperature", "0.7"],
            "engine trl has no place for sampling.temperature = 0.7",
        ),
        (["--budget-seconds", "5", "--budget-tokens", "5"], "were both given"),
        (["--method", "grpo", "--lora.dropout", "0.1"], "lora.dropout is 0.1; ppo needs 0"),
        (["--method", "dqn"], "dqn"),
    ],
)
def test_settings_that_do_not_go_together(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(PreferConfig, None, arguments, "rlhf prefer")


def test_a_policy_moves_away_from_the_reference(prefer_config: Make, prefer_launch: Launch) -> None:
    run(prefer_config(num_epochs=1), prefer_launch)
    assert prefer_launch.out is not None
    tensors = load_file(prefer_launch.out / "adapter" / "adapter_model.safetensors")
    assert all(bool(value.abs().sum() > 0) for name, value in tensors.items() if "lora_B" in name)
