"""`rlhf reward` and `rlhf score` as runs: a planted rule is learned, stopping costs nothing, bad data is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import reward.objective as objective_module
import reward.train as reward_train
from reward.config import RewardConfig, ScoreConfig
from reward.data import load_pairs
from reward.score import RewardScale, RewardScorer, text_row
from reward.score_file import run as score_run
from rlhf.core.adapters import SCORE_KEY
from rlhf.core.backbone import Backbone
from rlhf.core.checkpoint import checkpoints, load_state
from rlhf.core.errors import CheckpointError, ConfigError, DataError, Stopped
from rlhf.core.metrics import read_metrics
from rlhf.core.records import Prompt
from rlhf.core.run import Launch, is_finished, read_manifest
from rlhf.core.settings import ModelSettings

MakeConfig = Callable[..., RewardConfig]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"tell of {number}", "chosen": "thank you", "rejected": "sorry"} | changes


def out_of(launch: Launch) -> Path:
    assert launch.out is not None
    return launch.out


def test_a_planted_rule_is_learned_and_the_head_survives_reload(
    reward_launch: Launch, reward_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    reward_train.run(reward_config(), reward_launch)
    out = out_of(reward_launch)
    manifest = read_manifest(out)
    assert manifest.metrics["heldout_accuracy"] > 0.8
    assert manifest.metrics["heldout_accuracy_low"] <= manifest.metrics["heldout_accuracy"]
    assert manifest.metrics["agreement"] is None  # one rater only
    assert set(manifest.extra["splits"]) == {"train", "validation", "test"}
    printed = capsys.readouterr().out
    assert "reward: trunk cache on" in printed
    assert f"held-out accuracy {manifest.metrics['heldout_accuracy']:.3f} [" in printed
    # A fresh process's view: the saved directory scores the rule on words that no comparison had.
    base = reward_launch.workspace / "models/base"
    backbone = Backbone.load(base, ModelSettings(device="cpu"), name="models/base")
    scorer = RewardScorer.attach(backbone, out / "adapter", base_name="models/base")
    prompts = [Prompt.model_validate({"prompt": f"hello {i}"}) for i in range(8)]
    good = scorer.score_texts(prompts, [f"the old {i} thank you man" for i in range(8)], max_tokens=64)
    bad = scorer.score_texts(prompts, [f"the old {i} sorry man" for i in range(8)], max_tokens=10_000)
    assert sum(a > b for a, b in zip(good, bad, strict=True)) >= 7
    saved = load_file(out / "adapter" / "adapter_model.safetensors")[SCORE_KEY]
    best = load_state(checkpoints(out / "checkpoints")[-1])["best"]["reward"]["head"]
    assert torch.equal(saved, best)
    assert saved.abs().max() > 0
    # The scale in reward.json is that of the training completions under the saved weights.
    data = load_pairs(
        reward_launch.workspace / "preferences.jsonl",
        backbone.codec,
        max_tokens=128,
        drop_too_long=False,
        seed=0,
        near_duplicates=0.8,
    )
    rows = sorted({i for p in data.pairs["train"] for i in (p.chosen, p.rejected)})
    with torch.no_grad():
        assert scorer.role.head is not None
        hidden = [backbone.hidden("reward", torch.tensor([data.rows[i]]))[0, -1] for i in rows]
        scores = scorer.role.head(torch.stack(hidden)).squeeze(1)
    assert scorer.scale.mean == pytest.approx(scores.mean().item(), abs=1e-4)
    assert scorer.scale.std == pytest.approx(scores.std(correction=0).item(), abs=1e-4)


def test_micro_batches_and_trunk_cache_change_no_figure(
    reward_launch: Launch, reward_config: MakeConfig
) -> None:
    found = []
    for name, changes in (
        ("whole", {}),
        ("small", {"micro_batch_tokens": 50}),
        ("uncached", {"trunk_cache": False}),
        ("over budget", {"trunk_cache_gib": 1e-9}),
    ):
        config = reward_config(num_epochs=1, lora={"r": 4, "alpha": 8}, **changes)
        launch = replace(reward_launch, out=reward_launch.workspace / "runs" / name)
        reward_train.run(config, launch)
        found.append(read_metrics(out_of(launch) / "metrics.jsonl"))
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], abs=1e-3)


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """SIGTERM to this process while the n-th loss is computed."""
    loss, calls = objective_module.comparison_loss, []

    def stopping(*args: Any) -> Any:
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
        return loss(*args)

    monkeypatch.setattr(objective_module, "comparison_loss", stopping)


def steps_per_epoch(launch: Launch, config: RewardConfig) -> int:
    base = launch.workspace / "models/base"
    codec = Backbone.load(base, ModelSettings(device="cpu")).codec
    source = launch.workspace / "preferences.jsonl"
    data = load_pairs(source, codec, max_tokens=128, drop_too_long=False, seed=0)
    return -(-len(data.pairs["train"]) // config.batch_pairs)


@pytest.mark.parametrize("epoch", [0, 2])
def test_stopped_and_resumed_equals_never_stopped(
    reward_launch: Launch, reward_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """With dropout on: the adapter, the scale, every metric and the final state are the same to the bit."""
    config = reward_config(batch_pairs=48, patience=3)
    whole = replace(reward_launch, out=reward_launch.workspace / "runs" / "whole")
    reward_train.run(config, whole)
    with monkeypatch.context() as patch:
        stop_in_step(patch, epoch * steps_per_epoch(reward_launch, config) + 2)
        with pytest.raises(Stopped) as caught:
            reward_train.run(config, reward_launch)
    assert caught.value.exit_code == 143
    out = out_of(reward_launch)
    assert not is_finished(out)
    assert load_state(checkpoints(out / "checkpoints")[-1])["epoch"] == epoch
    with pytest.raises(ConfigError, match=r"patience: 3 -> 1"):
        reward_train.run(reward_config(batch_pairs=48, patience=1), replace(reward_launch, resume=True))
    reward_train.run(config, replace(reward_launch, resume=True))
    assert read_metrics(out / "metrics.jsonl") == read_metrics(out_of(whole) / "metrics.jsonl")
    assert read_manifest(out).metrics == read_manifest(out_of(whole)).metrics
    for name in ("adapter_model.safetensors", "reward.json", "adapter_config.json"):
        assert (out / "adapter" / name).read_bytes() == (out_of(whole) / "adapter" / name).read_bytes()
    reward_train.run(config, reward_launch)  # finished: does nothing


@pytest.mark.slow
def test_sigterm_to_the_command_ends_with_143(reward_launch: Launch, reward_config: MakeConfig) -> None:
    out, root = out_of(reward_launch), reward_launch.workspace
    config = reward_config(num_epochs=10_000, patience=10_000)
    (root / "reward.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "rlhf.cli", "reward", "--workspace", str(root)]
    command += ["--config", str(root / "reward.yaml"), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not read_metrics(out / "metrics.jsonl"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 143
    assert [line for line in stderr.splitlines() if line.startswith("rlhf: ")] == [
        "rlhf: error: stopped by SIGTERM; continue with --resume"
    ]
    assert load_state(checkpoints(out / "checkpoints")[-1])["epoch"] >= 1


def test_all_ties_train_to_equal_scores_and_report_no_accuracy(
    reward_launch: Launch, reward_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reward_launch.workspace / "preferences.jsonl"
    write_rows(path, [row(i, tie=True, margin=0) for i in range(60)])
    reward_train.run(reward_config(num_epochs=1), reward_launch)
    metrics = read_manifest(out_of(reward_launch)).metrics
    assert metrics["heldout_accuracy"] is None
    assert metrics["calibration_error"] is None
    assert "no decided comparison among" in capsys.readouterr().out


def test_all_ties_ignored_leave_nothing_to_train_on(reward_launch: Launch, reward_config: MakeConfig) -> None:
    path = reward_launch.workspace / "preferences.jsonl"
    write_rows(path, [row(i, tie=True, margin=0) for i in range(60)])
    with pytest.raises(DataError, match=r"all .* training comparisons are ties"):
        reward_train.run(reward_config(ties="ignore"), reward_launch)
    assert not out_of(reward_launch).exists()


def test_a_snapshot_must_have_all_three_splits(reward_launch: Launch, reward_config: MakeConfig) -> None:
    snapshot = reward_launch.workspace / "snapshot"
    config = reward_config(snapshot="snapshot")
    for start, split in ((0, "train"), (4, "validation")):
        write_rows(snapshot / f"{split}.jsonl", [row(i) for i in range(start, start + 4)])
    with pytest.raises(DataError, match=r"no test\.jsonl; expected a snapshot"):
        reward_train.run(config, reward_launch)
    (snapshot / "test.jsonl").write_text("")
    with pytest.raises(DataError, match=r"no rating in the test split .0 were too long."):
        reward_train.run(config, reward_launch)
    write_rows(snapshot / "test.jsonl", [row(9)])
    reward_train.run(replace_epochs(config), reward_launch)
    counts = {
        name: split["num_pairs"]
        for name, split in read_manifest(out_of(reward_launch)).extra["splits"].items()
    }
    assert counts == {"train": 4, "validation": 4, "test": 1}


def replace_epochs(config: RewardConfig) -> RewardConfig:
    return config.model_copy(update={"num_epochs": 1})


def test_too_long_comparisons_are_named_or_dropped_and_counted(
    reward_launch: Launch, reward_config: MakeConfig
) -> None:
    path = reward_launch.workspace / "preferences.jsonl"
    lines = path.read_text()
    path.write_text(lines + json.dumps(row(500, chosen="x" * 300)) + "\n")
    with pytest.raises(DataError, match=r"preferences\.jsonl:161: .* at most 128 \(--on-too-long drop"):
        reward_train.run(reward_config(), reward_launch)
    reward_train.run(reward_config(num_epochs=1, on_too_long="drop"), reward_launch)
    assert read_manifest(out_of(reward_launch)).metrics["num_too_long"] == 1
    with pytest.raises(DataError, match=r"preferences\.jsonl:1: .* expected at most 8"):
        reward_train.run(
            reward_config(max_tokens=8),
            replace(reward_launch, out=reward_launch.workspace / "runs" / "other"),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": [{"role": "user", "content": "x"}]}, "one assistant message each"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "no chat template.*found system"),
        ({"tie": True, "margin": 2}, "a tie has margin 0; found 2"),
        ({"chosen": []}, "'chosen' is empty"),
        ({"choosen": "x"}, "choosen"),
        ({"weight": 0}, "weight"),
    ],
)
def test_a_bad_row_is_named_with_its_line(
    reward_launch: Launch, reward_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    write_rows(reward_launch.workspace / "preferences.jsonl", [row(0), row(1, **changes)])
    with pytest.raises(DataError, match=rf"preferences\.jsonl:2: .*{message}"):
        reward_train.run(reward_config(), reward_launch)


def test_equal_completions_share_a_row_and_groups_share_a_split(
    reward_launch: Launch, load_tiny: Callable[..., Backbone]
) -> None:
    path = reward_launch.workspace / "preferences.jsonl"
    rows = [
        row(i, chosen=a, rejected=b, group_id=f"g{i % 60}")
        for i in range(120)
        for a, b in (("red", "blue"), ("blue", "green"))
    ]
    write_rows(path, rows)
    data = load_pairs(path, load_tiny().codec, max_tokens=128, drop_too_long=False, seed=0)
    assert len(data.rows) == 120 * 3
    groups = {split: {p.group_id for p in pairs} for split, pairs in data.pairs.items()}
    assert sum(map(len, groups.values())) == 60
    assert sum(map(len, data.pairs.values())) == 240


def test_dry_run_writes_nothing(
    reward_launch: Launch, reward_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    reward_train.run(reward_config(), replace(reward_launch, dry_run=True))
    assert "would train on models/base with" in capsys.readouterr().out
    assert not out_of(reward_launch).exists()


# ---- rlhf score ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    """A workspace with a finished reward run."""
    root = tmp_path_factory.mktemp("scored") / "workspace"
    shutil.copytree(tiny_model(), root / "models" / "base")
    write_rows(root / "preferences.jsonl", [row(i) for i in range(40)])
    config = RewardConfig(
        backbone="models/base",
        snapshot="preferences.jsonl",
        num_epochs=1,
        lora={"r": 2},
        model={"device": "cpu"},
    )
    reward_train.run(config, Launch(workspace=root, db="", out=root / "runs" / "reward"))
    write_rows(
        root / "rows.jsonl",
        [
            {"prompt": "hello", "completion": "thank you"},
            {"prompt": [{"role": "user", "content": "hello"}], "completion": "thank you"},
            {"prompt": "hello", "completion": "sorry about the late order"},
        ],
    )
    return root


def score(
    root: Path, out: Path | None = None, *, force: bool = False, **changes: Any
) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"file": "rows.jsonl", "reward": "runs/reward", "model": {"device": "cpu"}}
    score_run(ScoreConfig(**settings | changes), Launch(workspace=root, db="", out=out, force=force))
    return [json.loads(line) for line in (out or root / "rows.scored.jsonl").read_text().splitlines()]


def test_scores_of_a_file(trained: Path) -> None:
    rows = score(trained)
    assert rows[0]["score"] == pytest.approx(rows[1]["score"], abs=1e-6)
    assert rows[0]["score"] != pytest.approx(rows[2]["score"], abs=1e-4)
    assert rows[2]["completion"] == "sorry about the late order"
    scale = RewardScale.load(trained / "runs/reward/adapter")
    backbone = Backbone.load(trained / "models/base", ModelSettings(device="cpu"), name="models/base")
    scorer = RewardScorer.attach(backbone, trained / "runs/reward/adapter")
    for found in rows:
        prompt = Prompt.model_validate({"prompt": found["prompt"]})
        tokens = torch.tensor([text_row(backbone.codec, prompt, found["completion"])])
        with torch.no_grad():
            assert scorer.role.head is not None
            expected = scorer.role.head(backbone.hidden("reward", tokens)[0, -1]).item()
        assert found["score"] == pytest.approx(expected, abs=1e-5)
        assert found["score_normalized"] == pytest.approx((found["score"] - scale.mean) / scale.std)
    with pytest.raises(ConfigError, match=r"rows\.scored\.jsonl: exists already"):
        score(trained)
    assert len(score(trained, force=True)) == 3
    assert score(trained, trained / "elsewhere.jsonl") == rows


def test_score_names_what_is_wrong(trained: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    write_rows(bad, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "x" * 400}])
    with pytest.raises(
        DataError, match=r"bad\.jsonl:2: prompt and completion have 403 tokens; .* context is 128"
    ):
        score(trained, tmp_path / "out.jsonl", file=str(bad))
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(DataError, match="nothing: no such file"):
        score(trained, tmp_path / "out.jsonl", reward="nothing")
    scale = trained / "runs/reward/adapter/reward.json"
    good = scale.read_text()
    try:
        for text in ("{", "[]", '{"mean": 0, "std": 0, "temperature": 1}', '{"mean": 0}'):
            scale.write_text(text)
            with pytest.raises(CheckpointError, match=r"reward\.json: cannot be used"):
                score(trained, tmp_path / "out.jsonl")
    finally:
        scale.write_text(good)
