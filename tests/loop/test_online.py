"""PPO with people in its loop: each part goes on from the one before it, and learns from what was said in between."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feedback_app.auth import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.snapshots import export_snapshot
from feedback_app.store.tasks import lease_next
from reward.train import run as run_reward
from rlhf.core.errors import ConfigError
from rlhf.core.run import Launch, is_finished, read_manifest
from rlhf.loop.online.config import OnlineConfig
from rlhf.loop.online.run import run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from retraining import tiny


def config(**changes: Any) -> OnlineConfig:
    rounds = tiny.config_of()
    values: dict[str, Any] = {
        "backbone": "runs/sft",
        "reward": "runs/reward",
        "prompts": "heldout.jsonl",
        "project": tiny.PROJECT,
        "simulated": True,
        "feedback_every": 1,
        "num_pairs": 20,
        "min_answers": 12,
        "max_wait_s": 0.01,
        "poll_s": 0.01,
        "ppo": rounds.ppo.model_dump() | {"num_iterations": 2, "num_prompts": 8},
        "train": rounds.reward.model_dump() | {"num_epochs": 1},
    }
    return OnlineConfig.model_validate(values | changes)


def answer_all(store: Store) -> int:
    """Somebody says something about every open pair."""
    rater = create_annotator(store, "ann", password=None, simulated=True)
    given = 0
    while view := lease_next(store, rater, tiny.PROJECT):
        judgement = answer(view, rater, preference="first" if given % 2 else "second")
        submit(store, judgement, lease_id=view.lease_id, client_key=f"k{view.task_id}", origin="simulated")
        given += 1
    return given


@pytest.fixture(scope="module")
def online_world(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """A world with ratings and a reward model from them."""
    root = tmp_path_factory.mktemp("online") / "world"
    _, launch = tiny.make_world(root)
    with Store.open(launch.db) as store:
        tiny.rate(store, 40, 0)
    with Store.open(launch.db) as store:
        export_snapshot(store, root / "snapshots" / "one", project=tiny.PROJECT, seed=0)
    settings = tiny.config_of().reward.model_copy(
        update={
            "backbone": str(root / "runs/sft/model"),
            "snapshot": str(root / "snapshots/one"),
            "num_epochs": 1,
        }
    )
    run_reward(settings, replace(launch, out=root / "runs" / "reward"))
    return launch


def test_training_waits_for_raters_and_goes_on_with_what_they_said(
    online_world: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = online_world.workspace / "runs" / "waits"
    launch = replace(online_world, out=out)
    run(config(), launch)
    assert "0 answers after 0.01 s; continue with --resume" in capsys.readouterr().out
    assert is_finished(out / "part-01" / "ppo")
    assert not is_finished(out)
    with Store.open(launch.db) as store:
        assert answer_all(store) >= 12
    run(config(), replace(launch, resume=True))
    first, second = (read_manifest(out / f"part-0{n}" / "ppo") for n in (1, 2))
    assert first.parents["reward"].path == "runs/reward/adapter"
    assert "init_adapter" not in first.parents
    assert second.parents["reward"].path == "runs/waits/part-01/reward/adapter"
    assert second.parents["init_adapter"].path == "runs/waits/part-01/ppo/adapter"
    # The reward model of part 2 has learned from the ratings of before and from those of part 1's policy.
    said = (out / "part-01" / "snapshot" / "train.jsonl").read_text()
    models = {json.loads(line)["chosen_model"].split("@")[0] for line in said.splitlines()}
    assert models == {"sft", "runs/waits/part-01/ppo/adapter"}
    weights = "adapter/adapter_model.safetensors"
    assert (out / weights).read_bytes() == (out / "part-02" / "ppo" / weights).read_bytes()
    assert read_manifest(out).metrics["num_refreshed"] == 1
    capsys.readouterr()
    run(config(), launch)
    assert "already finished" in capsys.readouterr().out


def test_training_goes_on_without_raters_where_it_may(online_world: Launch) -> None:
    out = online_world.workspace / "runs" / "goes-on"
    run(config(when_few="go-on"), replace(online_world, out=out))
    assert read_manifest(out).metrics["num_refreshed"] == 0
    assert read_manifest(out / "part-02" / "ppo").parents["reward"].path == "runs/reward/adapter"


def test_what_the_command_fills_in_and_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ppo\.reward is filled in by the command"):
        config(ppo={"reward": "x"})
    with pytest.raises(ValueError, match="more than num_pairs x overlap"):
        config(min_answers=21)
    parts = config(feedback_every=3, ppo={"num_iterations": 8}).parts
    assert parts == [3, 3, 2]
    with pytest.raises(ConfigError, match="--reward is required"):
        run(config(reward=None), Launch(workspace=Path("nowhere"), db="sqlite:///nowhere"))
