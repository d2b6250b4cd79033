"""PPO in two processes: the same completions and weights as in one, one writer, and one end for all.

The processes are real ones that talk over gloo; they are started with the environment that `torchrun` and
`accelerate launch` set.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf.ppo.train as ppo_train
from rlhf.cli import main
from rlhf.core.backbone import Backbone
from rlhf.core.checkpoint import checkpoints, load_state
from rlhf.core.decoder import decoder_layers
from rlhf.core.metrics import read_metrics
from rlhf.core.processes import start_processes
from rlhf.core.run import Launch, is_finished
from rlhf.core.settings import ModelSettings
from rlhf.core.sharding import device_mesh
from rlhf.ppo.config import PPOConfig

MakeConfig = Callable[..., PPOConfig]
TIMES = {"seconds_rollout", "seconds_update", "episodes_per_s"}
TIMEOUT_S = 120


# One server imports everything once and forks each process from there, which a fresh interpreter would take
# several seconds for.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["rlhf.cli", "rlhf.ppo.train"])


def rank_process(arguments: list[str], env: dict[str, str], errors: Path) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    with errors.open("w", encoding="utf-8") as sys.stderr:
        code = main(arguments)
    sys.exit(code)


def world() -> list[dict[str, str]]:
    """The environment of each of two processes on this host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


@dataclass
class Started:
    process: Any
    errors: Path

    @property
    def lines(self) -> list[str]:
        return [line for line in self.errors.read_text().splitlines() if line.startswith("rlhf:")]


def start(launch: Launch, config: PPOConfig, out: Path, *options: str, **env: str) -> list[Started]:
    """Two processes of `rlhf ppo`, by rank."""
    file = launch.workspace / "ppo.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    arguments = [
        "ppo",
        "--workspace",
        str(launch.workspace),
        "--config",
        str(file),
        "--out",
        str(out),
        *options,
    ]
    started = []
    for rank, own in enumerate(world()):
        errors = launch.workspace / f"errors-{rank}"
        process = SERVER.Process(target=rank_process, args=(arguments, own | env, errors))
        process.start()
        started.append(Started(process, errors))
    return started


def ended(started: Sequence[Started]) -> tuple[list[int], list[list[str]]]:
    """(exit codes, error lines of each); kills what has not ended in time."""
    for one in started:
        one.process.join(TIMEOUT_S)
        one.process.kill()
        one.process.join()
    return [one.process.exitcode for one in started], [one.lines for one in started]


