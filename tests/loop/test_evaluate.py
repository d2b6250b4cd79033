"""`rlhf evaluate`: win rates that no position can move, KL against a direct computation, and honest nulls."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import reward.train as reward_train
from reward.config import RewardConfig
from rlhf.core.adapters import load_adapter
from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.errors import ConfigError, DataError, ModelError
from rlhf.core.run import Launch, read_manifest
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import ModelSettings, SamplingSettings
from rlhf.loop.config import EvaluateConfig
from rlhf.loop.evaluate import run


def evaluate(launch: Launch, judge: str = "letters", **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "candidate": "runs/candidate",
        "prompts": "prompts.jsonl",
        "judge": judge if "/" in judge else f"{launch.workspace}/judges.py:{judge}",
        "sampling": {"max_completion_tokens": 8},
        "num_resamples": 200,
        "model": {"device": "cpu"},
    }
    out = launch.out or launch.workspace / "runs" / "evaluate"
    run(EvaluateConfig(**settings | changes), replace(launch, out=out))
    return json.loads((out / "evaluation.json").read_text())


def pairs_of(launch: Launch) -> list[dict[str, Any]]:
    lines = (launch.workspace / "runs" / "evaluate" / "pairs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_win_rate_by_score(loop_launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluate(loop_launch)
    rows = pairs_of(loop_launch)
    assert len(rows) == figures["num_prompts"] == 12

    def letters(text: str) -> int:
        return sum(c.isascii() and c.isalpha() for c in text)

    for row in rows:
        before, after = letters(row["baseline"]), letters(row["candidate"])
        assert (row["score_before"], row["score_after"]) == (before, after)
        assert row["win"] == (1.0 if after > before else 0.5 if after == before else 0.0)
    assert figures["win_rate"] == pytest.approx(sum(row["win"] for row in rows) / 12)
    assert figures["win_rate_low"] <= figures["win_rate"] <= figures["win_rate_high"]
    assert figures["win_rate_low"] < figures["win_rate_high"]
    assert figures["ties"] == pytest.approx(sum(row["win"] == 0.5 for row in rows) / 12)
    assert figures["score_after"] == pytest.approx(sum(row["score_after"] for row in rows) / 12)
    assert 0 < figures["length_after"] <= 8
    assert 0 < figures["distinct_2_before"] <= 1
    manifest = read_manifest(loop_launch.workspace / "runs" / "evaluate")
    assert manifest.metrics["win_rate"] == figures["win_rate"]
    assert set(manifest.parents) == {"prompts", "candidate", "judge"}
    assert f"evaluate: win rate {figures['win_rate']:.3f} [" in capsys.readouterr().out


def test_a_judge_biased_to_the_first_position_gives_exactly_one_half(loop_launch: Launch) -> None:
    figures = evaluate(loop_launch, "always_first")
    assert figures["win_rate"] == figures["win_rate_low"] == figures["win_rate_high"] == 0.5
    assert figures["ties"] == 1.0
    assert "score_before" not in figures


def test_a_pairwise_judge_is_asked_in_both_orders(loop_launch: Launch) -> None:
    figures = evaluate(loop_launch, "longer")
    for row in pairs_of(loop_launch):
        gap = len(row["candidate"]) - len(row["baseline"])
        assert row["win"] == (1.0 if gap > 0 else 0.0 if gap < 0 else 0.5)
    assert 0 < figures["win_rate"] < 1


@pytest.mark.parametrize("judge", ["letters", "longer"])
def test_identical_models_tie_and_have_no_divergence(loop_launch: Launch, judge: str) -> None:
    figures = evaluate(loop_launch, judge, candidate="models/base", baseline="models/base")
    assert figures["win_rate"] == 0.5
    assert figures["kl"] == figures["kl_low"] == figures["kl_high"] == 0
    assert figures["candidate"] == figures["baseline"]


def test_a_copy_of_a_model_is_the_same_model(loop_launch: Launch) -> None:
    """Loaded twice, from two places: the same random numbers draw the same answers."""
    root = loop_launch.workspace
    shutil.copytree(root / "models" / "base", root / "models" / "copy")
    figures = evaluate(loop_launch, candidate="models/copy", baseline="models/base")
    assert figures["win_rate"] == 0.5
    assert figures["kl"] == pytest.approx(0, abs=1e-6)


def test_kl_is_that_of_the_candidates_own_samples(loop_launch: Launch) -> None:
    """log candidate - log base summed over each completion, by a plain forward pass of each text's tokens."""
    sampling = {"max_completion_tokens": 8, "temperature": 0.7}
    figures = evaluate(loop_launch, sampling=sampling, micro_batch_tokens=50)
    root = loop_launch.workspace
    backbone = Backbone.load(root / "models" / "base", ModelSettings(device="cpu"), name="models/base")
    load_adapter(backbone, "policy", root / "runs/candidate", base_name="models/base", scalar_head=False)
    from_run = sampled_rows(backbone, root / "prompts.jsonl", sampling)
    total = 0.0
    with torch.no_grad():
        for row, start in from_run:
            tokens = torch.tensor([row])
            logprobs = [
                (backbone.logits(backbone.hidden(role, tokens))[0, start - 1 : -1] / 0.7)
                .log_softmax(-1)
                .gather(1, tokens[0, start:, None])
                .sum()
                .item()
                for role in ("policy", REFERENCE)
            ]
            total += logprobs[0] - logprobs[1]
    assert figures["kl"] == pytest.approx(total / 12, abs=1e-3)
    assert abs(figures["kl"]) > 0.05
    assert figures["kl_low"] < figures["kl"] < figures["kl_high"]


