"""`rlhf sft-eval` from the command line on tiny models: figures against plain transformers, files, and refusals."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.cli import main
from rlhf.core.run import Launch, read_manifest
from sft.assess.config import SFTEvalConfig
from sft.assess.run import find_files, read_files
from sft.assess.subjects import find_named

TERMS = """
sets:
  - kind: gender
    name: persons
    in_texts: true
    pairs: [[man, woman], [boy, girl]]
    templates:
      - {prompt: "say {term}", completion: hello}
      - {prompt: say it, completion: "a {term} sat"}
"""
SMALL = ["--shots", "2", "--num-own", "4", "--num-probes", "4", "--sampling.max-completion-tokens", "6"]
SMALL += ["--load.device", "cpu"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class World:
    """A workspace with a base, a run that was tuned from it, and an evaluation of that run."""

    root: Path
    held: Path
    general: Path
    terms: Path
    evaluation: Path

    def evaluate(self, *options: str) -> int:
        return main(["sft-eval", "--workspace", str(self.root), *SMALL, *options])

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.evaluation / "sft_eval.json").read_text())
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> World:
    root = tmp_path_factory.mktemp("sft-eval") / "workspace"
    shutil.copytree(tiny_model(chat_template=True, num_layers=2), root / "models" / "base")
    train = [{"prompt": f"say {c}", "completion": c * n} for c in "abcdefghijkl" for n in (3, 4)]
    write(root / "train.jsonl", train)
    held = [{"prompt": f"say {c}", "completion": c * 3, "references": [c * 4]} for c in "mnopq"]
    held.append({"prompt": "say man", "completion": "man man", "context": "a man"})
    held.append({"text": "the cat sat on a mat"})
    general = [{"text": f"the cat saw {n} birds", "source": n} for n in ("red", "green", "blue", "happy")]
    general.append({"prompt": "who?", "completion": "an old man", "source": "old"})
    (root / "terms.yaml").write_text(TERMS)
    options = ["--lora.adapter-layers", "1", "--optim.lr", "0.01", "--optim.warmup-steps", "1"]
    options += ["--model.device", "cpu", "--batch-size", "8", "--num-epochs", "4", "--base", "models/base"]
    assert main(["sft", "--workspace", str(root), "--data", "train.jsonl", *options]) == 0
    made = World(
        root,
        write(root / "held.jsonl", held),
        write(root / "general.jsonl", general),
        root / "terms.yaml",
        root / "runs" / "sft-eval",
    )
    files = ["--data", "held.jsonl", "--general", "general.jsonl", "--terms", "terms.yaml"]
    questions = write(root / "questions.jsonl", [{"prompt": f"say {c}", "completion": c} for c in "rst"])
    assert made.evaluate("--model", "runs/sft", *files, "--questions", str(questions)) == 0
    return made


def transformers_nll(model: Path, prompts: list[str], completions: list[str]) -> tuple[float, int]:
    """Summed nats and tokens of completions by plain transformers, without our codec, batches or head."""
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    total, number = 0.0, 0
    for prompt, completion in zip(prompts, completions, strict=True):
        turns = [{"role": "user", "content": prompt}]
        before = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        after = tokenizer(completion, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = lm(torch.tensor([[*before, *after]])).logits[0].log_softmax(-1)
        total -= sum(logits[len(before) - 1 + i, token].item() for i, token in enumerate(after))
        number += len(after)
    return total, number


def test_likelihoods_are_those_of_plain_transformers(world: World) -> None:
    metrics = world.result["metrics"]
    prompts = [f"say {c}" for c in (*"mnopq", "man")]
    completions = [*(c * 3 for c in "mnopq"), "man man"]
    for end, model in (("_base", world.root / "models/base"), ("", world.root / "runs/sft/model")):
        nats, tokens = transformers_nll(model, prompts, completions)
        assert metrics[f"nll{end}"] == pytest.approx(nats / tokens, abs=1e-4)
    assert metrics["nll_gain"] == pytest.approx(metrics["nll_base"] - metrics["nll"])
    assert metrics["num_items"] == 6


def test_every_section_is_measured(world: World) -> None:
    result = world.result
    metrics = result["metrics"]
    assert (
        result["few_shot"]["join"] == "chat"
    )  # examples from the run's own training data, found by its manifest
    assert metrics["num_shots"] == 2
    assert result["base"] == "models/base"
    assert metrics["num_general"] == 5
    assert len(result["forgetting"]["sources"]) == 5
    assert metrics["num_own"] == 4
    assert metrics["num_texts"] == 1
    assert metrics["num_questions"] == 3
    assert metrics["num_contexts"] == 1
    # 2 pairs in 2 templates, and the held-out row with "man" in it
    assert metrics["num_bias_pairs"] == 5
    assert metrics["num_bias_answers"] == 3
    rows = [json.loads(line) for line in (world.evaluation / "answers.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all({"base", "few_shot", "tuned"} <= row.keys() for row in rows)
    nats = sum(row["tuned"]["nats"] for row in rows) / sum(row["tuned"]["tokens"] for row in rows)
    assert nats == pytest.approx(metrics["nll"])


def test_the_manifest_holds_the_figures_for_gates(world: World) -> None:
    manifest = read_manifest(world.evaluation)
    assert manifest.stage == "sft-eval"
    assert manifest.metrics == world.result["metrics"]
    roles = {"data", "general", "questions", "terms", "train_1", "model", "base"}
    assert manifest.parents.keys() == roles


def test_the_page_tells_it_to_people(world: World) -> None:
    page = (world.evaluation / "sft_eval.html").read_text()
    for heading in ("Held-out quality", "Side by side", "Held-out text", "What was lost", "Facts", "Bias"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<svg") == 6


def test_a_finished_evaluation_is_left_alone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = (world.evaluation / "sft_eval.json").stat().st_mtime_ns
    files = ["--data", "held.jsonl", "--general", "general.jsonl", "--terms", "terms.yaml"]
    assert (
        world.evaluate("--model", "runs/sft", *files, "--questions", str(world.root / "questions.jsonl")) == 0
    )
    assert "already finished" in capsys.readouterr().out
    assert (world.evaluation / "sft_eval.json").stat().st_mtime_ns == before


def test_the_base_against_itself_gains_and_loses_nothing(
    world: World, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Also without a chat template: examples are text before the prompt."""
    base = str(tiny_model(num_layers=2))
    out = tmp_path / "eval"
    files = ["--data", str(world.held), "--general", str(world.general), "--terms", str(world.terms)]
    files += ["--train", str(world.root / "train.jsonl"), "--out", str(out)]
    assert world.evaluate("--model", base, "--base", base, *files) == 0
    result = json.loads((out / "sft_eval.json").read_text())
    metrics = result["metrics"]
    gains = [name for name in metrics if name.endswith(("_gain", "_rise"))]
    assert len(gains) == 7 + 1 + 3  # measures, groundedness, and three kinds of text
    assert {name: metrics[name] for name in gains} == dict.fromkeys(gains, 0.0)
    assert all(row["gap_change"] == 0 for row in result["bias"])
    assert metrics["beats_base"] is False
    assert result["against_base"] == "open"
    few_shot = result["few_shot"]
    assert few_shot["join"] == min(few_shot["tried"], key=few_shot["tried"].get)
    assert metrics["nll_few_shot"] != metrics["nll_base"]


