"""The whole loop by its commands on a pretrained model and real text: demonstrations -> sft -> sample -> ratings
-> export -> reward -> ppo -> evaluate. Small budgets: what is checked is that each stage feeds the next."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from feedback_app.accounts import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.tasks import lease_next
from rlhf.cli import main
from rlhf.core.metrics import read_metrics
from rlhf.core.run import content_sha256, read_manifest

# The raters' rule, which reward and ppo never see: a story is better the more of it is kind words.
JUDGE = """
KIND = {"happy", "love", "loved", "play", "played", "friend", "friends", "smiled", "fun", "nice", "good", "thank"}

def kindness(prompts, completions):
    words = [[w.strip('.,!?"').lower() for w in text.split()] for text in completions]
    return [sum(w in KIND for w in row) / max(1, len(row)) for row in words]
"""


def story_rows(path: Path) -> list[dict[str, str]]:
    """First sentence -> the next two, of stories with at least four sentences of moderate length."""
    rows = []
    for story in path.read_text(encoding="utf-8").split("<|endoftext|>"):
        sentences = re.findall(r"[^.!?]+[.!?]", " ".join(story.split()))
        if len(sentences) > 3 and all(20 < len(s) < 90 for s in sentences[:3]):
            rows.append({"prompt": sentences[0].strip(), "completion": "".join(sentences[1:3]).strip()})
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rate(root: Path, judge_path: Path) -> None:
    """Two raters work through every task; the second one looks at every third task only."""
    space: dict[str, object] = {}
    exec(judge_path.read_text(), space)
    with Store.open(f"sqlite:///{root}/feedback.db", create=False) as store:
        for name in ("ann", "bob"):
            rater = create_annotator(store, name, password=None)
            while view := lease_next(store, rater, "stories"):
                texts = [completion.text for completion in view.completions]
                first, second = space["kindness"]([""] * 2, texts)  # type: ignore[operator]
                verdict = "tie" if first == second else "first" if first > second else "second"
                judgement = answer(view, rater, preference=verdict)
                submit(store, judgement, lease_id=view.lease_id, client_key=f"{name}-{view.task_id}")


@pytest.mark.slow
@pytest.mark.long  # the demo goes the whole way in CI too
def test_the_loop_on_a_story_model(shared_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    root.mkdir()
    rows = story_rows(shared_data / "tinystories" / "train_first2MiB.txt")
    assert len(rows) > 600
    write_rows(root / "demonstrations.jsonl", rows[:200])
    write_rows(root / "rate.jsonl", [{"prompt": row["prompt"]} for row in rows[200:400]])
    write_rows(root / "train.jsonl", [{"prompt": row["prompt"]} for row in rows[400:500]])
    write_rows(root / "held_out.jsonl", [{"prompt": row["prompt"]} for row in rows[500:564]])
    (root / "judge.py").write_text(JUDGE)

    def rlhf(command: str, *options: str) -> None:
        assert main([command, "--workspace", str(root), *options]) == 0, command

    model, project = ["--model.device", "cpu"], ["--project", "stories"]
    answers = [*model, "--sampling.max-completion-tokens", "40"]
    base = str(shared_data / "models" / "stories260K")
    rlhf("sft", "--base", base, "--data", "demonstrations.jsonl", "--num-epochs", "1", *model)
    rlhf(
        "sample",
        "--model-path",
        "runs/sft",
        "--prompts",
        "rate.jsonl",
        *project,
        "--overlap",
        "2",
        *answers,
    )
    rate(root, root / "judge.py")
    rlhf("export", *project, "--out", str(root / "snapshots" / "one"))
    rlhf(
        "reward",
        "--backbone",
        "runs/sft",
        "--snapshot",
        "snapshots/one",
        "--num-epochs",
        "4",
        "--optim.lr",
        "3e-3",
        *model,
    )
    rlhf(
        *("ppo", "--backbone", "runs/sft", "--reward", "runs/reward", "--prompts", "train.jsonl"),
        *("--num-iterations", "12", "--num-prompts", "24", "--num-epochs", "2", "--num-minibatches", "2"),
        *("--kl-coef", "0.15", "--optim.lr", "1e-3", *answers),
    )
    rlhf(
        *(
            "evaluate",
            "--candidate",
            "runs/ppo",
            "--prompts",
            "held_out.jsonl",
            "--judge",
            f"{root}/judge.py:kindness",
        ),
        *("--num-resamples", "500", *answers),
    )

    sft, reward, ppo, evaluation = (
        read_manifest(root / "runs" / name) for name in ("sft", "reward", "ppo", "evaluate")
    )
    assert sft.metrics["validation_loss"] < sft.metrics["validation_loss_before"]
    assert reward.metrics["agreement"] == 1.0  # the two raters follow one rule
    # Each stage names what it was made from, by content.
    assert ppo.parents["reward"].sha256 == content_sha256(root / "runs" / "reward" / "adapter")
    assert ppo.parents["backbone"].sha256 == reward.parents["backbone"].sha256
    assert reward.parents["backbone"].path == "runs/sft/model"
    assert evaluation.parents["candidate"].sha256 == content_sha256(root / "runs" / "ppo" / "adapter")
    for name in ("reward", "ppo"):
        settings = json.loads((root / "runs" / name / "adapter" / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == "runs/sft/model"
    assert any(t.any() for t in load_file(root / "runs/ppo/adapter/adapter_model.safetensors").values())
    rows_of_ppo = read_metrics(root / "runs" / "ppo" / "metrics.jsonl")
    assert [row["step"] for row in rows_of_ppo] == list(range(1, 13))
    assert rows_of_ppo[-1]["score_normalized"] > rows_of_ppo[0]["score_normalized"]
    figures = evaluation.metrics
    assert figures["num_prompts"] == 64
    assert 0 < figures["kl"] < 15  # 7 to 9 nats; ids of people and answers are random, so runs differ
    assert figures["win_rate"] > 0.5
