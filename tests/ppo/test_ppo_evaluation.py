"""Evaluations during training: a second reward, the best policy by a named metric, an early end, the alarm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rlhf.ppo.picture as ppo_picture
import rlhf.ppo.train as ppo_train
from rlhf.core.checkpoint import checkpoints, load_state
from rlhf.core.errors import DataError, Stopped
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, is_finished, read_manifest
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.evaluate import Evaluation
from rlhf.ppo.picture import RunPicture, run_picture
from rlhf.ppo.watch import Watch

MakeConfig = Callable[..., PPOConfig]
TIMES = {"seconds_rollout", "seconds_update", "episodes_per_s"}
# The n-th call of a function in a process answers with the n-th number (then with the last one).
SCRIPTED = """
import os, signal

calls = {}

def scripted(name, numbers):
    def answer(prompts, completions):
        calls[name] = calls.get(name, 0) + 1
        if os.environ.get("RLHF_TEST_STOP") == f"{name} {calls[name]}":
            os.kill(os.getpid(), signal.SIGTERM)
        return [numbers[min(calls[name], len(numbers)) - 1]] * len(completions)
    return answer

flat = scripted("flat", [0.25])
rising = scripted("rising", [float(i) for i in range(99)])
falling = scripted("falling", [-float(i) for i in range(99)])
peak = scripted("peak", [0.0, 5.0, 1.0])

def letters(prompts, completions):
    scripted("letters", [0.0])(prompts, completions)
    return [sum(c.isalpha() for c in text) / max(1, len(text)) for text in completions]