def assert_close(one: Any, two: Any, where: str = "state") -> None:
    """Nested values equal within 1e-5."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_close(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_close(a, b, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, float):
        assert one == pytest.approx(two, abs=1e-5, rel=1e-4), where
    else:
        assert one == two, where


def completions(out: Path) -> dict[str, list[str]]:
    files = sorted((out / "samples").iterdir())
    return {
        file.name: [json.loads(line)["completion"] for line in file.read_text().splitlines()]
        for file in files
    }


def assert_like_one_process(one: Path, two: Path) -> None:
    assert completions(one) == completions(two)
    states = [load_state(checkpoints(out / "checkpoints")[-1]) for out in (one, two)]
    assert_close(states[0], states[1])
    rows = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(out / "metrics.jsonl")]
        for out in (one, two)
    ]
    assert_close(rows[0], rows[1], "metrics")


def one_process(launch: Launch, config: PPOConfig) -> Path:
    out = launch.workspace / "runs" / "one"
    ppo_train.run(config, replace(launch, out=out))
    return out


def two_config(ppo_config: MakeConfig, **changes: Any) -> PPOConfig:
    """Seven prompts, so that the shares differ; everything that is computed over all rows is on."""
    return ppo_config(
        **{
            "num_prompts": 7,
            "samples_per_prompt": 2,
            "num_iterations": 3,
            "num_minibatches": 3,
            "kl_target": 0.05,
            "kl_horizon": 20,
            "score_normalization": "running",
            "micro_batch_tokens": 64,
            "save_every": 1,
            "optim": {"lr": 1e-3},
        }
        | changes
    )


def test_two_processes_end_where_one_does(ppo_launch: Launch, ppo_config: MakeConfig) -> None:
    """Stopped by a signal to one of the two in the middle, resumed, finished; then a third launch does nothing."""
    config = two_config(ppo_config)
    one, out = one_process(ppo_launch, config), ppo_launch.workspace / "runs" / "two"
    running = start(ppo_launch, config, out, RLHF_TEST_SLEEP_S="0.15")
    deadline = time.monotonic() + TIMEOUT_S
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or len(read_metrics(metrics)) < 2:
        assert time.monotonic() < deadline
        assert all(one.process.is_alive() for one in running)
        time.sleep(0.05)
    os.kill(running[1].process.pid, signal.SIGTERM)
    codes, errors = ended(running)
    assert codes == [143, 143]
    assert errors == [["rlhf: error: stopped by SIGTERM; continue with --resume"], []]
    assert not is_finished(out)
    saved = load_state(checkpoints(out / "checkpoints")[-1])["iteration"]
    assert 1 <= saved < config.num_iterations
    assert ended(start(ppo_launch, config, out, "--resume")) == ([0, 0], [[], []])
    assert is_finished(out)
    assert_like_one_process(one, out)
    before = (out / "FINISHED").stat().st_mtime_ns
    assert ended(start(ppo_launch, config, out)) == ([0, 0], [[], []])
    assert (out / "FINISHED").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "changes",
    [
        {"value_adapter": True, "gradient_checkpointing": True},
        pytest.param({"trunk_cache": False, "num_iterations": 1}, marks=pytest.mark.long),
    ],
)
def test_a_sharded_base_gives_the_same_run(
    ppo_launch: Launch, ppo_config: MakeConfig, changes: dict[str, Any]
) -> None:
    """FSDP2 on the frozen base, sampling unmerged: the processes make different numbers of passes, seven prompts
    being split into three and four."""
    config = two_config(ppo_config, **{"num_iterations": 2} | changes)
    one, out = one_process(ppo_launch, config), ppo_launch.workspace / "runs" / "two"
    sharded = config.model_copy(update={"shard_base": True})
    assert ended(start(ppo_launch, sharded, out)) == ([0, 0], [[], []])
    assert_like_one_process(one, out)


@pytest.mark.parametrize("shard_base", [False, True])
def test_an_error_in_one_process_ends_both_with_its_line(
    ppo_launch: Launch, ppo_config: MakeConfig, shard_base: bool
) -> None:
    """The reward fails in process 1 alone, the one that scores the prompts from the fourth on."""
    (ppo_launch.workspace / "reward.py").write_text(
        "import os\n"
        "def letters(prompts, completions):\n"
        "    bad = float('nan') if os.environ['RANK'] == '1' else 0.0\n"
        "    return [bad] * len(completions)\n"
    )
    out = ppo_launch.workspace / "runs" / "two"
    codes, errors = ended(start(ppo_launch, two_config(ppo_config, shard_base=shard_base), out))
    assert codes == [2, 2]
    assert len(errors[0]) == 1
    assert "reward.py:letters returned nan for row 0" in errors[0][0]
    assert errors[1] == []
    assert not checkpoints(out / "checkpoints")


def test_a_signal_to_one_process_stops_a_sharded_run(ppo_launch: Launch, ppo_config: MakeConfig) -> None:
    """It comes in the second iteration's rollout; the other process waits for a pass of the update meanwhile."""
    (ppo_launch.workspace / "reward.py").write_text(
        "import os, signal\n"
        "calls = 0\n"
        "def letters(prompts, completions):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if os.environ['RANK'] == '1' and calls == 2:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return [0.0] * len(completions)\n"
    )
    out = ppo_launch.workspace / "runs" / "two"
    config = two_config(ppo_config, shard_base=True, eval_prompts=None)
    codes, errors = ended(start(ppo_launch, config, out))
    assert codes == [143, 143]
    assert errors == [["rlhf: error: stopped by SIGTERM; continue with --resume"], []]
    assert [folder.name for folder in checkpoints(out / "checkpoints")] == ["step-00000001"]


def shard_and_measure(model: Path, env: dict[str, str], file: Path) -> None:
    """Writes the share of the layers' linear weights that this process holds, before and after a pass."""
    os.environ.update(env)
    torch.set_num_threads(1)
    with start_processes("cpu") as processes:
        backbone = Backbone.load(model, ModelSettings(device="cpu"))
        linears = [m for m in decoder_layers(backbone.decoder).modules() if isinstance(m, torch.nn.Linear)]
        whole = sum(m.weight.numel() for m in linears)
        backbone.shard(processes, device_mesh(processes), ["policy"])

        def held() -> float:
            weights: list[Any] = [m.weight for m in linears]
            return sum(weight.to_local().numel() for weight in weights) / whole

        before = held()
        with torch.no_grad():
            backbone.hidden("reference", torch.zeros(1, 4, dtype=torch.int64))
        file.write_text(json.dumps([before, held()]))


def test_each_process_holds_its_part_of_the_base(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    files = [tmp_path / f"held-{rank}" for rank in range(2)]
    children = [
        SERVER.Process(target=shard_and_measure, args=(tiny_model(), env, file))
        for env, file in zip(world(), files, strict=True)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(TIMEOUT_S)
        child.kill()
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert [json.loads(file.read_text()) for file in files] == [[0.5, 0.5], [0.5, 0.5]]


def test_a_process_that_dies_does_not_leave_the_other_waiting(
    ppo_launch: Launch, ppo_config: MakeConfig
) -> None:
    (ppo_launch.workspace / "reward.py").write_text(
        "import os, signal\n"
        "def letters(prompts, completions):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return [0.0] * len(completions)\n"
    )
    out = ppo_launch.workspace / "runs" / "two"
    codes, errors = ended(start(ppo_launch, two_config(ppo_config), out))
    assert codes == [1, -signal.SIGKILL]
    assert errors[0] == ["rlhf: error: another process of this run has ended; its own message says why"]
