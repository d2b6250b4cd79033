"""PPO whose reward people renew: what is asked, what the new reward learned from, waiting, stopping, and going on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from feedback_app.accounts import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.tasks import lease_next
from rlhf.cli import main
from rlhf.core.metrics import read_metrics
from rlhf.core.run import FINISHED, Launch, read_manifest
from rlhf.loop.ppo_with_people import run as with_people
from tests.loop.sent_back import reward_run

MODEL = ("--model.device", "cpu")
SAMPLING = "--sampling.max-completion-tokens 6"


def rate(launch: Launch, name: str, at_most: int = 10_000) -> int:
    """Somebody prefers the longer text of every open pair. Returns the number of answers."""
    with Store.open(launch.db, create=False) as store:
        person = create_annotator(store, name, password=None)
        for number in range(at_most):
            view = lease_next(store, person, "p")
            if view is None:
                return number
            first, second = (len(completion.text) for completion in view.completions)
            verdict = "tie" if first == second else "first" if first > second else "second"
            judgement = answer(view, person, preference=verdict)
            submit(store, judgement, lease_id=view.lease_id, client_key=view.task_id + name)
    return at_most


@pytest.fixture
def rated(loop_launch: Launch) -> Launch:
    """models/base as the backbone, runs/reward from the first answers of project p."""

    def rlhf(command: str, line: str, *options: str) -> None:
        assert main([command, "--workspace", str(loop_launch.workspace), *line.split(), *options]) == 0, (
            command
        )

    line = f"--model-path models/base --prompts prompts.jsonl --project p --samples-per-prompt 4 {SAMPLING}"
    rlhf("sample", line, *MODEL)
    assert rate(loop_launch, "ann") > 15
    rlhf("export", "--project p", "--out", str(loop_launch.workspace / "snapshots" / "one"))
    line = "--backbone models/base --snapshot snapshots/one --num-epochs 1 --lora.r 2 --near-duplicates 0"
    rlhf("reward", line, *MODEL)
    return loop_launch


def ppo(launch: Launch, *options: str, iterations: int = 4) -> int:
    reward = () if "--reward" in options else ("--reward", "runs/reward")
    line = (
        f"--backbone models/base --prompts prompts.jsonl --num-iterations {iterations} "
        "--num-prompts 4 --num-minibatches 1 --num-epochs 1 --lora.r 2 --save-every 1 --keep-checkpoints 9 "
        f"--feedback.num-prompts 8 {SAMPLING}"
    )
    asking = () if "--feedback-every" in options else ("--feedback-every", "2")
    return main(
        ["ppo", "--workspace", str(launch.workspace), *line.split(), *MODEL, *reward, *asking, *options]
    )


def ledger(launch: Launch) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((launch.workspace / "runs/ppo/feedback.json").read_text())
    return rows


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What happens while the training waits: one call after the other, each once."""
    calls: list[Any] = []

    def sleep(seconds: float) -> None:
        assert calls, "it waits although there is nothing left to wait for"
        calls.pop(0)()

    monkeypatch.setattr(with_people, "sleep", sleep)
    yield calls
    assert not calls, "it did not wait as often as it should"


def test_it_waits_for_people_learns_from_them_and_resumes_to_the_same_bits(
    rated: Launch, waits: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = rated.workspace / "runs" / "ppo"
    waits += [lambda: rate(rated, "bob", at_most=1), lambda: rate(rated, "cem")]
    assert ppo(rated) == 0
    assert "rate them with `rlhf app`" in capsys.readouterr().out

    (asked,) = ledger(rated)
    assert asked["iteration"] == 2
    assert asked["answers"] == asked["wanted"] == len(asked["task_ids"]) > 4
    second = read_manifest((out / asked["reward"]).parent)
    snapshots = (rated.workspace / "snapshots/one", out / "feedback/iteration-000002/snapshot")
    counts = [json.loads((folder / "manifest.json").read_text())["num_judgements"] for folder in snapshots]
    assert counts[1] == counts[0] + asked["answers"], "the new reward has seen the new answers"
    weights = [load_file(p / "adapter_model.safetensors") for p in
               (rated.workspace / "runs/reward/adapter", out / asked["reward"])]  # fmt: skip
    assert any((weights[0][key] != weights[1][key]).any() for key in weights[0])
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["reward_number"] for row in rows] == [0, 0, 1, 1]
    assert rows[2]["score_mean"] == pytest.approx(second.metrics["score_mean"])
    # As a SIGKILL during iteration 4 leaves it: the new reward is loaded, nobody is asked again.
    adapter = load_file(out / "adapter/adapter_model.safetensors")
    (out / FINISHED).unlink()
    shutil.rmtree(out / "adapter")
    newest = sorted((out / "checkpoints").iterdir())[-1]
    assert newest.name.endswith("4")
    shutil.rmtree(newest)
    assert ppo(rated, "--resume") == 0
    again = load_file(out / "adapter/adapter_model.safetensors")
    assert all((again[key] == adapter[key]).all() for key in adapter)
    assert read_metrics(out / "metrics.jsonl")[-1]["reward_number"] == 1


def test_a_stop_while_it_waits_loses_nothing(rated: Launch, waits: list[Any]) -> None:
    waits += [lambda: os.kill(os.getpid(), signal.SIGTERM)]
    assert ppo(rated) == 143
    assert not (rated.workspace / "runs/ppo/feedback.json").exists()
    num_open = rate(rated, "bob")
    assert num_open > 4
    assert ppo(rated, "--resume") == 0, "the answers are all there: it does not wait"
    assert ledger(rated)[0]["answers"] == num_open


def test_it_goes_on_where_it_is_told_to_and_looks_again(
    rated: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 2 nobody has answered; at 4 the questions of 2 and 4 together wait for answers, too few for a new reward."""
    assert ppo(rated, "--feedback.when-open", "go-on", iterations=5) == 0
    first, second = ledger(rated)
    assert (first["answers"], first["reward"], second["reward"]) == (0, "", "")
    assert second["wanted"] == first["wanted"] + len(second["task_ids"])
    assert "goes on with the reward it has" in capsys.readouterr().out
    assert not (rated.workspace / "runs/ppo/feedback").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("--reward", "judges.py:letters"),
            "feedback_every needs a reward run as reward; found judges.py:letters",
        ),
        (("--reward", "runs/other"), "was not made by `rlhf reward`; feedback_every needs such a run"),
    ],
)
def test_what_cannot_be_renewed_is_refused(
    loop_launch: Launch, options: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reward_run(loop_launch, "other")  # trained elsewhere: without a snapshot
    monkeypatch.chdir(loop_launch.workspace)
    assert ppo(loop_launch, *options) == 2
    assert expected in capsys.readouterr().err
    assert not (loop_launch.workspace / "runs/ppo").exists()


def test_a_project_that_cannot_be_asked_is_refused_before_anything_is_trained(
    rated: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ppo(rated, "--feedback.project", "typo") == 2
    assert "there is no project 'typo' in the feedback store" in capsys.readouterr().err
    assert not (rated.workspace / "runs/ppo").exists()


def test_without_feedback_every_the_run_is_a_plain_one(rated: Launch) -> None:
    assert ppo(rated, "--feedback-every", "0", iterations=1) == 0
    settings = read_manifest(rated.workspace / "runs/ppo").settings
    assert "feedback" not in settings
    assert not Path(rated.workspace / "runs/ppo/feedback.json").exists()