def vowels(prompts, completions):
    scripted("vowels", [0.0])(prompts, completions)
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]
"""


@pytest.fixture
def scripted(ppo_launch: Launch, ppo_config: MakeConfig) -> MakeConfig:
    """scripted(reward=name, eval_reward=name, ...) -> settings with functions of the file above."""
    path = ppo_launch.workspace / "scripted.py"
    path.write_text(SCRIPTED)

    def make(**changes: Any) -> PPOConfig:
        for name in ("reward", "eval_reward"):
            if changes.get(name):
                changes[name] = f"{path}:{changes[name]}"
        return ppo_config(**changes)

    return make


def out_of(launch: Launch) -> Path:
    assert launch.out is not None
    return launch.out


def column(out: Path, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in read_metrics(out / "metrics.jsonl") if name in row}


def result(value: float, scores: Any = 0.0, heldout: Any = None) -> Evaluation:
    """An evaluation of four prompts."""

    def column_of(numbers: Any) -> Tensor:
        return torch.as_tensor(numbers, dtype=torch.float32).expand(4)

    figures = {"eval_objective": value}
    return Evaluation(figures, [], column_of(scores), None if heldout is None else column_of(heldout))


# ---- the best policy and the early end -------------------------------------------------------------------


def test_the_best_policy_is_that_of_the_named_metric(ppo_launch: Launch, scripted: MakeConfig) -> None:
    """The held-out reward says 0, 5, 1 at iterations 0, 2, 4; the training reward only rises."""
    config = scripted(
        reward="rising", eval_reward="peak", best_metric="eval_heldout_score", save_every=2, patience=2
    )
    ppo_train.run(config, ppo_launch)
    out = out_of(ppo_launch)
    assert column(out, "eval_heldout_score") == {0: 0.0, 2: 5.0, 4: 1.0}
    scores = column(out, "eval_score")
    assert scores[0] < scores[2] < scores[4]
    assert read_manifest(out).metrics["best_iteration"] == 2
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    state = load_state(checkpoints(out / "checkpoints")[0])
    assert state["iteration"] == 2
    assert all(torch.equal(saved[key], state["roles"]["policy"][key]) for key in saved)
    sample = (out / "samples" / "iteration-000002.jsonl").read_text().splitlines()[0]
    assert '"heldout_score":5.0' in sample.replace(" ", "")


def test_patience_ends_a_run_which_is_then_finished(
    ppo_launch: Launch, scripted: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = scripted(reward="flat", best_metric="eval_score", patience=2, eval_every=1, num_iterations=9)
    ppo_train.run(config, ppo_launch)
    out = out_of(ppo_launch)
    assert is_finished(out)
    # the evaluation at 0 is the best, those at 1 and 2 are not better
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == [0, 1, 2]
    said = capsys.readouterr().out
    assert (
        "ppo: ended at iteration 2 of 9: eval_score has not risen for 2 evaluations (best 0.25 at iteration 0)"
        in said
    )
    assert read_manifest(out).metrics["best_iteration"] == 0
    ppo_train.run(config, ppo_launch)
    assert "is already finished" in capsys.readouterr().out


def test_a_run_that_ended_early_and_died_before_it_was_finished_does_not_train_on(
    ppo_launch: Launch, scripted: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = scripted(reward="flat", best_metric="eval_score", patience=1, eval_every=1, save_every=9)

    def dies(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ppo_train, "save_policy", dies)
        with pytest.raises(OSError, match="no space left"):
            ppo_train.run(config, ppo_launch)
    out = out_of(ppo_launch)
    assert [folder.name for folder in checkpoints(out / "checkpoints")] == ["step-00000001"]
    monkeypatch.setattr(ppo_train.PPOTrainer, "collect", dies)
    ppo_train.run(config, replace(ppo_launch, resume=True))
    assert is_finished(out)


def test_patience_counts_evaluations_in_a_row() -> None:
    watch = Watch(PPOConfig(patience=2, eval_prompts="x"))
    ended = []
    for iteration, value in enumerate([1.0, 0.5, 2.0, 2.0, 1.9]):
        watch.see(iteration, result(value))
        ended.append(bool(watch.ended))
    assert ended == [False, False, False, False, True]
    assert (watch.best_iteration, watch.best_value) == (2, 2.0)


# ---- the alarm -------------------------------------------------------------------------------------------


def alarms(watch: Watch, results: list[Evaluation], first: int = 0) -> list[float]:
    return [watch.see(first + i, r)[1]["eval_alarm"] for i, r in enumerate(results)]


def make_watch(**changes: Any) -> Watch:
    return Watch(
        PPOConfig.model_validate(
            {"eval_reward": "a.py:f", "eval_prompts": "x", "alarm_evaluations": 2} | changes
        )
    )


def test_the_alarm_needs_a_rise_and_a_fall_over_its_window() -> None:
    rising = [result(0, i, 5) for i in range(4)]
    falling = [result(0, 0, -i) for i in range(4)]
    both = [result(0, i, -i) for i in range(4)]
    assert alarms(make_watch(), rising) == alarms(make_watch(), falling) == [0, 0, 0, 0]
    assert alarms(make_watch(), both) == [0, 0, 1, 1]
    # up and down long ago, flat since: the window forgets
    flat = [result(0, 3, -3)] * 3
    assert alarms(make_watch(), [*both, *flat]) == [0, 0, 1, 1, 1, 0, 0]


def test_the_alarm_is_not_raised_by_noise() -> None:
    """Differences of +1 +1 +1 -1: mean 0.5, standard error 1 / 2 = 0.5; that is no rise at 1.645 of them.
    With +1 +1 +1 0 the mean is 0.75 and the error 0.25: three of them."""
    fall = torch.tensor([-1.0, -1.0, -1.0, 0.0])
    noisy, clear = torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    start = result(0, 0.0, 0.0)
    assert alarms(make_watch(alarm_evaluations=1), [start, result(0, noisy, fall)]) == [0, 0]
    assert alarms(make_watch(alarm_evaluations=1), [start, result(0, clear, -noisy)]) == [0, 0]
    assert alarms(make_watch(alarm_evaluations=1), [start, result(0, clear, fall)]) == [0, 1]


def test_the_alarm_prints_a_line_and_may_end_the_run(
    ppo_launch: Launch, scripted: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"reward": "rising", "eval_reward": "falling", "alarm_evaluations": 1}
    ppo_train.run(scripted(**changes), ppo_launch)
    out = out_of(ppo_launch)
    assert column(out, "eval_alarm") == {0: 0.0, 2: 1.0, 4: 1.0}
    lines = [line for line in capsys.readouterr().out.splitlines() if "alarm at" in line]
    assert len(lines) == 2
    assert lines[0].startswith("ppo: alarm at iteration 2: since iteration 0 the reward rose by 3 ")
    assert "and the held-out reward fell by 1 " in lines[0]
    stopped = replace(ppo_launch, out=ppo_launch.workspace / "runs" / "stopped")
    ppo_train.run(scripted(**changes, on_alarm="stop"), stopped)
    assert column(out_of(stopped), "eval_alarm") == {0: 0.0, 2: 1.0}
    assert "ppo: ended at iteration 2 of 4: the alarm was raised" in capsys.readouterr().out


def test_a_watch_goes_on_from_its_state() -> None:
    results = [result(v, i, -i) for i, v in enumerate([3.0, 1.0, 2.0, 0.0])]
    whole, first, second = make_watch(patience=3), make_watch(patience=3), make_watch(patience=3)
    expected = alarms(whole, results)
    found = alarms(first, results[:2])
    second.load_state(first.state())
    assert found + alarms(second, results[2:], first=2) == expected == [0, 0, 1, 1]
    assert second.ended == whole.ended != ""
    states = [watch.state() for watch in (whole, second)]
    assert str(states[0]) == str(states[1])


# ---- resume ----------------------------------------------------------------------------------------------


# vowels is asked in the evaluation at 0, in iterations 1 and 2, in the evaluation at 2, in iteration 3, ...
@pytest.mark.parametrize(
    ("stop", "saved"),
    [
        ("vowels 1", 0),  # in the evaluation before training, which is then done again
        pytest.param("vowels 2", 0, marks=pytest.mark.long),  # after it: it is done again too
        # in the evaluation at 2, before the held-out reward is asked
        pytest.param("vowels 4", 1, marks=pytest.mark.long),
        ("letters 2", 2),  # when the evaluation at 2 is complete
        pytest.param("vowels 5", 2, marks=pytest.mark.long),
    ],
)
def test_stopped_and_resumed_equals_never_stopped(
    ppo_launch: Launch, scripted: MakeConfig, monkeypatch: pytest.MonkeyPatch, stop: str, saved: int
) -> None:
    """Bit for bit with everything that evaluations and rewards keep: running scale, best policy, history."""
    vowels, flat = f"{ppo_launch.workspace}/scripted.py:vowels", f"{ppo_launch.workspace}/scripted.py:flat"
    config = scripted(
        reward=None,
        rewards=[{"source": vowels}, {"source": flat, "weight": 0.5}],
        eval_reward="letters",
        score_normalization="running",
        length_penalty=0.01,
        best_metric="eval_score/vowels",
        patience=9,
        alarm_evaluations=1,
        kl_target=0.05,
    )
    whole = replace(ppo_launch, out=ppo_launch.workspace / "runs" / "whole")
    ppo_train.run(config, whole)
    monkeypatch.setenv("RLHF_TEST_STOP", stop)
    with pytest.raises(Stopped):
        ppo_train.run(config, ppo_launch)
    out = out_of(ppo_launch)
    assert checkpoints(out / "checkpoints")[-1].name == f"step-{saved:08d}"
    monkeypatch.delenv("RLHF_TEST_STOP")
    ppo_train.run(config, replace(ppo_launch, resume=True))
    rows = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run / "metrics.jsonl")]
        for run in (out, out_of(whole))
    ]
    assert rows[0] == rows[1]
    assert all(abs(row["score_mean"]) > 0.01 for row in rows[0][1:])
    for name in ("adapter/adapter_model.safetensors", "samples/iteration-000004.jsonl"):
        assert (out / name).read_bytes() == (out_of(whole) / name).read_bytes()
    states = [load_state(checkpoints(run / "checkpoints")[-1]) for run in (out, out_of(whole))]
    for part in ("scores", "watch", "best", "kl"):
        assert same(states[0][part], states[1][part]), part


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, Tensor) else one == two


def test_a_held_out_reward_that_fails_is_named(ppo_launch: Launch, scripted: MakeConfig) -> None:
    path = ppo_launch.workspace / "scripted.py"
    config = scripted(reward="flat", eval_reward="broken")
    path.write_text(path.read_text() + "\ndef broken(prompts, completions):\n    return [1.0, 2.0]\n")
    with pytest.raises(DataError, match=r"scripted\.py:broken returned 2 numbers; expected 4, one per row"):
        ppo_train.run(config, ppo_launch)


# ---- the picture -----------------------------------------------------------------------------------------


def test_every_finished_run_has_a_picture(ppo_launch: Launch, scripted: MakeConfig) -> None:
    ppo_train.run(scripted(reward="flat", eval_reward="vowels", num_iterations=2), ppo_launch)
    assert (out_of(ppo_launch) / "ppo.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_nothing_yet_and_of_a_run_with_terms() -> None:
    rewards = [{"source": "a.py:f"}, {"source": "b.py:g", "weight": 0.5}]
    config = PPOConfig.model_validate({"rewards": rewards, "kl_target": 3.0})
    rows = [
        {
            "step": i,
            "score": 0.1 * i,
            "score/f": 0.2,
            "score/g": 0.1,
            "kl": 0.5,
            "kl_coef": 0.1,
            "length": 9.0,
        }
        for i in range(1, 60)
    ]
    assert run_picture([], config, "run", 0).startswith(b"\x89PNG")
    assert run_picture(rows, config, "run", 0).startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = RunPicture(tmp_path, PPOConfig())
    picture.draw(0)  # too soon after the start
    assert capsys.readouterr().out == ""
    picture.draw(0, final=True)
    assert "ppo: ppo.png could not be drawn (DataError" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "score": 1.0}\n')
    monkeypatch.setattr(ppo_picture, "EVERY_S", 0.0)
    picture.draw(0)
    assert (tmp_path / "ppo.png").exists()
    assert capsys.readouterr().out == ""
