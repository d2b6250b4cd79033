"""`rlhf ppo` as a run: it learns, it stops and goes on to the same bits, and it refuses what would spoil it."""

from __future__ import annotations

import json
import os
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
from filelock import FileLock
from safetensors.torch import load_file

import rlhf.ppo.train as ppo_train
import rlhf.ppo.update as ppo_update
from rlhf.core.adapters import load_adapter, role_tensors
from rlhf.core.backbone import Backbone
from rlhf.core.checkpoint import checkpoints, load_state
from rlhf.core.errors import BusyError, ConfigError, DataError, GuardStop, Stopped
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, is_finished, read_manifest
from rlhf.core.settings import ModelSettings
from rlhf.ppo.config import PPOConfig

MakeConfig = Callable[..., PPOConfig]
TIMES = {"seconds_rollout", "seconds_update", "episodes_per_s"}
# Everything that has a state: a schedule, an adaptive KL weight, a value adapter, several samples.
STATEFUL: dict[str, Any] = {
    "optim": {"lr": 5e-3, "schedule": "cosine", "warmup_steps": 2},
    "kl_target": 0.05,
    "kl_horizon": 20,
    "value_adapter": True,
    "samples_per_prompt": 2,
}


def metrics_of(out: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without wall-clock times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(out / "metrics.jsonl")]


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def assert_same_run(one: Path, two: Path) -> None:
    """Bit for bit: adapter, value head, samples, metrics, and the whole training state at the end."""
    assert metrics_of(one) == metrics_of(two)
    for folder in ("adapter", "samples"):
        files = sorted(p.name for p in (one / folder).iterdir())
        assert files == sorted(p.name for p in (two / folder).iterdir())
        for name in files:
            assert (one / folder / name).read_bytes() == (two / folder / name).read_bytes(), name
    states = [load_state(checkpoints(out / "checkpoints")[-1]) for out in (one, two)]
    assert states[0]["iteration"] == 4
    assert equal(*states)


