"""The native engine and trl's trainers: the same tokens, and the loss that plain transformers and the formula give."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.errors import Stopped
from rlhf.core.records import Message
from rlhf.core.run import Launch, is_finished
from rlhf.preference import trl_engine
from rlhf.preference.config import PreferConfig
from rlhf.preference.data import load
from rlhf.preference.train import run
from rlhf.preference.trainer import OfflineTrainer

Make = Callable[..., PreferConfig]
AS_TRL = {"ties": "ignore", "use_weights": False}


def native_trainer(
    config: PreferConfig, launch: Launch, load_tiny: Callable[..., Backbone], **model: Any
) -> OfflineTrainer:
    """A trainer whose adapter differs from the reference."""
    backbone = load_tiny(**model)
    data = load(launch.workspace / "snapshots" / "1", backbone.codec, config, backbone.codec.max_tokens)
    trainer = OfflineTrainer(backbone, data, config)
    generator = torch.Generator().manual_seed(7)
    for parameter in trainer.parameters:
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return trainer


@torch.no_grad()
def plain_logprob(model: Any, prompt: list[int], completion: list[int]) -> float:
    """log p(completion | prompt) by transformers alone."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].double()
    log_p = torch.log_softmax(logits, -1)
    return sum(log_p[len(prompt) - 1 + k, token].item() for k, token in enumerate(completion))


def log_ratio(trainer: OfflineTrainer, prompt: list[int], completion: list[int]) -> float:
    roles = trainer.backbone.roles
    policy = plain_logprob(trainer.role.causal_lm, prompt, completion)
    return policy - plain_logprob(roles[REFERENCE].causal_lm, prompt, completion)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("method", ["dpo", "ipo", "robust"])
