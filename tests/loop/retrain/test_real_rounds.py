"""Two rounds by the command, with everything trained in them: the second goes on from the first one's champion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from retrain_world import tiny

from feedback_app.store.engine import Store
from rlhf.cli import main
from rlhf.core.config import settings_to_yaml
from rlhf.core.files import read_rows
from rlhf.core.run import Workspace, read_manifest
from rlhf.loop.registry import CHAMPION, PREVIOUS, Registry
from rlhf.loop.retrain.rounds import Rounds


@pytest.mark.slow
def test_two_rounds_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "world"
    (tmp_path / "general.jsonl").write_text(json.dumps({"text": "t5 t6 t7 t8"}) + "\n")
    (tmp_path / "rules.yaml").write_text("rules:\n  - words: [t23]\n    weight: -1\n")
    gates = {"safety_rules": str(tmp_path / "rules.yaml"), "general_text": str(tmp_path / "general.jsonl")}
    config, launch = tiny.make_world(
        root,
        gates=gates | {"max_unsafe_rise": 1.0, "max_perplexity_ratio": 100.0, "min_win_rate": 0.0},
        reward={"num_epochs": 5},
        ppo={"num_iterations": 2, "eval_every": 2},
        snapshot={"half_life_days": 30.0},
    )
    (tmp_path / "retrain.yaml").write_text(settings_to_yaml(config))
    command = ["retrain", "--config", str(tmp_path / "retrain.yaml"), "--workspace", str(root)]
    workspace = Workspace(root)
    with Store.open(launch.db) as store:
        for number in (1, 2):
            tiny.rate(store, 120 if number == 1 else 30, number)
            assert main(command) == 0
            found = Rounds(store).all()[-1]
            assert (found.number, found.state, found.error) == (number, "champion", None)
        names = Registry(store, workspace).aliases()
        verdicts = {verdict.name for verdict in Rounds(store).verdicts(found.round_id)}
    assert {"reward accuracy", "win rate", "safety", "perplexity", "slices"} <= verdicts
    assert names[CHAMPION].path == root / "runs" / "round-0002" / "ppo"
    # Training states would fill the disk in time; the runs themselves stay what was registered.
    assert not list((root / "runs").rglob("step-*"))
    assert names[PREVIOUS].path == root / "runs" / "round-0001" / "ppo"
    # The first round begins at the supervised model, the second one at the first one's policy.
    first, second = (read_manifest(root / "runs" / f"round-000{n}" / "ppo") for n in (1, 2))
    assert "init_adapter" not in first.parents
    assert second.parents["init_adapter"].path == "runs/round-0001/ppo/adapter"
    # PPO practises on all new prompts and as many old ones; the judge's prompts and the reward's are apart.
    prompts = [row for _, row in read_rows(root / "runs" / "round-0002" / "train_prompts.jsonl")]
    assert len({row["prompt_id"] for row in prompts}) == len(prompts)
    reward, judge = (read_manifest(root / "runs" / "round-0002" / name) for name in ("reward", "judge"))
    assert (reward.settings["prompt_part"], judge.settings["prompt_part"]) == ("main", "judge")
    assert reward.parents["snapshot"].path == "runs/round-0002/ratings"  # weighted by age
    page = (root / "runs" / "round-0002" / "report.html").read_text()
    assert "The candidate ppo-" in page
    timeline = json.loads((root / "rounds.json").read_text())
    assert [one["state"] for one in timeline] == ["champion", "champion"]
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out == "retrain: nothing new since round 2\n"
