"""`rlhf reward-history`: all runs on the same unseen prompts, paired gains by hand, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.cli import main
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Prompt
from rlhf.core.run import FINISHED, Launch
from rlhf.core.stats import bootstrap_mean
from rlhf.loop.config import RewardHistoryConfig
from rlhf.loop.reward_history import history_section, picture, reward_history, run
from rlhf.loop.reward_runs import finished_runs, learned_from
from tests.loop.sent_back import deltas, reward_run, texts

TEST = range(100, 130)


def write_snapshot(folder: Path, train: range, test: range, *, raters: int = 1) -> Path:
    """A snapshot in which everybody prefers the first completion; the second rater disagrees on every third pair."""
    folder.mkdir(parents=True)
    for split, numbers in (("train", train), ("validation", range(90, 93)), ("test", test)):
        rows = []
        for i in numbers:
            prompt, first, second = texts(i)
            for rater in range(raters):
                both = (second, first) if rater and i % 3 == 0 else (first, second)
                row = Prompt.model_validate({"prompt": prompt}).model_dump(include={"prompt_id", "group_id"})
                row |= {"prompt": prompt, "chosen": both[0], "rejected": both[1], "annotator_id": f"r{rater}"}
                rows.append(row)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(**changes: Any) -> RewardHistoryConfig:
    return RewardHistoryConfig(
        **{"snapshot": "snapshots/new", "model": {"device": "cpu"}, "num_resamples": 500} | changes
    )


@pytest.fixture
def rounds(workspace: Launch) -> tuple[Launch, list[dict[int, float]]]:
    """Three rounds of ratings and a reward run on each; of the first, what its snapshot was is gone. In the newest
    snapshot two of the test prompts are ones that the second run was trained on. And the scores of each run."""
    root = workspace.workspace
    found = []
    for number, train in enumerate((range(10), range(20), range(40))):
        extra = [100, 101] if number == 1 else []
        snapshot = write_snapshot(root / "snapshots" / str(number), train, range(93, 96))
        if extra:
            with open(snapshot / "train.jsonl", "a") as file:
                for i in extra:
                    prompt, first, second = texts(i)
                    file.write(json.dumps({"prompt": prompt, "chosen": first, "rejected": second}) + "\n")
        scorer = reward_run(
            workspace,
            f"reward-{number}",
            seed=number,
            snapshot=snapshot,
            created=f"2026-01-0{number + 1}T00:00:00+00:00",
            extra={"splits": {"train": {"num_pairs": len(train)}}},
        )
        found.append(deltas(scorer, TEST))
    (root / "snapshots" / "0" / "train.jsonl").unlink()
    write_snapshot(root / "snapshots" / "new", range(40), TEST, raters=2)
    return workspace, found


def test_every_run_on_the_same_unseen_prompts(rounds: tuple[Launch, list[dict[int, float]]]) -> None:
    launch, scores = rounds
    config = settings()
    snapshot = launch.workspace / "snapshots" / "new"
    history = reward_history(finished_runs(launch), snapshot, config, launch)
    unseen = [i for i in TEST if i not in (100, 101)]
    assert (history.num_comparisons, history.num_prompts, history.num_seen) == (56, 28, 4)
    # Two ratings a prompt; the second rater prefers the other side where i % 3 == 0.
    groups = [i for i in unseen for _ in range(2)]

    def correct(run: int) -> np.ndarray:
        first = np.array([scores[run][i] > 0 for i in unseen])
        reverse = np.array([i % 3 == 0 for i in unseen])
        return np.stack([first, first != reverse], 1).reshape(-1).astype(float)

    for number, one in enumerate(history.runs):
        assert one.accuracy == pytest.approx(
            bootstrap_mean(correct(number), groups=groups, num_resamples=500)
        )
    gain = bootstrap_mean(correct(2) - correct(1), groups=groups, num_resamples=500)
    assert [one.prompts_known for one in history.runs] == [False, True, True]
    assert [one.gain for one in history.runs[:2]] == [None, None]
    assert history.runs[2].gain == pytest.approx(gain)
    assert gain.low < gain.high
    assert [one.num_pairs for one in history.runs] == [10, 20, 40]
    # 28 pairs with two raters, of which those with i % 3 == 0 (102, 105, ..., 129: 10 pairs) disagree.
    assert history.agreement is not None
    assert history.agreement.mean == pytest.approx(18 / 28)
    section = history_section(history)
    assert "unknown training prompts" in section
    assert section.count("<svg") == 1
    assert f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" in section
    assert picture(history).count(b"reward model") >= 1


def test_what_a_run_has_learned_from(rounds: tuple[Launch, list[dict[int, float]]]) -> None:
    launch, _ = rounds
    first, second, _ = finished_runs(launch)
    assert learned_from(first.manifest, launch) is None
    seen = learned_from(second.manifest, launch)
    assert seen is not None

    def groups(numbers: Any) -> set[str]:
        return {Prompt.model_validate({"prompt": texts(i)[0]}).group_id for i in numbers}

    assert seen.train == groups([*range(20), 100, 101])
    assert seen.validation == groups(range(90, 93))
    # With near-duplicates in one split, all that resembles a training prompt counts as seen.
    path = launch.workspace / "snapshots" / "2" / "test.jsonl"
    prompt, one, other = texts(5)
    alike = {"prompt": f"{prompt}!", "chosen": one, "rejected": other}
    path.write_text(path.read_text() + json.dumps(alike) + "\n")
    scorer = reward_run(launch, "alike", snapshot=path.parent)
    assert scorer.scale.num_members == 1
    (alone,) = (run for run in finished_runs(launch) if run.name == "runs/alike")
    plain = learned_from(alone.manifest, launch)
    joined = learned_from(alone.manifest.model_copy(update={"settings": {"near_duplicates": 0.5}}), launch)
    assert plain is not None
    assert joined is not None
    new = Prompt.model_validate({"prompt": f"{prompt}!"}).group_id
    assert new not in plain.train
    assert new in joined.train


def test_the_command(
    rounds: tuple[Launch, list[dict[int, float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    launch, _ = rounds
    root = launch.workspace
    command = ["reward-history", "--workspace", str(root), "--snapshot", "snapshots/new"]
    command += ["--num-resamples", "200", "--model.device", "cpu"]
    assert main(command) == 0
    out = root / "runs" / "reward-history"
    said = capsys.readouterr().out
    assert "reward-history: runs/reward-2 orders 0." in said
    assert "on the run before; details in" in said
    figures = json.loads((out / "reward_history.json").read_text())
    assert [row["run"] for row in figures["runs"]] == ["runs/reward-0", "runs/reward-1", "runs/reward-2"]
    newest = figures["runs"][-1]
    assert newest["accuracy_low"] <= newest["accuracy"] <= newest["accuracy_high"]
    assert figures["runs"][0]["gain"] is None
    assert (out / "reward_history.png").read_bytes().startswith(b"\x89PNG")
    assert "<table>" in (out / "reward_history.html").read_text()
    assert (out / FINISHED).exists()
    assert main(command) == 0
    assert "is already finished" in capsys.readouterr().out
    # One run alone has gained nothing, and says so by saying nothing.
    assert main([*command, "--runs", "runs/reward-1", "--out", str(root / "runs" / "one")]) == 0
    assert "on the run before" not in capsys.readouterr().out


def test_what_cannot_be_compared_is_named(workspace: Launch) -> None:
    root = workspace.workspace
    launch = replace(workspace, out=root / "runs" / "history")
    write_snapshot(root / "snapshots" / "new", range(10), TEST)
    with pytest.raises(DataError, match="holds no finished reward run"):
        run(settings(), launch)
    reward_run(workspace, "reward", snapshot=write_snapshot(root / "snapshots" / "1", TEST, range(93, 96)))
    with pytest.raises(DataError, match="no decided comparison of the test split is left: 30 are on prompts"):
        run(settings(), launch)
    with pytest.raises(
        ConfigError, match="models/base is not a finished reward run of the workspace; found runs/"
    ):
        run(settings(runs=("models/base",)), launch)
    (root / "runs" / "reward" / FINISHED).unlink()
    with pytest.raises(DataError, match="holds no finished reward run"):
        run(settings(), launch)
    assert not (root / "runs" / "history").exists()
