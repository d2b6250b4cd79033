"""Every kind of answer and every way to train, as runs of `rlhf reward` on the tiny model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import reward.train as reward_train
from reward.config import RewardConfig
from reward.data import load_ratings
from reward.score import RewardScale, RewardScorer, text_row
from reward.search import TRIALS
from rlhf.core.backbone import Backbone
from rlhf.core.checkpoint import checkpoints, load_state
from rlhf.core.errors import ConfigError, Stopped
from rlhf.core.files import file_sha256
from rlhf.core.guards import SignalGuard
from rlhf.core.metrics import read_metrics
from rlhf.core.records import Prompt
from rlhf.core.run import Launch, read_manifest
from rlhf.core.sequences import Sequences
from rlhf.core.settings import ModelSettings
from tests.reward.conftest import NOUNS, planted_rows, write_rows

MakeConfig = Callable[..., RewardConfig]
SPLITS = {"train": range(100), "validation": range(100, 125), "test": range(125, 160)}
GOOD, SORRY = "the {} thank you {}", "the {} sorry {}"


def snapshot_of(launch: Launch, kinds: tuple[str, ...], *, pairs: tuple[str, ...] = tuple(SPLITS)) -> None:
    """A snapshot under the planted rule: 'thank you' is better, with the given folders filled."""
    root = launch.workspace / "snapshot"
    rows = planted_rows(160)
    for split, numbers in SPLITS.items():
        own = [rows[i] for i in numbers]
        write_rows(root / f"{split}.jsonl", own if split in pairs else [])
        for kind in kinds:
            write_rows(root / kind / f"{split}.jsonl", [r for row in own for r in ROWS[kind](row)])


def _scores(row: dict[str, Any]) -> list[dict[str, Any]]:
    both = ((row["chosen"], 5), (row["rejected"], 2))
    return [
        {"prompt": row["prompt"], "completion": text, "scores": {"polite": value, "long": len(text) % 5}}
        for text, value in both
    ]


ROWS: dict[str, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {
    "unpaired": lambda row: [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": True},
        {"prompt": row["prompt"], "completion": row["rejected"], "label": False},
    ],
    "scores": _scores,
    "rankings": lambda row: [
        {
            "prompt": row["prompt"],
            "completions": [row["rejected"], row["chosen"], row["rejected"] + " late"],
            "ranks": [2, 1, 2],
        }
    ],
}


def trained(launch: Launch, config: RewardConfig, name: str = "reward") -> Path:
    out = launch.workspace / "runs" / name
    reward_train.run(config, replace(launch, out=out))
    return out


def rule_share(launch: Launch, scorer: RewardScorer) -> float:
    """Share of unseen texts in which the scorer likes the rule."""
    prompts = [Prompt.model_validate({"prompt": f"hello {noun}"}) for noun in NOUNS]
    good, bad = (
        scorer.score_texts(prompts, [form.format(n, i) for i, n in enumerate(NOUNS)], max_tokens=512)
        for form in (GOOD, SORRY)
    )
    return sum(a > b for a, b in zip(good, bad, strict=True)) / len(NOUNS)


def attached(launch: Launch, out: Path) -> RewardScorer:
    base = launch.workspace / "models/base"
    backbone = Backbone.load(base, ModelSettings(device="cpu"), name="models/base")
    return RewardScorer.attach(backbone, out / "adapter", base_name="models/base")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("unpaired", {}),
        ("scores", {"attribute_weights": {"polite": 1.0}}),
        ("rankings", {"rankings": "plackett-luce"}),
    ],
)
def test_each_kind_alone_teaches_the_rule(
    workspace: Launch, reward_config: MakeConfig, kind: str, changes: dict[str, Any]
) -> None:
    """The comparisons of train and validation are empty: what is learned comes from the other kind."""
    snapshot_of(workspace, (kind,), pairs=("test",))
    out = trained(workspace, reward_config(snapshot="snapshot", num_epochs=6, **changes))
    assert read_manifest(out).metrics["heldout_accuracy"] > 0.8
    assert rule_share(workspace, attached(workspace, out)) >= 0.8
    scale = RewardScale.load(out / "adapter")
    assert (scale.thumb_offset is not None) == (kind == "unpaired")
    assert [name for name, _, _ in scale.attributes] == (["long", "polite"] if kind == "scores" else [])


def test_attributes_are_told_on_the_scale_that_they_were_rated_on(
    workspace: Launch, reward_config: MakeConfig
) -> None:
    snapshot_of(workspace, ("scores",))
    out = trained(workspace, reward_config(snapshot="snapshot", num_epochs=6))
    scorer = attached(workspace, out)
    prompt = Prompt.model_validate({"prompt": "tell of cat"})
    rows = [text_row(scorer.backbone.codec, prompt, form.format("mat", "sun")) for form in (GOOD, SORRY)]
    sequences = Sequences(scorer.backbone, rows, max_tokens=512, max_bytes=0)
    found = scorer.attributes(sequences, sequences.batch([0, 1]))
    polite = [name for name, _, _ in scorer.scale.attributes].index("polite")
    assert found[0, polite].item() == pytest.approx(5, abs=1)
    assert found[1, polite].item() == pytest.approx(2, abs=1)


@pytest.mark.parametrize("labels", ["answers", "posterior"])
def test_who_is_not_believed_in_training_is_not_in_validation(
    workspace: Launch, reward_config: MakeConfig, labels: str
) -> None:
    """Two raters follow the rule, a third says the reverse of it. Told by all alike, two thirds are all that a loss can
    be sure of: it would stay above the entropy of a third, 0.637 nats."""
    rows = []
    for one in planted_rows(160):
        turned = one | {"chosen": one["rejected"], "rejected": one["chosen"], "annotator_id": "c"}
        rows += [one | {"annotator_id": "a"}, one | {"annotator_id": "b"}, turned]
    write_rows(workspace.workspace / "preferences.jsonl", rows)
    out = trained(workspace, reward_config(rater_weights="dawid-skene", rater_labels=labels, num_epochs=4))
    raters = {row["annotator_id"]: row for row in read_manifest(out).extra["raters"]}
    assert raters["c"]["weight"] == 0
    assert raters["a"]["reliability_se"] > 0
    assert min(row["validation_loss"] for row in read_metrics(out / "metrics.jsonl")) < 0.6
    assert rule_share(workspace, attached(workspace, out)) >= 0.8


@pytest.mark.parametrize("pair_loss", ["davidson", "rao-kupper"])
def test_models_of_ties_learn_how_common_ties_are(
    workspace: Launch, reward_config: MakeConfig, pair_loss: str
) -> None:
    rows = planted_rows(160)
    for row in rows[::2]:
        row |= {"tie": True, "margin": 0, "rejected": row["chosen"].replace("thank you", "thank you all")}
    write_rows(workspace.workspace / "preferences.jsonl", rows)
    out = trained(workspace, reward_config(pair_loss=pair_loss))
    scale = RewardScale.load(out / "adapter")
    assert scale.tie_logit is not None
    assert abs(scale.tie_logit) > 1e-3
    assert read_manifest(out).metrics["heldout_accuracy"] > 0.8


@pytest.mark.parametrize("of", ["heads", "adapters"])
def test_an_ensemble_scores_by_its_mean_and_knows_its_spread(
    workspace: Launch, reward_config: MakeConfig, of: str
) -> None:
    write_rows(workspace.workspace / "preferences.jsonl", planted_rows(160))
    out = trained(workspace, reward_config(ensemble=3, ensemble_of=of))
    scorer = attached(workspace, out)
    assert rule_share(workspace, scorer) >= 0.8
    prompt = Prompt.model_validate({"prompt": "tell of cat"})
    rows = [text_row(scorer.backbone.codec, prompt, form.format("mat", "sun")) for form in (GOOD, SORRY)]
    sequences = Sequences(scorer.backbone, rows, max_tokens=512, max_bytes=0)
    if of == "heads":
        hidden = sequences.last_hidden("reward", sequences.batch([0, 1]))
        members = hidden @ load_file(out / "adapter" / "heads.safetensors")["heads"].T
    else:
        folders = [out / "adapter", *(out / "adapter" / f"member-{k}" for k in (1, 2))]
        singles = []
        for folder in folders:
            base = Backbone.load(
                workspace.workspace / "models/base", ModelSettings(device="cpu"), name="models/base"
            )
            if folder == folders[0]:  # as the ensemble's first member alone
                scale = RewardScale.load(folder)
                replace(scale, num_members=1, num_adapters=1).save(folder)
            single = RewardScorer.attach(base, folder)
            singles.append(single.score_all(Sequences(base, rows, max_tokens=512, max_bytes=0)))
        members = torch.stack(singles, dim=1)
    torch.testing.assert_close(scorer.score_all(sequences), members.mean(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        scorer.spread_all(sequences), members.std(1, correction=0), atol=1e-5, rtol=1e-4
    )
    assert scorer.spread_all(sequences).min() > 1e-4
    scorer.doubt = 2.0
    doubted = members.mean(1) - 2 * members.std(1, correction=0)
    torch.testing.assert_close(scorer.score_all(sequences), doubted, atol=1e-5, rtol=1e-4)


def test_a_full_model_is_trained_and_loads_with_plain_transformers(
    workspace: Launch, reward_config: MakeConfig, tiny_model: Callable[..., Path]
) -> None:
    write_rows(workspace.workspace / "preferences.jsonl", planted_rows(160))
    base = workspace.workspace / "models/base"
    # a chat model, whose turns do not end with the tokenizer's own end token
    shutil.rmtree(base)
    shutil.copytree(tiny_model(chat_template=True), base)
    before = {path.name: file_sha256(path) for path in base.iterdir()}
    out = trained(workspace, reward_config(method="full", optim={"lr": 2e-3, "warmup_steps": 2}))
    assert {path.name: file_sha256(path) for path in base.iterdir()} == before
    assert read_manifest(out).metrics["heldout_accuracy"] > 0.8
    scorer = RewardScorer.open_model(out / "model", ModelSettings(device="cpu"), name="runs/reward/model")
    assert rule_share(workspace, scorer) >= 0.8
    trained_on = Backbone.load(base, ModelSettings(device="cpu")).codec
    assert scorer.backbone.codec.end_token_ids == trained_on.end_token_ids
    assert trained_on.end_token_id != trained_on.tokenizer.eos_token_id
    plain = AutoModelForSequenceClassification.from_pretrained(out / "model")
    AutoTokenizer.from_pretrained(out / "model")
    prompt = Prompt.model_validate({"prompt": "tell of cat"})
    row = text_row(scorer.backbone.codec, prompt, GOOD.format("mat", "sun"))
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor([row])).logits.item()
    found = scorer.score_all(Sequences(scorer.backbone, [row], max_tokens=512, max_bytes=0)).item()
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_two_parts_share_no_prompt_and_the_same_test(
    workspace: Launch, reward_config: MakeConfig, load_tiny: Callable[..., Backbone]
) -> None:
    path = workspace.workspace / "preferences.jsonl"
    write_rows(path, planted_rows(160))
    codec = load_tiny().codec
    parts = {
        part: load_ratings(path, codec, reward_config(prompt_part=part, seed=0), 128)
        for part in ("all", "main", "judge")
    }
    groups = {
        part: {pair.group_id for split in ("train", "validation") for pair in data.pairs[split]}  # type: ignore[index]
        for part, data in parts.items()
    }
    assert groups["main"].isdisjoint(groups["judge"])
    assert groups["main"] | groups["judge"] == groups["all"]
    # 30 % of the families belong to the judge; families are few here
    assert 0.1 < len(groups["judge"]) / len(groups["all"]) < 0.5
    assert [p.group_id for p in parts["main"].pairs["test"]] == [
        p.group_id for p in parts["judge"].pairs["test"]
    ]


def test_near_duplicate_prompts_stay_in_one_split(
    workspace: Launch, reward_config: MakeConfig, load_tiny: Callable[..., Backbone]
) -> None:
    snapshot_of(workspace, ())
    root = workspace.workspace / "snapshot"
    text = "please tell me one more tale of the old man and the {} birds in the rain"
    for split, colour in (("train", "red"), ("test", "red,")):
        rows = [json.loads(line) for line in (root / f"{split}.jsonl").read_text().splitlines()]
        rows[0]["prompt"] = text.format(colour)
        write_rows(root / f"{split}.jsonl", rows)
    codec = load_tiny().codec
    for threshold, moved in ((0.0, 0), (0.8, 1)):
        data = load_ratings(root, codec, reward_config(near_duplicates=threshold), 128)
        homes = [
            split
            for split, pairs in data.pairs.items()
            for pair in pairs
            if pair.preference.prompt[0].content.startswith("please tell")
        ]
        assert data.num_moved >= moved
        assert len(set(homes)) == 2 - moved


def test_rankings_count_once_whichever_way(
    workspace: Launch, reward_config: MakeConfig, load_tiny: Callable[..., Backbone]
) -> None:
    root = workspace.workspace / "snapshot"
    for number, split in enumerate(SPLITS):
        ask = f"{NOUNS[number]} " * 4
        both = {"prompt": ask, "judgement_id": f"j{number}"}
        pairs = [("a", "b"), ("a", "c"), ("b", "c")]
        write_rows(
            root / f"{split}.jsonl", [both | {"chosen": x, "rejected": y, "weight": 1 / 3} for x, y in pairs]
        )
        write_rows(
            root / "rankings" / f"{split}.jsonl",
            [both | {"completions": ["a", "b", "c"], "ranks": [1, 2, 3]}],
        )
    codec = load_tiny().codec
    as_pairs = load_ratings(root, codec, reward_config(), 128)
    assert (len(as_pairs.pairs["train"]), len(as_pairs.rankings["train"])) == (3, 0)
    as_list = load_ratings(root, codec, reward_config(rankings="plackett-luce"), 128)
    assert (len(as_list.pairs["train"]), len(as_list.rankings["train"])) == (0, 1)
    assert len(as_list.pairs["test"]) == 3


# ---- stopping inside an epoch, memory, search ----------------------------------------------------------------


def test_a_stop_inside_an_epoch_loses_no_step(
    workspace: Launch, reward_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(workspace.workspace / "preferences.jsonl", planted_rows(160))
    config = reward_config(ensemble=2, save_steps=2)
    whole = trained(workspace, config, "whole")
    checks: list[int] = []
    check = SignalGuard.check

    def stopping(self: SignalGuard) -> None:
        checks.append(1)
        if len(checks) == 12:  # two for the trunk, then one a step: inside the second epoch
            self.received = 15
        check(self)

    with monkeypatch.context() as patch:
        patch.setattr(SignalGuard, "check", stopping)
        with pytest.raises(Stopped):
            trained(workspace, config)
    out = workspace.workspace / "runs" / "reward"
    state = load_state(checkpoints(out / "checkpoints")[-1])
    assert 0 < state["step"] < 8
    reward_train.run(config, replace(workspace, out=out, resume=True))
    assert read_metrics(out / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl")
    for name in ("adapter_model.safetensors", "heads.safetensors", "reward.json"):
        assert (out / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()


def test_out_of_memory_halves_the_micro_batch_and_changes_no_step(
    workspace: Launch, reward_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(workspace.workspace / "preferences.jsonl", planted_rows(160))
    config = reward_config(num_epochs=1, lora={"r": 4, "alpha": 8})
    whole = trained(workspace, config, "whole")
    last_hidden, trunk = Sequences.last_hidden, Backbone.trunk
    refused: list[int] = []

    def narrow_trunk(self: Backbone, tokens_BS: torch.Tensor) -> torch.Tensor:
        if tokens_BS.numel() > 400:
            refused.append(tokens_BS.numel())
            raise torch.OutOfMemoryError("planted")
        return trunk(self, tokens_BS)

    def narrow(self: Sequences, role: str, batch: Any) -> Any:
        if batch.tokens_BS.numel() > 200 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("planted")
        return last_hidden(self, role, batch)

    monkeypatch.setattr(Sequences, "last_hidden", narrow)
    monkeypatch.setattr(Backbone, "trunk", narrow_trunk)
    out = trained(workspace, config)
    # the trunk's pass was halved until it fitted, and the steps began from there
    assert refused == sorted(refused, reverse=True)
    assert refused
    assert load_state(checkpoints(out / "checkpoints")[-1])["micro_batch_tokens"] <= 400
    assert read_metrics(out / "metrics.jsonl")[0] == pytest.approx(
        read_metrics(whole / "metrics.jsonl")[0], abs=1e-3
    )


def test_a_search_keeps_the_best_trial_and_goes_on_where_it_stopped(
    workspace: Launch, reward_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(workspace.workspace / "preferences.jsonl", planted_rows(100))
    config = reward_config(tune=3, num_epochs=2, lora={"r": 4, "alpha": 8})
    whole = trained(workspace, config, "whole")
    rows = [json.loads(line) for line in (whole / TRIALS).read_text().splitlines()]
    assert [row["trial"] for row in rows] == [0, 1, 2]
    assert rows[0]["lr"] == config.optim.lr
    assert len({row["lr"] for row in rows}) == 3
    best = min(row["validation_loss"] for row in rows)
    logged = [row["validation_loss"] for row in read_metrics(whole / "metrics.jsonl")]
    assert min(logged) == pytest.approx(
        best
    )  # trained again with the best trial's settings, to the same loss
    assert "best of 3 trials" in capsys.readouterr().out
    # one trial was finished when the run was killed
    out = workspace.workspace / "runs" / "reward"
    out.mkdir(parents=True)
    for name in ("config.yaml", "manifest.json"):
        (out / name).write_bytes((whole / name).read_bytes())
    write_rows(out / TRIALS, rows[:1])
    reward_train.run(config, replace(workspace, out=out, resume=True))
    assert (out / TRIALS).read_bytes() == (whole / TRIALS).read_bytes()
    name = "adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_missing_extra_is_named_before_anything_is_written(
    workspace: Launch, reward_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(workspace.workspace / "preferences.jsonl", planted_rows(100))

    # None in sys.modules is how Python marks a module that cannot be imported
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("reward.search", "rlhf.core.search"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"--tune needs optuna; .*rlhf-loop\[tune\]"):
        trained(workspace, reward_config(tune=2))
    assert not (workspace.workspace / "runs" / "reward").exists()