def saved_weights(out: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors and the value head that belongs to them."""
    head = load_file(out / "adapter" / "value_head.safetensors")["weight"]
    return load_file(out / "adapter" / "adapter_model.safetensors") | {"head": head}


def at(monkeypatch: pytest.MonkeyPatch, call: int | None, action: str = "terminate") -> None:
    """What the reward function does at its n-th call; None: nothing."""
    monkeypatch.setenv("RLHF_TEST_AT", str(call))
    monkeypatch.setenv("RLHF_TEST_DO", action)


def reference_run(launch: Launch, config: PPOConfig) -> Path:
    out = launch.workspace / "runs" / "whole"
    ppo_train.run(config, replace(launch, out=out))
    return out


# Calls of the reward: 1 evaluation 0, 2 iteration 1, 3 iteration 2, 4 evaluation 2, 5, 6, 7 evaluation 4.
@pytest.mark.parametrize(
    ("call", "saved", "changes"),
    [
        pytest.param(1, 0, {}, marks=pytest.mark.long),
        (3, 1, {}),
        # the last call of an evaluation: it is complete, so its boundary is too
        pytest.param(4, 2, STATEFUL, marks=pytest.mark.long),
        (6, 3, STATEFUL | {"trunk_cache": False}),
        pytest.param(
            3, 1, {"micro_batch_tokens": 32, "score_normalization": "running"}, marks=pytest.mark.long
        ),
    ],
)
def test_stopped_in_a_rollout_and_resumed_equals_never_stopped(
    ppo_launch: Launch,
    ppo_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    saved: int,
    changes: dict[str, Any],
) -> None:
    config = ppo_config(**changes)
    whole = reference_run(ppo_launch, config)
    at(monkeypatch, call)
    with pytest.raises(Stopped, match="stopped by SIGTERM; continue with --resume") as caught:
        ppo_train.run(config, ppo_launch)
    assert caught.value.exit_code == 143
    out = ppo_launch.out
    assert out is not None
    assert not is_finished(out)
    # save_every is 3, so what was saved is the boundary held in memory
    assert checkpoints(out / "checkpoints")[-1].name == f"step-{saved:08d}"
    at(monkeypatch, None)
    ppo_train.run(config, replace(ppo_launch, resume=True))
    assert_same_run(whole, out)


def test_stopped_in_an_update_and_resumed_equals_never_stopped(
    ppo_launch: Launch, ppo_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the four optimizer steps of iteration 3 are done when the signal comes: they are thrown away."""
    config = ppo_config(**STATEFUL)
    whole = reference_run(ppo_launch, config)
    policy_loss, calls = ppo_update.policy_loss, []

    def stopping(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 * 4 + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return policy_loss(*args)

    with monkeypatch.context() as patch:
        patch.setattr(ppo_update, "policy_loss", stopping)
        with pytest.raises(Stopped):
            ppo_train.run(config, ppo_launch)
    ppo_train.run(config, replace(ppo_launch, resume=True))
    assert ppo_launch.out is not None
    assert_same_run(whole, ppo_launch.out)


def test_a_crash_loses_at_most_one_save_interval(
    ppo_launch: Launch, ppo_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a chance to save (as with SIGKILL) the run goes on from the last saved iteration, to the same bits;
    a newest checkpoint that is damaged is passed over."""
    config = ppo_config(save_every=1)
    whole = reference_run(ppo_launch, config)
    at(monkeypatch, 6, "crash")
    with pytest.raises(
        DataError, match=r"reward\.py:letters failed on rows 0-5 \(RuntimeError: the reward crashed"
    ):
        ppo_train.run(config, ppo_launch)
    out = ppo_launch.out
    assert out is not None
    newest = checkpoints(out / "checkpoints")[-1]
    assert newest.name == "step-00000003"
    (newest / "state.pt").write_bytes(b"torn")
    at(monkeypatch, None)
    ppo_train.run(config, replace(ppo_launch, resume=True))
    assert_same_run(whole, out)


def test_a_finished_run_relaunched_does_nothing(
    ppo_launch: Launch, ppo_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ppo_config(num_iterations=1)
    ppo_train.run(config, ppo_launch)
    out = ppo_launch.out
    assert out is not None
    before = {
        p: (p.stat().st_mtime_ns, p.read_bytes())
        for p in out.rglob("*")
        if p.is_file() and p.name != "run.lock"
    }
    capsys.readouterr()
    for launch in (ppo_launch, replace(ppo_launch, resume=True)):
        ppo_train.run(config, launch)
        assert "is already finished" in capsys.readouterr().out
    assert before == {
        p: (p.stat().st_mtime_ns, p.read_bytes())
        for p in out.rglob("*")
        if p.is_file() and p.name != "run.lock"
    }


def test_a_changed_config_or_input_is_refused_with_the_difference(
    ppo_launch: Launch, ppo_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 3)
    with pytest.raises(Stopped):
        ppo_train.run(ppo_config(), ppo_launch)
    at(monkeypatch, None)
    resume = replace(ppo_launch, resume=True)
    with pytest.raises(ConfigError, match=r"kl_coef: 0\.1 -> 0\.2"):
        ppo_train.run(ppo_config(kl_coef=0.2), resume)
    with pytest.raises(ConfigError, match="unfinished ppo run; continue it with --resume, or --force"):
        ppo_train.run(ppo_config(), ppo_launch)
    reward = ppo_launch.workspace / "reward.py"
    reward.write_text(reward.read_text() + "\n# another reward\n")
    with pytest.raises(ConfigError, match="content of reward: sha256"):
        ppo_train.run(ppo_config(), resume)
    out = ppo_launch.out
    assert out is not None
    assert checkpoints(out / "checkpoints")[-1].name == "step-00000001"  # nothing was lost


def test_a_second_launcher_is_refused(ppo_launch: Launch, ppo_config: MakeConfig) -> None:
    assert ppo_launch.out is not None
    ppo_launch.out.mkdir(parents=True)
    with (
        FileLock(ppo_launch.out / "run.lock"),
        pytest.raises(BusyError, match="another process is running here"),
    ):
        ppo_train.run(ppo_config(), ppo_launch)


def test_launchers_that_have_nothing_to_do_load_no_model(
    ppo_launch: Launch,
    ppo_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A finished run, an unfinished one without --resume and a second launcher are answered at once; a prompt
    that cannot be read leaves no run behind."""
    out = ppo_launch.out
    assert out is not None
    (ppo_launch.workspace / "bad.jsonl").write_text('{"prompt": "good"}\n{"prompt": 7}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        ppo_train.run(ppo_config(prompts="bad.jsonl"), ppo_launch)
    assert not out.exists()
    ppo_train.run(ppo_config(num_iterations=1), ppo_launch)

    def forbidden(*args: Any, **options: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Backbone, "load", forbidden)
    ppo_train.run(ppo_config(num_iterations=1), ppo_launch)
    assert "is already finished" in capsys.readouterr().out
    (out / "FINISHED").unlink()
    with pytest.raises(ConfigError, match="unfinished ppo run"):
        ppo_train.run(ppo_config(num_iterations=1), ppo_launch)
    with FileLock(out / "run.lock"), pytest.raises(BusyError):
        ppo_train.run(ppo_config(num_iterations=1), replace(ppo_launch, resume=True))


def test_a_nan_reward_stops_with_one_line(
    ppo_launch: Launch, ppo_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 3, "nan")
    with pytest.raises(DataError, match=r"reward\.py:letters returned nan for row 0 \(prompt p-") as caught:
        ppo_train.run(ppo_config(save_every=1), ppo_launch)
    assert "\n" not in str(caught.value)
    assert ppo_launch.out is not None
    assert checkpoints(ppo_launch.out / "checkpoints")[-1].name == "step-00000001"


def test_weights_that_turn_nan_stop_the_run_and_keep_the_last_good_checkpoint(
    ppo_launch: Launch, ppo_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = ppo_train.update, []

    def poisoned(backbone: Backbone, *args: Any, **options: Any) -> Any:
        stats = update(backbone, *args, **options)
        calls.append(1)
        if len(calls) == 2:
            with torch.no_grad():
                backbone.roles["policy"].parameters()[0].fill_(float("inf"))
        return stats

    monkeypatch.setattr(ppo_train, "update", poisoned)
    with pytest.raises(GuardStop, match="iteration 2: a weight is not finite") as caught:
        ppo_train.run(ppo_config(save_every=1), ppo_launch)
    assert caught.value.exit_code == 3
    assert ppo_launch.out is not None
    state = load_state(checkpoints(ppo_launch.out / "checkpoints")[-1])
    assert state["iteration"] == 1
    assert all(torch.isfinite(t).all() for t in state["roles"]["policy"].values())


def test_the_best_evaluated_policy_is_kept(ppo_launch: Launch, ppo_config: MakeConfig) -> None:
    """The reward turns bad after its fourth call, the evaluation at iteration 2: that policy is the result."""
    config = ppo_config("best_until_call_four", kl_coef=0.0, save_every=2)
    ppo_train.run(config, ppo_launch)
    out = ppo_launch.out
    assert out is not None
    rows = read_metrics(out / "metrics.jsonl")
    evaluated = {row["step"]: row["eval_score"] for row in rows if "eval_score" in row}
    assert evaluated == {0: 0.0, 2: 1.0, 4: -1.0}
    assert read_manifest(out).metrics["best_iteration"] == 2
    saved = saved_weights(out)
    states = [load_state(folder) for folder in checkpoints(out / "checkpoints")]
    assert [state["iteration"] for state in states] == [2, 4]
    assert equal(saved, states[0]["roles"]["policy"])
    assert not equal(saved, states[1]["roles"]["policy"])


def test_without_held_out_prompts_the_last_policy_is_the_result(
    ppo_launch: Launch, ppo_config: MakeConfig
) -> None:
    ppo_train.run(ppo_config(eval_prompts=None, num_iterations=2), ppo_launch)
    out = ppo_launch.out
    assert out is not None
    assert read_manifest(out).metrics["best_iteration"] == 2
    state = load_state(checkpoints(out / "checkpoints")[-1])
    assert equal(saved_weights(out), state["roles"]["policy"])
    assert not (out / "samples").exists()


def test_ppo_raises_a_simple_reward_and_the_saved_policy_shows_it(
    ppo_launch: Launch, ppo_config: MakeConfig
) -> None:
    """More of the characters become letters, on prompts that were never trained on."""
    held_out = "".join(json.dumps({"prompt": f"please order number {i}"}) + "\n" for i in range(32))
    (ppo_launch.workspace / "eval.jsonl").write_text(held_out)
    config = ppo_config(
        "plain",
        num_iterations=40,
        num_prompts=32,
        eval_every=40,
        kl_coef=0.01,
        lora={"r": 8, "alpha": 16},
        optim={"lr": 1e-2},
    )
    ppo_train.run(config, ppo_launch)
    out = ppo_launch.out
    assert out is not None
    rows = read_metrics(out / "metrics.jsonl")
    # 32 completions of 8 tokens: the standard error of each mean is about 0.03
    assert rows[-1]["eval_score"] > rows[0]["eval_score"] + 0.15
    assert rows[-1]["eval_kl"] > 0.5
    assert all(row["num_optimizer_steps"] == 4 for row in rows[1:])
    assert read_manifest(out).metrics["best_iteration"] == 40
    samples = [
        json.loads(line) for line in (out / "samples" / "iteration-000040.jsonl").read_text().splitlines()
    ]
    score = sum(row["score"] for row in samples) / len(samples)
    assert score == pytest.approx(rows[-1]["eval_score"], abs=1e-5)
    # What was saved, loaded into a fresh backbone, is the policy that was evaluated.
    backbone = Backbone.load(
        ppo_launch.workspace / "models" / "base", ModelSettings(device="cpu"), name="models/base"
    )
    role = load_adapter(backbone, "policy", out / "adapter", base_name="models/base", scalar_head=False)
    state = load_state(checkpoints(out / "checkpoints")[-1])
    assert equal(role_tensors(role), {k: v for k, v in state["roles"]["policy"].items() if k != "head"})


def test_dry_run_checks_and_writes_nothing(
    ppo_launch: Launch, ppo_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    ppo_train.run(ppo_config(), replace(ppo_launch, dry_run=True))
    assert "would sample 24 completions for 12 prompts from models/base" in capsys.readouterr().out
    assert ppo_launch.out is not None
    assert not ppo_launch.out.exists()


@pytest.mark.slow
def test_sigterm_to_the_command_ends_with_143_and_a_resumable_checkpoint(
    ppo_launch: Launch, ppo_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = ppo_launch.workspace, ppo_launch.out
    assert out is not None
    config = ppo_config()
    whole = reference_run(ppo_launch, config)
    (root / "ppo.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "rlhf.cli", "ppo", "--workspace", str(root)]
    command += ["--config", str(root / "ppo.yaml"), "--out", str(out)]
    # In the process every reward takes a second, so that the signal finds it in the middle.
    process = subprocess.Popen(
        command, env=os.environ | {"RLHF_TEST_SLEEP_S": "1"}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(read_metrics(out / "metrics.jsonl")) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 143
    errors = [line for line in stderr.splitlines() if line.startswith("rlhf: ")]
    assert errors == ["rlhf: error: stopped by SIGTERM; continue with --resume"]
    assert "Traceback" not in stderr
    ppo_train.run(config, replace(ppo_launch, resume=True))
    assert_same_run(whole, out)
