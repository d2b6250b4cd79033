"""A further round: the policy begins as an earlier one, and KL is measured from where one says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rlhf.ppo.train as ppo_train
from rlhf.core.errors import CheckpointError
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, read_manifest
from rlhf.ppo.config import PPOConfig


def evaluations(launch: Launch, config: PPOConfig, name: str) -> tuple[Path, dict[int, dict[str, Any]]]:
    out = launch.workspace / "runs" / name
    ppo_train.run(config, replace(launch, out=out))
    return out, {row["step"]: row for row in read_metrics(out / "metrics.jsonl") if "eval_score" in row}


def test_a_round_goes_on_where_another_one_ended(
    ppo_launch: Launch, ppo_config: Callable[..., PPOConfig]
) -> None:
    # Without evaluations the last policy is the one that is kept.
    evaluations(ppo_launch, ppo_config(num_iterations=2, eval_prompts=None), "first")

    again = ppo_config(num_iterations=1, init_adapter="runs/first")
    _, warm = evaluations(ppo_launch, again, "second")
    assert warm[0]["eval_kl"] > 1e-3

    # From the first run's policy it has not moved yet: log p - log p is 0, and the updates then move it.
    moved = again.model_copy(update={"reference_adapter": "runs/first"})
    third, anchored = evaluations(ppo_launch, moved, "third")
    assert anchored[0]["eval_kl"] == pytest.approx(0.0, abs=1e-5)
    assert anchored[1]["eval_kl"] != pytest.approx(0.0, abs=1e-5)
    parents = read_manifest(third).parents
    assert parents["init_adapter"].path == parents["reference_adapter"].path == "runs/first/adapter"


def test_an_adapter_of_another_kind_is_refused(
    ppo_launch: Launch, ppo_config: Callable[..., PPOConfig]
) -> None:
    evaluations(ppo_launch, ppo_config(num_iterations=1), "first")
    other = ppo_config(num_iterations=1, init_adapter="runs/first", lora={"r": 8, "alpha": 8})
    with pytest.raises(CheckpointError, match="does not fit the backbone"):
        evaluations(ppo_launch, other, "second")
    # The tensors fit, but at twice the scale they would be a policy that nobody trained.
    scaled = ppo_config(num_iterations=1, init_adapter="runs/first", lora={"r": 4, "alpha": 16})
    with pytest.raises(CheckpointError, match=r"was trained with lora_alpha 8\.0; expected 16\.0"):
        evaluations(ppo_launch, scaled, "third")
