"""`rlhf prefer` on ratings: what comes out, and that a stopped run goes on to the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from safetensors.torch import load_file

from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, is_finished, read_manifest
from rlhf.preference.config import PreferConfig
from rlhf.preference.train import run

Make = Callable[..., PreferConfig]


@pytest.mark.parametrize("method", ["dpo", "ipo", "robust", "kto", "orpo", "cpo", "simpo"])
def test_every_offline_method_learns_the_planted_rule(
    method: str, prefer_config: Make, prefer_launch: Launch
) -> None:
    run(prefer_config(method, num_epochs=4), prefer_launch)
    out = prefer_launch.out
    assert out is not None
    assert is_finished(out)
    metrics = read_manifest(out).metrics
    assert metrics["test_accuracy"] > 0.9, metrics
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[-1]["validation_loss"] < rows[0]["loss"]
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert not (out / "adapter" / "value_head.safetensors").exists()
    assert (out / "prefer.png").read_bytes().startswith(b"\x89PNG")
    assert load_file(out / "adapter" / "adapter_model.safetensors")
