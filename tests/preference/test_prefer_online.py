"""`rlhf prefer` on scored samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, is_finished, read_manifest
from rlhf.preference.config import PreferConfig
from rlhf.preference.train import run

Make = Callable[..., PreferConfig]


@pytest.mark.parametrize("method", ["grpo", "rloo", "online-dpo", "raft"])
def test_every_online_method_runs_and_leaves_an_adapter(
    method: str, prefer_config: Make, prefer_launch: Launch
) -> None:
    run(prefer_config(method), prefer_launch)
    out = prefer_launch.out
    assert out is not None
    assert is_finished(out)
    assert read_manifest(out).stage == "prefer"
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert not (out / "adapter" / "value_head.safetensors").exists()
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["first_ratio_error"] < 1e-4
