"""`rlhf sft` with privacy: what the manifest says, and that a resumed run spends what a whole one does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.checkpoint import checkpoints
from rlhf.core.errors import ConfigError, Stopped
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, read_manifest
from sft.config import SFTConfig
from sft.privacy import trainer as trainer_module
from sft.privacy.accountant import spent_epsilon
from sft.privacy.train import price
from sft.train import run

Options = Callable[..., dict[str, Any]]


def private(options: Options, **changes: Any) -> SFTConfig:
    values = {
        "privacy": {"noise_multiplier": 0.8},
        "batch_size": 4,
        "num_epochs": 2,
        "num_samples": 0,
    } | changes
    return SFTConfig(**options(**values))


def tune(out: Path, config: SFTConfig, **launch: bool) -> Path:
    run(config, Launch(workspace=out.parent, db="sqlite://", out=out, **launch))
    return out


def test_a_private_run_says_what_it_spent_and_resumes_to_the_same(
    tmp_path: Path, sft_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = private(sft_options)
    monkeypatch.setattr(trainer_module.secrets, "randbits", lambda bits: 12345)
    whole = tune(tmp_path / "whole", config)
    manifest = read_manifest(whole)
    privacy, metrics = manifest.extra["privacy"], manifest.metrics
    number = metrics["num_train"]
    assert privacy["sample_rate"] == 4 / number
    assert privacy["delta"] == 1 / (10 * number)
    assert privacy["num_steps"] == metrics["num_steps"] == 2 * -(-number // 4)
    assert metrics["epsilon"] == privacy["epsilon"]
    assert privacy["epsilon"] == spent_epsilon(0.8, 4 / number, metrics["num_steps"], privacy["delta"])
    assert (whole / "model" / "config.json").is_file()
    assert not checkpoints(whole / "checkpoints")  # they hold the key of the noise
    sizes = {row["batch"] for row in read_metrics(whole / "metrics.jsonl") if "batch" in row}
    assert len(sizes) > 1

    out, step = tmp_path / "stopped", trainer_module.PrivateTrainer.train_step

    def stopping(self: Any, check: Callable[[], None]) -> dict[str, float]:
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, check)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.PrivateTrainer, "train_step", stopping)
        with pytest.raises(Stopped):
            tune(out, config)
    monkeypatch.setattr(trainer_module.secrets, "randbits", lambda bits: 999)  # the checkpoint's key counts
    tune(out, config, resume=True)
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_manifest(out).extra["privacy"] == privacy
    # Killed between its end and the removal of the key: the next call of the command makes up for it.
    (out / "checkpoints" / "step-00000001").mkdir(parents=True)
    tune(out, config)
    assert not (out / "checkpoints").exists()


def test_a_run_that_stops_early_says_what_all_its_steps_would_have_cost(
    tmp_path: Path, sft_options: Options
) -> None:
    # Nothing is learned at this rate: what little the first steps gain by chance ends soon.
    options = {"patience": 1, "eval_steps": 1, "optim": {"lr": 1e-12, "warmup_steps": 0}}
    config = private(sft_options, **options, batch_size=1, micro_batch_size=1)
    out = tune(tmp_path / "early", config)
    manifest = read_manifest(out)
    privacy, number = manifest.extra["privacy"], manifest.metrics["num_train"]
    assert privacy["steps_taken"] == manifest.metrics["num_steps"] < privacy["num_steps"] == 2 * number
    assert privacy["epsilon"] == spent_epsilon(0.8, 1 / number, 2 * number, privacy["delta"])


def test_the_noise_for_an_epsilon_is_no_more_than_it_needs(sft_options: Options) -> None:
    config = private(sft_options, privacy={"epsilon": 4.0, "delta": 1e-4}, batch_size=20, num_epochs=1)
    found = price(config, 200)
    assert (found.sample_rate, found.delta) == (0.1, 1e-4)
    assert 3.9 < spent_epsilon(found.noise_multiplier, 0.1, 10, 1e-4) <= 4.0
    assert found.after(5)["epsilon"] < found.after(10)["epsilon"]


def test_what_does_not_go_with_privacy_is_refused(tmp_path: Path, sft_options: Options) -> None:
    for changes, said in (
        ({"method": "full"}, "method is full; privacy goes with method lora only"),
        ({"packing": True}, "packing is True; privacy goes with packing off only"),
        ({"privacy": {"epsilon": 1, "noise_multiplier": 1}}, "expected one of them"),
        ({"privacy": {"delta": 1e-5}}, "without epsilon or noise_multiplier"),
    ):
        with pytest.raises(ValueError, match=said):
            private(sft_options, **changes)
    with pytest.raises(ConfigError, match="allows to publish one of"):
        tune(tmp_path / "one", private(sft_options, privacy={"noise_multiplier": 1, "delta": 0.5}))
