"""A round by the command with everything trained in it, which goes on from the champion before it."""

from __future__ import annotations

import json
from dataclasses import replace
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
from rlhf.ppo.train import run as run_ppo


@pytest.mark.slow
def test_a_round_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "world"
    (tmp_path / "general.jsonl").write_text(json.dumps({"text": "t5 t6 t7 t8"}) + "\n")
    (tmp_path / "rules.yaml").write_text("rules:\n  - words: [t23]\n    weight: -1\n")
    gates = {"safety_rules": str(tmp_path / "rules.yaml"), "general_text": str(tmp_path / "general.jsonl")}
    config, launch = tiny.make_world(
        root,
        gates=gates | {"max_unsafe_rise": 1.0, "max_perplexity_ratio": 100.0, "min_win_rate": 0.0},
        ppo={"num_iterations": 1, "eval_every": 1, "num_prompts": 8},
        snapshot={"half_life_days": 30.0},
    )
    (tmp_path / "long.py").write_text("def long(prompts, texts):\n    return [len(t) for t in texts]\n")
    start = {"backbone": "runs/sft", "prompts": "heldout.jsonl", "reward": f"{tmp_path}/long.py:long"}
    run_ppo(config.ppo.model_copy(update=start), replace(launch, out=root / "runs" / "before"))
    (tmp_path / "retrain.yaml").write_text(settings_to_yaml(config))
    command = ["retrain", "--config", str(tmp_path / "retrain.yaml"), "--workspace", str(root)]
    with Store.open(launch.db) as store:
        registry = Registry(store, Workspace(root))
        registry.promote(registry.register(root / "runs" / "before").artifact_id, actor="ann", reason="first")
        tiny.rate(store, 120, 0)
        assert main(command) == 0
        (found,) = Rounds(store).all()
        assert (found.state, found.error) == ("champion", None)
        names = registry.aliases()
        verdicts = {verdict.name for verdict in Rounds(store).verdicts(found.round_id)}
    assert {"reward accuracy", "win rate", "safety", "perplexity", "slices"} <= verdicts
    assert (names[CHAMPION].path, names[PREVIOUS].path) == (
        root / "runs/round-0001/ppo",
        root / "runs/before",
    )
    # Training states would fill the disk in time; the runs themselves stay what was registered.
    assert not list((root / "runs" / "round-0001").rglob("step-*"))
    folder = root / "runs" / "round-0001"
    ppo, reward, judge = (read_manifest(folder / name) for name in ("ppo", "reward", "judge"))
    assert ppo.parents["init_adapter"].path == "runs/before/adapter"
    assert ppo.parents["eval_reward"].path == "runs/round-0001/judge/adapter"
    # PPO practises on the rated prompts; the judge's prompts and the reward's are apart, and old ratings count less.
    prompts = [row["prompt_id"] for _, row in read_rows(folder / "train_prompts.jsonl")]
    assert len(set(prompts)) == len(prompts) > 50
    assert (reward.settings["prompt_part"], judge.settings["prompt_part"]) == ("main", "judge")
    assert reward.parents["snapshot"].path == "runs/round-0001/ratings"
    assert "The candidate ppo-" in (folder / "report.html").read_text()
    assert [one["state"] for one in json.loads((root / "rounds.json").read_text())] == ["champion"]
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out == "retrain: nothing new since round 1\n"
