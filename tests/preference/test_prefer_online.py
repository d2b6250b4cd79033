"""`rlhf prefer` on scored samples, and `rlhf best-of-n`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlhf.core.config import load_settings
from rlhf.core.errors import ConfigError, DataError, Stopped
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, is_finished, read_manifest
from rlhf.ppo import picture
from rlhf.preference import best_of_n
from rlhf.preference.config import BestOfNConfig, PreferConfig
from rlhf.preference.online import GroupTrainer
from rlhf.preference.train import run

Make = Callable[..., PreferConfig]


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture.RunPicture, "draw", lambda *_, **__: None)


@pytest.mark.parametrize("method", ["grpo", "rloo", "online-dpo", "raft"])
def test_every_online_method_leaves_an_adapter(
    method: str, prefer_config: Make, prefer_launch: Launch, request: pytest.FixtureRequest
) -> None:
    if method != "grpo":
        request.getfixturevalue("no_picture")
    run(prefer_config(method), prefer_launch)
    out = prefer_launch.out
    assert out is not None
    assert is_finished(out)
    assert read_manifest(out).stage == "prefer"
    assert (out / "adapter" / "adapter_config.json").is_file()
    # the critic that PPO has was never trained
    assert not (out / "adapter" / "value_head.safetensors").exists()
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["first_ratio_error"] < 1e-4
    # 3 prompts of 3 completions: raft imitates one of each three
    if method == "raft":
        assert rows[1]["used"] == pytest.approx(1 / 3)
    if method == "grpo":
        assert (out / "prefer.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_picture")
def test_a_stopped_run_goes_on_to_the_same_bits(
    prefer_config: Make, prefer_launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the iteration that spends its budget, before and after the interruption."""
    config = prefer_config("rloo", budget_tokens=2000, online={"eval_every": 1000})
    whole = replace(prefer_launch, out=prefer_launch.workspace / "runs" / "whole")
    run(config, whole)
    update = GroupTrainer.update

    def stopped(self: GroupTrainer, *args: Any) -> Any:
        if self.iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, *args)

    monkeypatch.setattr(GroupTrainer, "update", stopped)
    with pytest.raises(Stopped):
        run(config, prefer_launch)
    monkeypatch.setattr(GroupTrainer, "update", update)
    run(config, replace(prefer_launch, resume=True))
    assert whole.out is not None
    assert prefer_launch.out is not None
    name = "adapter/adapter_model.safetensors"
    assert (prefer_launch.out / name).read_bytes() == (whole.out / name).read_bytes()
    clocks = {"seconds_rollout", "seconds_update", "episodes_per_s", "seconds_spent"}
    rows = [
        [
            {k: v for k, v in row.items() if k not in clocks}
            for row in read_metrics(launch.out / "metrics.jsonl")
        ]
        for launch in (prefer_launch, whole)
        if launch.out is not None
    ]
    assert rows[0] == rows[1]
    assert read_manifest(whole.out).metrics["tokens_spent"] >= 2000
    assert rows[0][-1]["step"] < 3
    # Whatever eval_every is, the last policy is looked at before the best is chosen.
    assert "eval_objective" in rows[0][-1]


def test_the_best_of_n_are_kept_as_demonstrations(prefer_launch: Launch) -> None:
    root = prefer_launch.workspace
    config = BestOfNConfig(
        model_path="models/base",
        reward=f"{root}/reward.py:letters",
        prompts="prompts.jsonl",
        n=3,
        sampling={"max_completion_tokens": 8},
        finished_only=False,
        model={"device": "cpu"},
    )
    best_of_n.run(config, prefer_launch)
    out = prefer_launch.out
    assert out is not None
    drawn = [json.loads(line) for line in (out / "completions.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (out / "demonstrations.jsonl").read_text().splitlines()]
    assert len(drawn) == 36
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in drawn:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    for row in kept:
        group = by_prompt[row["prompt_id"]]
        best = max(group, key=lambda one: one["score"])
        assert row["completion"] == best["completion"]
    metrics = read_manifest(out).metrics
    assert metrics["score_best"] == pytest.approx(
        sum(max(one["score"] for one in group) for group in by_prompt.values()) / 12
    )
    # log 3 - 2/3
    assert metrics["kl_bound"] == pytest.approx(0.431946, abs=1e-5)

    nothing = replace(prefer_launch, out=root / "runs" / "nothing")
    with pytest.raises(DataError, match="none of the best completions of 12 prompts was kept"):
        best_of_n.run(config.model_copy(update={"min_score": 2.0}), nothing)
    with pytest.raises(ConfigError, match="--model-path is required"):
        best_of_n.run(config.model_copy(update={"model_path": None}), nothing)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            ["--method", "grpo", "--simpo-margin", "5"],
            "simpo_margin was given, but grpo learns from a reward",
        ),
        (["--method", "rloo", "--ties", "ignore"], "ties was given, but rloo learns from a reward"),
        (
            ["--method", "dpo", "--online.num-prompts", "7"],
            "online was given, but dpo learns from a snapshot",
        ),
    ],
)
def test_settings_of_the_other_family_are_refused(options: list[str], named: str) -> None:
    """They would be left aside without a word."""
    with pytest.raises(ConfigError, match=named):
        load_settings(PreferConfig, None, options, "rlhf prefer")