def test_both_engines_have_the_loss_of_the_formula(
    method: str,
    prefer_config: Make,
    prefer_launch: Launch,
    load_tiny: Callable[..., Backbone],
    tmp_path: Path,
) -> None:
    config = prefer_config(method, beta=0.2, **AS_TRL)
    native = native_trainer(config, prefer_launch, load_tiny)
    trainer = trl_engine.make_trainer(native, tmp_path / "trl")
    rows = list(trainer.train_dataset)
    expected = []
    for row in rows:
        d = [log_ratio(native, row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")]
        if method == "ipo":
            each = [r / len(row[f"{side}_ids"]) for r, side in zip(d, ("chosen", "rejected"), strict=True)]
            expected.append((each[0] - each[1] - 1 / 0.4) ** 2)
            continue
        z = 0.2 * (d[0] - d[1])
        flip = 0.1 if method == "robust" else 0.0
        expected.append(((1 - flip) * softplus(-z) - flip * softplus(z)) / (1 - 2 * flip))
    mean = sum(expected) / len(expected)
    assert native.measure(native.examples)["loss"] == pytest.approx(mean, rel=1e-4)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    assert loss.item() == pytest.approx(mean, rel=1e-4)


def test_kto_has_the_loss_of_the_formula(
    prefer_config: Make, prefer_launch: Launch, load_tiny: Callable[..., Backbone], tmp_path: Path
) -> None:
    config = prefer_config("kto", beta=0.3, batch_size=8, **AS_TRL)
    native = native_trainer(config, prefer_launch, load_tiny)
    trainer = trl_engine.make_trainer(native, tmp_path / "trl")
    rows = [trainer.train_dataset[i] for i in range(8)]  # the first batch
    z = max(0.0, sum(log_ratio(native, r["prompt_ids"], r["KL_completion_ids"]) for r in rows) / len(rows))
    pulls = [0.3 * (log_ratio(native, r["prompt_ids"], r["completion_ids"]) - z) for r in rows]
    expected = [
        1 / (1 + math.exp(pull if row["label"] else -pull)) for pull, row in zip(pulls, rows, strict=True)
    ]
    assert {row["label"] for row in rows} == {True, False}
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)

    # The native engine pairs each prompt with a completion of another one: the same formula with its own z.
    cut = [trl_engine._cut(native, e.kl_row) for e in native.examples]
    z = max(0.0, sum(log_ratio(native, *pair) for pair in cut) / len(cut))
    total = weight = 0.0
    for example in native.examples:
        pull = 0.3 * (log_ratio(native, *trl_engine._cut(native, example.row)) - z)
        total += example.weight * (example.good / (1 + math.exp(pull)) + example.bad / (1 + math.exp(-pull)))
        weight += example.weight
    assert native.measure(native.examples)["loss"] == pytest.approx(total / weight, rel=1e-4)


@pytest.mark.parametrize("chat_template", [False, True])
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_trl_sees_the_tokens_of_the_codec(
    method: str,
    chat_template: bool,
    prefer_config: Make,
    prefer_launch: Launch,
    load_tiny: Callable[..., Backbone],
    tmp_path: Path,
) -> None:
    config = prefer_config(method, **AS_TRL)
    native = native_trainer(config, prefer_launch, load_tiny, chat_template=chat_template)
    codec = native.backbone.codec
    trainer = trl_engine.make_trainer(native, tmp_path / "trl")
    source = prefer_launch.workspace / "snapshots" / "1"
    data = load(source, codec, config, codec.max_tokens)
    expected = {
        (tuple(ids[:length]), tuple(ids[length:]))
        for ids, length in zip(data.rows, data.prompt_lengths, strict=True)
    }
    names = ("completion_ids", "KL_completion_ids") if method == "kto" else ("chosen_ids", "rejected_ids")
    seen = {(tuple(row["prompt_ids"]), tuple(row[names[0]])) for row in trainer.train_dataset}
    assert seen <= expected
    assert all(row[name][-1] == codec.end_token_id for row in trainer.train_dataset for name in names)
    # one of them in full: 'tell of cat 0' was answered by 'the mat thank cat'
    message = Message(role="user", content="tell of cat 0")
    one = (tuple(codec.prompt_ids([message])), tuple(codec.completion_ids("the mat thank cat")))
    assert one in seen
    # what reaches the model: the collator joins them as they are, padded on the right with an id that ends nothing
    batch = trainer.data_collator([trainer.train_dataset[0]])
    first = trainer.train_dataset[0]
    whole = [*first["prompt_ids"], *first[names[0]]]
    assert batch["input_ids"][0, : len(whole)].tolist() == whole
    assert trainer.data_collator.pad_token_id == codec.pad_token_id


def test_a_stopped_trl_run_goes_on_to_the_same_bits(
    prefer_config: Make, prefer_launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prefer_config("kto", engine="trl", num_epochs=1, **AS_TRL)
    whole = replace(prefer_launch, out=prefer_launch.workspace / "runs" / "whole")
    run(config, whole)
    trainer_class = trl_engine.VerdictTrainer
    calls = 0
    step = trainer_class.compute_loss

    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer_class, "compute_loss", stopped)
    with pytest.raises(Stopped):
        run(config, prefer_launch)
    monkeypatch.undo()
    run(config, replace(prefer_launch, resume=True))
    assert whole.out is not None
    assert prefer_launch.out is not None
    assert is_finished(prefer_launch.out)
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl"):
        assert (prefer_launch.out / name).read_bytes() == (whole.out / name).read_bytes(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "simpo"}, "engine trl trains dpo, ipo, robust, kto"),
        ({"method": "grpo"}, "engine trl trains dpo, ipo, robust, kto"),
        ({}, "engine trl has no place for ties = half; expected ignore, or engine native"),
        ({"ties": "ignore"}, "engine trl has no place for use_weights = True; expected false"),
        ({**AS_TRL, "margin_scale": 1.0}, "no place for margin_scale = 1.0"),
        ({**AS_TRL, "budget_seconds": 5.0}, "no place for budget_seconds = 5.0"),
    ],
)
def test_what_trl_has_no_place_for_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferConfig.model_validate({"engine": "trl"} | changes)
