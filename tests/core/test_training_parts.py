"""The small parts of every training loop: learning rates, clipping, guards, splits, and finding what was named."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from rlhf.core.errors import ConfigError, DataError, GuardStop, Stopped
from rlhf.core.guards import SignalGuard, require_finite, require_finite_parameters
from rlhf.core.inputs import find_adapter, find_model, find_path, model_name, require_one_process, required
from rlhf.core.optim import clip_gradients, make_optimizer, make_schedule
from rlhf.core.run import Launch
from rlhf.core.settings import OptimSettings
from rlhf.core.splits import split_of


def rates(settings: OptimSettings, num_steps: int) -> list[float]:
    """The learning rate of each step of a run."""
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], [], settings, None)
    schedule = make_schedule(optimizer, settings, num_steps)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_by_hand() -> None:
    # two steps of warm-up (1/2, 2/2), then eight steps of decay from 1: 1 - k/8, or (1 + cos(pi k / 8)) / 2
    linear = rates(OptimSettings(lr=1.0, warmup_steps=2, schedule="linear"), 10)
    assert linear == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    cosine = rates(OptimSettings(lr=1.0, schedule="cosine"), 4)
    assert cosine == pytest.approx([1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2])
    assert rates(OptimSettings(lr=0.1, warmup_steps=2), 4) == pytest.approx([0.05, 0.1, 0.1, 0.1])


def test_the_head_has_its_own_rate_and_no_decay() -> None:
    adapter, head = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    settings = OptimSettings(lr=0.1, weight_decay=0.2, beta1=0.8, beta2=0.9)
    groups = make_optimizer([adapter], [head], settings, 0.5).param_groups
    assert [(g["lr"], g["weight_decay"], g["betas"]) for g in groups] == [
        (0.1, 0.2, (0.8, 0.9)),
        (0.5, 0.0, (0.8, 0.9)),
    ]
    assert groups[0]["params"] == [adapter]
    assert make_optimizer([adapter], [head], settings, None).param_groups[1]["lr"] == 0.1


def test_clipping_returns_the_norm_before() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([2.0, 4.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 3.0) == pytest.approx(6.0)  # sqrt(4 + 16 + 16)
    assert parameters[0].grad.tolist() == pytest.approx([1, 2], abs=1e-5)
    assert clip_gradients(parameters, 30.0) == pytest.approx(3.0, abs=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([2], abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_stop_a_run(value: float) -> None:
    require_finite("step 1", loss=1.0)
    with pytest.raises(GuardStop, match="step 1: loss is") as caught:
        require_finite("step 1", fine=0.0, loss=value)
    assert caught.value.exit_code == 3
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor([1.0, value]))]
    require_finite_parameters("step 1", parameters[:1])
    with pytest.raises(GuardStop, match="step 1: a weight is not finite"):
        require_finite_parameters("step 1", parameters)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_noticed_at_the_next_check(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with SignalGuard() as guard:
        guard.check()
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) is before  # a second signal is not held back
        with pytest.raises(Stopped, match=f"stopped by {number.name}") as caught:
            guard.check()
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_the_guard_is_inert() -> None:
    failures: list[BaseException] = []

    def body() -> None:
        try:
            with SignalGuard() as guard:
                guard.check()
        except BaseException as error:  # reported below, in the thread that can fail the test
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert failures == []


def test_a_group_keeps_its_split_and_shares_are_as_asked() -> None:
    splits = [split_of(f"group {i}", seed=0) for i in range(10_000)]
    # standard deviations of 40, 30 and 30: four of them are allowed
    assert abs(splits.count("train") - 8000) < 160
    assert abs(splits.count("validation") - 1000) < 120
    assert [split_of(f"group {i}", seed=0) for i in range(100)] == splits[:100]
    assert [split_of(f"group {i}", seed=1) for i in range(100)] != splits[:100]
    assert {split_of(str(i), 0, (0.0, 1.0, 0.0)) for i in range(50)} == {"validation"}


def test_what_was_named_is_looked_for_here_and_in_the_workspace(
    workspace: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace.workspace
    here = root.parent / "here"
    (here / "only-here").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert find_path("only-here", workspace) == Path("only-here")
    assert find_path("models/base", workspace) == root / "models/base"
    with pytest.raises(DataError, match=r"nowhere: no such file or directory \(looked in \. and in "):
        find_path("nowhere", workspace)
    assert find_model("models/base", workspace) == str(root / "models/base")
    assert find_model("someone/some-model", workspace) == "someone/some-model"
    (root / "runs/sft").mkdir(parents=True)
    (root / "models/base").rename(root / "runs/sft/model")
    assert find_model("runs/sft", workspace) == str(root / "runs/sft/model")
    with pytest.raises(DataError, match=r"holds no adapter_config\.json"):
        find_adapter("runs/sft", workspace)
    (root / "runs/sft/adapter").mkdir()
    (root / "runs/sft/adapter/adapter_config.json").write_text("{}")
    assert find_adapter("runs/sft", workspace) == root / "runs/sft/adapter"
    with pytest.raises(ConfigError, match="--reward is required: a reward run"):
        required(None, "reward", "a reward run")


def test_the_name_of_a_base_moves_with_the_workspace(workspace: Launch) -> None:
    root = workspace.workspace
    assert model_name(str(root / "models/base"), workspace) == "models/base"
    assert model_name("someone/some-model", workspace) == "someone/some-model"
    beside = root.parent / "beside"
    beside.mkdir()
    assert model_name(str(beside), workspace) == "../beside"
    assert model_name(str(beside), replace(workspace, workspace=beside)) == "."


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    require_one_process("ppo")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="ppo runs in one process; found WORLD_SIZE=2"):
        require_one_process("ppo")