def sampled_rows(backbone: Backbone, path: Path, settings: dict[str, Any]) -> list[tuple[list[int], int]]:
    """(prompt and completion ids, prompt length) of what the run drew."""
    from_file = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    bos, encode = backbone.codec.tokenizer.bos_token_id, backbone.codec.tokenizer.encode
    requests = [
        Request([bos, *encode(text, add_special_tokens=False)], i) for i, text in enumerate(from_file)
    ]
    drawn = sample(
        backbone.merged("policy"),
        requests,
        SamplingSettings(**settings),
        end_token_ids=backbone.codec.end_token_ids,
        seed=0,
    )
    return [([*r.prompt_ids, *s.tokens], len(r.prompt_ids)) for r, s in zip(requests, drawn, strict=True)]


def test_models_with_other_tokens_have_no_kl(
    loop_launch: Launch, tiny_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model(pad_is_eos=True), loop_launch.workspace / "models" / "other")
    figures = evaluate(loop_launch, candidate="models/other", baseline="models/base")
    assert figures["kl"] is None
    assert "KL" not in capsys.readouterr().out


def test_a_reward_run_judges(loop_launch: Launch) -> None:
    root = loop_launch.workspace
    rows = [{"prompt": f"tell {i}", "chosen": "thank you", "rejected": "sorry"} for i in range(40)]
    (root / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RewardConfig(
        backbone="models/base",
        snapshot="preferences.jsonl",
        num_epochs=1,
        lora={"r": 2},
        model={"device": "cpu"},
    )
    reward_train.run(config, replace(loop_launch, out=root / "runs" / "reward"))
    figures = evaluate(loop_launch, "runs/reward")
    assert 0 <= figures["win_rate"] <= 1
    assert {"score_before", "score_after"} <= set(figures)
    again = evaluate(replace(loop_launch, out=root / "runs" / "again"), "runs/reward", micro_batch_tokens=60)
    assert again["score_after"] == pytest.approx(figures["score_after"], abs=1e-5)
    assert again["win_rate"] == figures["win_rate"]


def test_a_classifier_of_another_framework_judges(loop_launch: Launch) -> None:
    """The scores in the report are those of plain transformers, one row at a time."""
    root = loop_launch.workspace
    tokenizer = AutoTokenizer.from_pretrained(root / "models" / "base")
    config = AutoConfig.from_pretrained(root / "models" / "base", num_labels=1)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(root / "models" / "judge")
    tokenizer.save_pretrained(root / "models" / "judge")
    figures = evaluate(loop_launch, "models/judge")
    model.config.pad_token_id = None
    for row in pairs_of(loop_launch):
        for when, text in (("before", row["baseline"]), ("after", row["candidate"])):
            ids = torch.tensor([tokenizer(f"{row['prompt']}\n{text}")["input_ids"]])
            with torch.no_grad():
                expected = model(input_ids=ids).logits[0, 0].item()
            assert row[f"score_{when}"] == pytest.approx(expected, abs=1e-4)
    assert 0 <= figures["win_rate"] <= 1
    assert set(read_manifest(root / "runs" / "evaluate").parents) == {"prompts", "candidate", "judge"}
    with pytest.raises(
        ModelError, match="LlamaForCausalLM; expected a reward run or a sequence-classification"
    ):
        evaluate(replace(loop_launch, out=root / "runs" / "wrong"), "models/base")


def test_a_finished_evaluation_is_left_alone(loop_launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluate(loop_launch)
    assert evaluate(loop_launch) == first
    assert "is already finished" in capsys.readouterr().out


def test_what_cannot_be_compared_is_named(loop_launch: Launch) -> None:
    with pytest.raises(ConfigError, match="--baseline is required when the candidate is a whole model"):
        evaluate(loop_launch, candidate="models/base")
    with pytest.raises(DataError, match=r"judges\.py:nan returned nan for row 0"):
        evaluate(loop_launch, "nan")
    with pytest.raises(ConfigError, match="--judge is required"):
        run(EvaluateConfig(candidate="runs/candidate", prompts="prompts.jsonl"), loop_launch)


def test_prompts_too_long_for_one_of_the_models(loop_launch: Launch, tiny_model: Callable[..., Path]) -> None:
    shutil.copytree(tiny_model(context=32), loop_launch.workspace / "models" / "short")
    with open(loop_launch.workspace / "prompts.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "x" * 60}) + "\n")
    options: dict[str, Any] = {"candidate": "models/base", "baseline": "models/short"}
    with pytest.raises(DataError, match="context of 32"):
        evaluate(loop_launch, **options)
    launch = replace(loop_launch, out=loop_launch.workspace / "runs" / "dropped")
    assert evaluate(launch, on_long_prompt="drop", **options)["num_prompts"] == 12
