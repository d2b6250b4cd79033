"""docs/rewards.md: every example on the page is written to a file and run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from reward.score import RewardScale
from rlhf.cli import main
from rlhf.core.adapters import save_reward
from rlhf.core.backbone import Backbone
from rlhf.core.grounding import grounded_share
from rlhf.core.metrics import read_metrics
from rlhf.core.records import Prompt
from rlhf.core.settings import LoraSettings, ModelSettings
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.prompts import EncodedPrompt, PromptStream
from rlhf.ppo.rewards import RuleList, score_completions
from rlhf.ppo.train import PPOTrainer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
SMALL = ["--num-iterations", "2", "--num-prompts", "4", "--sampling.max-completion-tokens", "6"]
SMALL += ["--lora.r", "2", "--model.device", "cpu", "--eval-every", "1"]


@pytest.fixture
def workspace_of_the_page(
    tmp_path: Path,
    tiny_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A workspace with the files of the page and what they name; it is the current directory."""
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    (tmp_path / "runs" / "sft" / "model").symlink_to(tiny_model())
    backbone = Backbone.load(tiny_model(), ModelSettings(device="cpu"), name="runs/sft/model")
    save_reward(
        backbone.add_role("reward", LoraSettings(r=2), seed=0, scalar_head=True),
        tmp_path / "runs" / "reward" / "adapter",
        backbone,
    )
    RewardScale(0.1, 2.0, 1.0).save(tmp_path / "runs" / "reward" / "adapter")
    for name in ("prompts", "heldout"):
        rows = [{"prompt": f"{name} order {i}", "context": f"order {i} was late"} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in examples().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples() -> dict[str, str]:
    found = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(found) >= 5
    return dict(found)


def run(workspace: Path, *options: str) -> list[dict[str, float]]:
    out = workspace / "out"
    assert main(["ppo", "--workspace", str(workspace), "--out", str(out), *options, *SMALL]) == 0
    return read_metrics(out / "metrics.jsonl")


def test_a_python_function(workspace_of_the_page: Path) -> None:
    command = re.search(r"```sh\nrlhf ppo (.*)\n```", PAGE)
    assert command is not None
    rows = run(workspace_of_the_page, *command[1].split())
    assert 0 < rows[-1]["score"] <= 1


def test_a_classifier_of_another_framework(
    workspace_of_the_page: Path, tiny_model: Callable[..., Path]
) -> None:
    command = re.search(r"```sh\nrlhf ppo (.*models/judge.*)\n```", PAGE)
    scale = re.search(r"`reward\.json` beside it: `(.*?)`", PAGE)
    assert command is not None
    assert scale is not None
    judge = workspace_of_the_page / "models" / "judge"
    config = AutoConfig.from_pretrained(tiny_model(), num_labels=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(judge)
    AutoTokenizer.from_pretrained(tiny_model()).save_pretrained(judge)
    (judge / "reward.json").write_text(scale[1])
    rows = run(workspace_of_the_page, *command[1].split(), "--score-clip", "100")
    # the row before the first iteration has only the figures of the evaluation, where there is one
    assert rows[-1]["score_mean"] == 0.3
    assert rows[-1]["score_std"] == 1.7


def test_several_at_once(workspace_of_the_page: Path) -> None:
    rows = run(workspace_of_the_page, "--config", "several.yaml")
    names = [name for name in rows[-1] if name.startswith("score/")]
    assert names == ["score/reward", "score/guidelines", "score/groundedness", "score/short"]
    assert rows[-1]["eval_heldout_score"] == 1.0  # no completion repeats its prompt


def test_the_json_of_the_page(workspace_of_the_page: Path) -> None:
    text = re.search(r"`--rewards '(.*?)'`", PAGE)
    assert text is not None
    names = ["--backbone", "runs/sft", "--prompts", "prompts.jsonl"]
    rows = run(workspace_of_the_page, "--rewards", text[1], *names)
    assert {"score/reward", "score/guidelines"} <= set(rows[-1])


def test_a_watched_run(workspace_of_the_page: Path) -> None:
    rows = run(workspace_of_the_page, "--config", "watched.yaml")
    assert [row["eval_alarm"] for row in rows] == [0.0, 0.0, 0.0]
    assert (workspace_of_the_page / "out" / "ppo.png").exists()


def test_a_reward_of_ones_own(workspace_of_the_page: Path, load_tiny: Callable[..., Backbone]) -> None:
    names: dict[str, type] = {}
    exec(examples()["own_reward.py"], names)
    config = PPOConfig.model_validate(
        {"num_prompts": 4, "sampling": {"max_completion_tokens": 6}, "model": {"device": "cpu"}}
    )
    trainer = PPOTrainer(load_tiny(), names["TokenVariety"](), config, max_tokens=40)
    prompt = Prompt.model_validate({"prompt": "a tale"})
    ids = trainer.backbone.codec.prompt_ids(prompt.messages)
    batch = trainer.collect(PromptStream([EncodedPrompt(prompt, ids)], 0))
    lengths = batch.completions.lengths_B.tolist()
    rows = [row[:n] for row, n in zip(batch.completions.tokens_BT.tolist(), lengths, strict=True)]
    assert batch.scores_B.tolist() == pytest.approx([len(set(row)) / len(row) for row in rows])
    found = score_completions(trainer.reward, batch.completions, batch.prompts, batch.texts)
    assert found.terms == {}


def test_what_the_page_says_about_rules_and_groundedness(workspace_of_the_page: Path) -> None:
    rules = RuleList.read(workspace_of_the_page / "guidelines.yaml")
    assert rules.score("As an AI model I cannot see order 12.") == pytest.approx(-1.0)
    assert rules.score("Sorry, a refund for order 12.") == pytest.approx(0.7)
    assert rules.score("NEVER AGAIN") == pytest.approx(-0.5 - 0.3)
    assert "= 0.5" in PAGE
    assert grounded_share("The store opens at 9:30 on weekdays.", "The store opens at 8:15") == 0.5
    bad = workspace_of_the_page / "guidelines.yaml"
    lines = bad.read_text().replace("weight: 0.2", "wieght: 0.2")
    bad.write_text(lines)
    with pytest.raises(ValueError, match=r"unknown key 'wieght'; did you mean 'weight'\?"):
        RuleList.read(bad)
