"""Replay and KL to the base: shares and divergences worked out by hand, and what they do to a run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.core.backbone import Backbone, Role
from rlhf.core.config import load_settings
from rlhf.core.errors import ConfigError
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch, read_manifest
from rlhf.core.vocabulary import OutputHead
from sft.config import SFTConfig
from sft.data import Example
from sft.methods import add_method
from sft.remedies import REPLAY, KlToBase, sum_of_kl, with_replay
from sft.train import run
from sft.trainer import make_sampler


def test_replayed_rows_are_added_to_an_epoch() -> None:
    # 80 rows of tasks are 0.8 of an epoch: 20 replayed rows join them
    assert with_replay([80], [], 0.2) == (100, [0.8, 0.2])
    # tasks keep their proportions: 0.75 * 10/30, 0.75 * 20/30; or by their weights, 3 to 1
    assert with_replay([10, 20], [], 0.25) == (40, pytest.approx([0.25, 0.5, 0.25]))
    assert with_replay([10, 20], [3, 1], 0.2)[1] == pytest.approx([0.6, 0.2, 0.2])
    assert with_replay([2], [], 0.01) == (3, [0.99, 0.01])  # one row at least


def rows_of(number: int, replayed: int) -> list[list[Example]]:
    tasks = [""] * number + [REPLAY] * replayed
    return [[Example(i, f"g{i}", [i, i + 1, i + 2], [0, 1, 1], task)] for i, task in enumerate(tasks)]


def test_epochs_go_through_the_whole_replay_file(sft_options: Callable[..., dict[str, Any]]) -> None:
    config = SFTConfig(**sft_options(replay="r.jsonl", replay_share=0.2))
    sampler = make_sampler(rows_of(8, 10), config)
    assert sampler is not None
    seen: Counter[int] = Counter()
    for epoch in range(5):
        sampler.set_epoch(epoch)
        places = list(sampler)
        assert len(places) == len(sampler) == 10
        assert sorted(p for p in places if p < 8) == list(range(8))  # every row of the task once
        seen.update(p for p in places if p >= 8)
    assert seen == Counter(range(8, 18))  # 2 an epoch, so that 5 epochs read all 10


def logits_as_hidden(rows: list[list[float]]) -> tuple[OutputHead, Tensor]:
    """An output matrix that hands its input on, so that hidden states are the logits."""
    linear = nn.Linear(len(rows[0]), len(rows[0]), bias=False)
    nn.init.eye_(linear.weight)
    return OutputHead(linear.requires_grad_(False), None), torch.tensor(rows)


def test_kl_to_the_base_by_hand() -> None:
    # base (1/2, 1/2), tuned (1/4, 3/4): 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3). The second token is as it was: 0.
    head, base_NH = logits_as_hidden([[0.0, 0.0], [1.0, 2.0]])
    tuned_NH = torch.tensor([[0.0, math.log(3)], [3.0, 4.0]], requires_grad=True)
    for rows in (None, 1):  # in one piece or one token at a time
        tuned_NH.grad = None
        total = sum_of_kl(head, base_NH, head, tuned_NH, rows)
        assert total.item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
        total.backward()
        # d KL / d logit = p_tuned - p_base
        assert tuned_NH.grad is not None
        assert tuned_NH.grad.tolist() == [pytest.approx([-0.25, 0.25]), pytest.approx([0.0, 0.0], abs=1e-6)]
    with torch.no_grad():
        assert sum_of_kl(head, base_NH, head, tuned_NH).item() == pytest.approx(
            0.5 * math.log(4 / 3), abs=1e-6
        )


@pytest.fixture
def world(load_tiny: Callable[..., Backbone]) -> Callable[[SFTConfig], tuple[Backbone, Role]]:
    """A backbone with a role whose adapter does something."""

    def make(config: SFTConfig) -> tuple[Backbone, Role]:
        backbone = load_tiny(num_layers=2)
        role = add_method(backbone, "policy", config, [1, 2])
        with torch.no_grad():
            for parameter in role.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
        return backbone, role

    return make


def batch_of(*rows: tuple[list[int], int]) -> dict[str, Tensor]:
    """(tokens, first target) rows padded with 0, as a collator makes them."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([r + [0] * (width - len(r)) for r, _ in rows])
    labels = torch.tensor([[-100] * f + r[f:] + [-100] * (width - len(r)) for r, f in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r, _ in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@pytest.mark.parametrize(("method", "tokens"), [("lora", "all"), ("lora", "replay"), ("full", "all")])
def test_the_term_is_the_divergence_of_the_models_own_logits(
    method: str,
    tokens: str,
    world: Callable[[SFTConfig], tuple[Backbone, Role]],
    sft_options: Callable[..., dict[str, Any]],
) -> None:
    """Against whole logits of both models, on the rows and tokens that count."""
    config = SFTConfig(**sft_options(method=method, kl_to_base=0.5, kl_tokens=tokens, replay="r.jsonl"))
    backbone, role = world(config)
    first, second = ([5, 9, 11, 7], 2), ([8, 6, 4], 1)
    rows = [[Example(1, "a", first[0], [0, 0, 1, 1])], [Example(2, "b", second[0], [0, 1, 1], REPLAY)]]
    term = KlToBase(
        backbone, role, config, rows
    )  # method full trains the loaded model: the base is kept here
    inputs = batch_of(first, second)
    with torch.no_grad():
        before = backbone.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        if method == "full":
            backbone.model.get_input_embeddings().weight.mul_(2.0)
    with term.watching():
        after = role.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    base, tuned = before.log_softmax(-1), after.log_softmax(-1)
    kl_BT = (base.exp() * (base - tuned)).sum(-1)
    # targets stand one place after what predicts them
    counted = kl_BT[0, 1:3].tolist() + kl_BT[1, 0:2].tolist() if tokens == "all" else kl_BT[1, 0:2].tolist()
    found, mean = term.term(inputs, 8)
    assert sum(counted) > 0.01
    assert found.item() == pytest.approx(0.5 * sum(counted) / 8, rel=1e-4)
    assert mean == pytest.approx(sum(counted) / len(counted), rel=1e-4)
    found.backward()
    assert all(p.grad is not None for p in role.parameters())
    # what is not watched is not kept
    role.model(input_ids=inputs["input_ids"])
    with pytest.raises(AssertionError):
        term.term(inputs, 8)


def test_a_part_of_a_batch_without_counted_tokens_adds_nothing(
    world: Callable[[SFTConfig], tuple[Backbone, Role]], sft_options: Callable[..., dict[str, Any]]
) -> None:
    config = SFTConfig(**sft_options(kl_to_base=1.0, kl_tokens="replay", replay="r.jsonl"))
    backbone, role = world(config)
    term = KlToBase(backbone, role, config, rows_of(1, 1))
    inputs = batch_of(([5, 9, 11], 1))
    with term.watching():
        role.model(input_ids=inputs["input_ids"])
    found, mean = term.term(inputs, 2)
    assert (found.item(), mean) == (0.0, None)  # not a KL of 0, which would lower the mean that is logged
    found.backward()  # as every part of a batch is


def test_a_run_with_both_remedies_stays_nearer_to_the_base(
    sft_options: Callable[..., dict[str, Any]], workspace: Launch, tmp_path: Path
) -> None:
    replay = tmp_path / "replay.jsonl"
    texts = ("the cat sat on a mat", "an old man told one more tale", "red green blue birds")
    replay.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def launch(name: str) -> Launch:
        return Launch(workspace=workspace.workspace, db=workspace.db, out=tmp_path / name)

    options = {"num_epochs": 4, "num_samples": 0}
    run(SFTConfig(**sft_options(**options, kl_to_base=1e-9)), launch("none"))
    changes = {"kl_to_base": 20.0, "replay": str(replay), "replay_share": 0.3}
    run(SFTConfig(**sft_options(**options, **changes)), launch("both"))
    last = {}
    for name in ("none", "both"):
        rows = [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if "kl_to_base" in row]
        assert rows[0]["kl_to_base"] == pytest.approx(0.0, abs=1e-5)  # the adapter begins as nothing
        last[name] = rows[-1]["kl_to_base"]
    assert last["both"] < 0.5 * last["none"]
    manifest = read_manifest(tmp_path / "both")
    assert manifest.parents.keys() == {"data", "base", "replay"}
    # the loss that chooses the best step is the task's alone
    assert manifest.metrics["num_validation"] == read_manifest(tmp_path / "none").metrics["num_validation"]


def test_kl_on_replayed_tokens_needs_replayed_rows() -> None:
    with pytest.raises(ConfigError, match="kl_tokens is replay, and replay names no file"):
        load_settings(SFTConfig, None, ["--kl-to-base", "1", "--kl-tokens", "replay"], "rlhf sft")
    with pytest.raises(ConfigError, match="kl_to_base is 0; expected a weight above 0"):
        load_settings(SFTConfig, None, ["--kl-tokens", "replay", "--replay", "r.jsonl"], "rlhf sft")
