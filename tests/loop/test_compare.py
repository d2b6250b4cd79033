"""`rlhf compare`: every method through its own door on one budget, the table, and going on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feedback_app.store.engine import Store
from rlhf.core.config import load_settings
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, Workspace, is_finished
from rlhf.demo.compare import in_the_world
from rlhf.demo.compare import run as in_demo
from rlhf.demo.config import DemoConfig
from rlhf.loop.compare import run as compare
from rlhf.loop.compare.config import CompareConfig
from rlhf.loop.compare.method import BudgetedPPOConfig, Place, settings_of
from rlhf.loop.registry import Registry
from rlhf.ppo.picture import RunPicture
from rlhf.preference import save
from rlhf.preference.config import PreferConfig

NOUNS = ("cat", "mat", "birds", "man", "tale", "rain", "sun", "order")
FUNCTIONS = """
def letters(prompts, completions):
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]
"""
SMALL = (
    "all.optim.lr=1e-2",
    "all.batch_size=4",
    "all.near_duplicates=0",
    "grpo.online.num_prompts=2",
    "grpo.online.samples_per_prompt=2",
    "grpo.online.eval_every=1000000",
    "ppo.num_prompts=4",
    "ppo.eval_every=1000000",
)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def no_pictures_of_runs() -> Iterator[None]:
    """Drawing them takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save, "draw_offline", lambda *_: None)
        patch.setattr(RunPicture, "draw", lambda *_, **__: None)
        yield


@pytest.fixture
def compare_launch(workspace: Launch) -> Launch:
    root = workspace.workspace
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        rows = [
            {
                "prompt": f"{split} {noun}",
                "chosen": f"the {noun} thank rain",
                "rejected": f"the {noun} sorry rain",
            }
            for noun in NOUNS[:count]
        ]
        write(root / "snapshot" / f"{split}.jsonl", rows)
    write(root / "prompts.jsonl", [{"prompt": f"tell of {noun}"} for noun in NOUNS])
    write(root / "heldout.jsonl", [{"prompt": f"what of {noun}"} for noun in NOUNS])
    (root / "functions.py").write_text(FUNCTIONS)
    return replace(workspace, out=root / "runs" / "compare")


def small_config(root: Path, **changes: Any) -> CompareConfig:
    settings: dict[str, Any] = {
        "methods": "dpo,grpo,ppo,best-of-n",
        "budget": "3000tokens",
        "backbone": "models/base",
        "snapshot": "snapshot",
        "reward": f"{root}/functions.py:letters",
        "prompts": "prompts.jsonl",
        "eval_prompts": "heldout.jsonl",
        "heldout": "heldout.jsonl",
        "judge": f"{root}/functions.py:letters",
        "n": 3,
        "overrides": SMALL,
        "sampling": {"max_completion_tokens": 8},
        "lora": {"r": 4, "alpha": 8},
        "model": {"device": "cpu"},
        "isolate": False,
    }
    return CompareConfig.model_validate(settings | changes)