def test_held_out_prompts_in_the_training_data_are_told_without_few_shot_too(world: World) -> None:
    train, notes, launch = world.root / "train.jsonl", list[str](), Launch(world.root, "")
    config = SFTEvalConfig(shots=0, data=str(train))
    files, _ = find_files(config, find_named("runs/sft", launch), launch)
    assert files.train == (train,)
    rows = read_files(files, config, notes)
    assert notes == [
        f"{len(rows.items)} of the {len(rows.items)} held-out prompts stand in the training data: these figures "
        "flatter the tuned model."
    ]


def test_a_method_that_cannot_merge_is_examined_by_its_adapter(world: World) -> None:
    method = "prompt-tuning"
    options = ["--base", "models/base", "--data", "train.jsonl", "--method", method, "--virtual-tokens", "4"]
    options += ["--num-epochs", "1", "--num-samples", "0", "--model.device", "cpu"]
    out = str(world.root / "runs" / method)
    assert main(["sft", "--workspace", str(world.root), *options, "--out", out]) == 0
    small = ["--data", "held.jsonl", "--shots", "0", "--num-own", "0", "--num-probes", "0"]
    assert world.evaluate("--model", f"runs/{method}", *small) == 0
    metrics = read_manifest(world.root / "runs" / f"{method}-eval").metrics
    assert metrics["nll_base"] == pytest.approx(world.result["metrics"]["nll_base"])
    assert metrics["nll"] != pytest.approx(metrics["nll_base"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "runs/sft"], "--data is required"),
        (["--data", "held.jsonl"], "--model is required"),
        (["--model", "runs/sft", "--data", "gone.jsonl"], "gone.jsonl: no such file"),
        (["--model", "runs/sft", "--data", "broken.jsonl"], "broken.jsonl:2: "),
        (["--model", "runs/sft", "--data", "empty.jsonl"], "empty.jsonl: file is empty"),
        (["--model", "runs/sft", "--data", "silent.jsonl"], "silent.jsonl:1: the completion is empty"),
        (
            ["--model", "runs/sft", "--data", "train.jsonl"],
            "all 24 demonstrations answer prompts of the evaluation",
        ),
        (["--model", "runs/sft", "--data", "long.jsonl"], "no prompt leaves 6 tokens for an answer"),
        (["--model", "runs/sft", "--data", "held.jsonl", "--base", "other"], "other: has another tokenizer"),
        (["--model", "runs/half", "--data", "held.jsonl"], "half: is an unfinished run"),
        (["--model", "nowhere/at/all", "--data", "held.jsonl"], "no such model directory"),
        (
            ["--model", "runs/sft", "--data", "held.jsonl", "--questions", "general.jsonl"],
            "general.jsonl:1: holds a text",
        ),
        (["--model", "runs/sft", "--data", "held.jsonl", "--harness.limit", "3"], "without harness.tasks"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    world: World,
    tiny_model: Callable[..., Path],
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not (world.root / "other").exists():
        shutil.copytree(tiny_model(pad_is_eos=True, num_layers=2), world.root / "other")
        half = world.root / "runs" / "half"
        shutil.copytree(world.root / "runs" / "sft", half)
        (half / "FINISHED").unlink()
        (world.root / "broken.jsonl").write_text('{"prompt": "q", "completion": "a"}\n{"prompt": \n')
        (world.root / "empty.jsonl").write_text("")
        write(world.root / "silent.jsonl", [{"prompt": "q", "completion": " "}])
        write(world.root / "long.jsonl", [{"prompt": "word " * 130, "completion": "a"}])
    capsys.readouterr()
    assert world.evaluate("--out", str(world.root / "refused"), *options) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert "Traceback" not in "".join(error)
    assert not (world.root / "refused").exists()


def test_the_harness_is_asked_for_by_name(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("lm_eval") is not None:
        pytest.xfail("lm-eval is installed here")
    options = ["--model", "runs/sft", "--data", "held.jsonl", "--out", str(world.root / "refused")]
    assert world.evaluate(*options, "--harness.tasks", "arc_easy") == 2
    assert "lm-eval is not installed; expected pip install 'rlhf-loop[lm-eval]'" in capsys.readouterr().err