def test_all_methods_on_one_budget(
    compare_launch: Launch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second method is interrupted; the same command with --resume does not begin the first one again."""
    root, out = compare_launch.workspace, compare_launch.out
    assert out is not None
    config = small_config(root)
    done = compare.run_method

    def interrupted(config: CompareConfig, launch: Launch, out: Path, method: str, *rest: Any) -> None:
        if method == "grpo":
            raise KeyboardInterrupt
        done(config, launch, out, method, *rest)

    monkeypatch.setattr(compare, "run_method", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare.run(config, compare_launch)
    monkeypatch.undo()
    first = Place.of(out, "dpo").result.read_bytes()
    compare.run(config, replace(compare_launch, resume=True))
    assert Place.of(out, "dpo").result.read_bytes() == first
    assert "dpo is already finished" in capsys.readouterr().out
    assert is_finished(out)

    result = json.loads((out / "compare.json").read_text())
    rows = {row["method"]: row for row in result["methods"]}
    assert set(rows) == {"dpo", "grpo", "ppo", "best-of-n"}
    rates = [row["win_rate"] for row in result["methods"]]
    assert rates == sorted(rates, reverse=True)
    for name in ("grpo", "ppo"):  # they end with the first iteration that is beyond the budget
        assert 1 <= rows[name]["used"] < 1.5
        metrics = read_metrics(Place.of(out, name).run / "metrics.jsonl")
        assert "eval_objective" in metrics[-1]  # and with an evaluation, whatever eval_every is
    # The judge is the reward here, so the best of 3 cannot lose against the first of the 3.
    assert rows["best-of-n"]["win_rate_low"] >= 0.5
    # log 3 - 2/3 = 0.4319
    assert rows["best-of-n"]["kl"] == pytest.approx(0.4319, abs=1e-4)
    assert rows["best-of-n"]["tokens_spent"] == 0
    page = (out / "compare.html").read_text()
    assert "Win rate over the backbone" in page
    assert "at most 0.43" in page
    # eval_prompts are the held-out prompts here, all eight of them
    assert result["num_seen"] == 8
    assert "8 of the held-out prompts are also among" in page

    with Store.open(compare_launch.db) as store:
        registry = Registry(store, Workspace(root))
        assert set(result["artifacts"]) == {"dpo", "grpo", "ppo"}
        assert registry.artifact(result["artifacts"]["grpo"]).path == out / "runs" / "grpo"


def test_inputs_are_looked_up_before_anything_is_trained(
    compare_launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = compare_launch.workspace, compare_launch.out
    for changes, error, message in (
        ({"judge": f"{root}/nobody.py:judge"}, ConfigError, "no such file"),
        ({"judge": "runs/nobody"}, DataError, "runs/nobody: no such file or directory"),
        ({"reward": "runs/nobody"}, DataError, "runs/nobody: no such file or directory"),
        ({"eval_prompts": "nothing.jsonl"}, DataError, "nothing.jsonl: no such file or directory"),
    ):
        with pytest.raises(error, match=message):
            compare.run(small_config(root, **changes), compare_launch)
    assert out is not None
    assert not out.exists()
    in_demo(CompareConfig(), replace(compare_launch, dry_run=True))
    assert "would make the embedded world" in capsys.readouterr().out
    assert not (root / "runs" / "base").exists()


def test_a_snapshot_of_simulated_ratings_is_named_without_the_registry(tmp_path: Path) -> None:
    launch = Launch(workspace=tmp_path, db="")
    config = CompareConfig(snapshot=str(tmp_path))
    for said in (True, False):
        (tmp_path / "manifest.json").write_text(json.dumps({"simulated": said}))
        assert compare._learned_from_programs(config, launch) == said
    assert not compare._learned_from_programs(CompareConfig(), launch)


def test_budgets_and_overrides() -> None:
    config = CompareConfig(
        methods="dpo, ppo", budget="2m", overrides=("all.optim.lr=3e-4", "ppo.kl_coef=0.02")
    )
    assert (config.names, config.budget_seconds, config.budget_tokens) == (["dpo", "ppo"], 120.0, None)
    assert CompareConfig(budget="3e6tokens").budget_tokens == 3_000_000
    dpo, ppo = settings_of(config, "dpo", 5), settings_of(config, "ppo", 5)
    assert isinstance(dpo, PreferConfig)
    assert (dpo.optim.lr, dpo.optim.schedule, dpo.seed, dpo.budget_seconds) == (3e-4, "cosine", 5, 120.0)
    assert isinstance(ppo, BudgetedPPOConfig)
    assert (ppo.optim.lr, ppo.kl_coef) == (3e-4, 0.02)
    config = CompareConfig(methods="dpo", overrides=("dpo.optm.lr=1",))
    with pytest.raises(ConfigError, match=r"rlhf compare: dpo\.optm: is not a known name"):
        settings_of(config, "dpo", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "3 weeks"], "budget is '3 weeks'; expected something like 120s, 5m or 3e6tokens"),
        (["--methods", "dpo,dqn"], "methods names 'dqn'"),
        (["--methods", "dpo,dpo"], "each method once"),
        (["--overrides", "kto.beta=1", "--methods", "dpo"], "is for 'kto', which is not among the methods"),
        (["--overrides", "dpo.beta"], "is not of the form METHOD.KEY=VALUE"),
        (["--overrides", "dpo.beta=[", "--methods", "dpo"], r"the value of 'dpo\.beta=\[' cannot be read"),
        (["--overrides", "all.kl_coeff=1"], "no method has a setting 'kl_coeff'"),
        (["--overrides", "best-of-n.n=16"], "best-of-n is not trained"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(CompareConfig, None, arguments, "rlhf compare")


def test_without_a_backbone_it_is_the_embedded_world(tmp_path: Path) -> None:
    """A demo that was run in the workspace is used; what is given on the command line wins."""
    demo = DemoConfig()
    stages = ("world", "base", "sft", "sample", "ratings", "export", "reward")
    state = {"settings": demo.model_dump(mode="json"), "seconds": dict.fromkeys(stages, 1.0)}
    (tmp_path / "demo.json").write_text(json.dumps(state))
    launch = Launch(workspace=tmp_path, db=f"sqlite:///{tmp_path}/feedback.db")
    asked = CompareConfig(methods="dpo", overrides=("all.optim.lr=1e-4",))
    # Theirs for all methods wins over the world's own for one.
    assert settings_of(in_the_world(asked, launch), "dpo", 0).optim.lr == 1e-4
    asked = CompareConfig(methods="dpo,ppo", overrides=("dpo.beta=0.2", "ppo.optim.lr=5e-4"))
    config = in_the_world(asked, launch)
    assert config.sampling.temperature == demo.temperature
    assert str(config.judge).endswith("rubric.py:gold")
    dpo, ppo = settings_of(config, "dpo", 0), settings_of(config, "ppo", 0)
    assert isinstance(dpo, PreferConfig)
    assert isinstance(ppo, BudgetedPPOConfig)
    assert (dpo.beta, dpo.optim.lr, dpo.batch_size) == (0.2, 3e-3, 16)
    assert (ppo.optim.lr, ppo.num_prompts) == (5e-4, 64)
    assert ppo.reward == str(tmp_path / "runs" / "reward")


def test_a_process_that_ended_well_sends_nothing() -> None:
    """A pipe whose other end was closed polls as readable; what was sent before that is still there."""
    for sent, expected in (([], None), (["stopped"], "stopped")):
        ours, theirs = compare.SPAWN.Pipe(duplex=False)
        for message in sent:
            theirs.send(message)
        theirs.close()
        assert compare.received(ours) == expected
