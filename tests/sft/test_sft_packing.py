"""Packed blocks, mixtures of tasks and noise on embeddings: what a step sees is what it should see."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf.core.backbone import Backbone
from rlhf.core.errors import ModelError
from rlhf.core.settings import ModelSettings
from sft.config import SFTConfig
from sft.data import Example, load_examples
from sft.methods import add_method
from sft.mixture import MixtureSampler, rows_per_task
from sft.noise import EmbeddingNoise, row_lengths
from sft.packing import blocks_of, require_separation, to_rows
from sft.train import ROLE, mean_loss
from sft.trainer import Trainer, make_trainer

Options = Callable[..., dict[str, Any]]


# ---- packing ------------------------------------------------------------------------------------------------


def test_blocks_are_filled_by_best_fit() -> None:
    # longest first: 9 alone (1 free), 7 alone (3 free), 6 alone (4 free), 3 fits best into the 3 free, 2 into the 4,
    # 2 into what is left of them, 1 into the first
    lengths = [3, 9, 2, 7, 6, 2, 1]
    assert blocks_of(lengths, 10) == [[1, 6], [3, 0], [4, 2, 5]]
    assert blocks_of([12, 3], 10) == [[0], [1]]  # one that is too long for any block goes alone


def test_a_block_holds_rows_of_one_task() -> None:
    examples = [
        Example(i, "g", [1] * n, [0] + [1] * (n - 1), "ab"[i % 2]) for i, n in enumerate([4, 4, 3, 3, 2, 2])
    ]
    rows = to_rows(examples, 16)
    assert [[e.task for e in row] for row in rows] == [["a"] * 3, ["b"] * 3]
    assert sorted(e.line for row in rows for e in row) == list(range(6))


def make(config: SFTConfig, folder: Path) -> tuple[Backbone, Any, list[Example], Trainer]:
    assert config.base
    backbone = Backbone.load(config.base, config.model)
    examples, _ = load_examples(Path(config.data[0]), backbone.codec, max_tokens=64)
    role = add_method(backbone, ROLE, config, examples[0].input_ids)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    return backbone, role, examples, make_trainer(backbone, role, examples, config, folder)


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    trainer.create_optimizer()
    batches = list(trainer.get_train_dataloader())
    targets = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    for batch in batches:
        trainer.training_step(trainer.model, dict(batch), targets)
    return [p.grad.clone() for p in trainer.role.parameters()]


def test_packed_rows_give_the_loss_and_the_gradients_of_single_rows(
    tmp_path: Path, sft_options: Options
) -> None:
    """The answer to whether rows of a block see each other: they do not, to the last digits."""
    still = {"r": 4, "alpha": 8, "adapter_layers": 1.0}
    options = sft_options(lora=still, batch_size=24, micro_batch_size=24, num_epochs=1)
    found = []
    for packing in (False, True):
        config = SFTConfig(**options, packing=packing)
        backbone, role, examples, trainer = make(config, tmp_path / str(packing))
        found.append(gradients(trainer))
        # loss on the first step, of another trainer so that nothing is trained yet
        backbone, role, examples, trainer = make(config, tmp_path / f"{packing}-2")
        before = mean_loss(backbone, role, examples, 1000)
        trainer.train()
        logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert logged == [pytest.approx(before, abs=1e-5)]
    rows = trainer.train_dataset
    assert len(rows) <= len(examples) / 2  # several rows a block
    assert all(len(row["input_ids"]) <= 64 for row in rows)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-3)


def test_a_packed_micro_batch_is_cut_when_memory_runs_out(tmp_path: Path, sft_options: Options) -> None:
    still = {"r": 4, "alpha": 8, "adapter_layers": 1.0}
    config = SFTConfig(**sft_options(lora=still, batch_size=24, micro_batch_size=24), packing=True)
    whole = gradients(make(config, tmp_path / "whole")[3])
    trainer = make(config, tmp_path / "cut")[3]
    trainer.budget.tokens = 64  # one block a pass
    for one, two in zip(whole, gradients(trainer), strict=True):
        torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "gemma3_text", "gpt_neox"])
def test_rows_of_a_block_are_separate_in_other_architectures(
    architecture: str, tiny_model: Callable[..., Path]
) -> None:
    require_separation(Backbone.load(tiny_model(architecture), ModelSettings(device="cpu")))


def test_a_model_that_mixes_rows_is_refused(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.load(tiny_model(num_layers=2), ModelSettings(device="cpu"))
    # one that takes the positions and builds no mask from them
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    with pytest.raises(ModelError, match="LlamaForCausalLM mixes the rows of a block; expected --no-packing"):
        require_separation(backbone)


def test_rounding_in_bfloat16_hides_no_mixing(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelSettings(device="cpu", dtype="bfloat16")
    backbone = Backbone.load(tiny_model(num_layers=2), settings)
    require_separation(backbone)
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    with pytest.raises(ModelError, match="mixes the rows of a block"):
        require_separation(backbone)


# ---- mixtures -----------------------------------------------------------------------------------------------


def test_shares_of_an_epoch() -> None:
    assert rows_per_task(10, [1, 1]) == [5, 5]
    assert rows_per_task(10, [2, 1]) == [7, 3]  # 6.67 and 3.33: the larger remainder gets the tenth row
    assert rows_per_task(10, [1000, 1]) == [9, 1]  # each task gets one at least


def test_a_mixture_keeps_its_shares_and_takes_rows_equally_often() -> None:
    places = [list(range(12)), list(range(12, 16))]  # 16 rows an epoch, halved: 8 of each task
    sampler = MixtureSampler(places, [1, 1], seed=3)
    epochs = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler) == 16
        assert sum(place < 12 for place in epochs[-1]) == 8
    # 48 rows of the first task are 4 passes over its 12, and of the second 12 over its 4
    counts = Counter(place for epoch in epochs for place in epoch)
    assert {counts[place] for place in range(12)} == {4}
    assert {counts[place] for place in range(12, 16)} == {12}
    assert epochs[0] != epochs[1]
    again = MixtureSampler(places, [1, 1], seed=3)
    again.set_epoch(4)  # as a resumed run begins
    assert list(again) == epochs[4]
    other = MixtureSampler(places, [1, 1], seed=4)
    assert list(other) != epochs[0]


# ---- noise --------------------------------------------------------------------------------------------------


def test_lengths_of_rows_behind_a_mask_and_in_a_block() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert row_lengths({"attention_mask": mask}).tolist() == [[4, 4, 4, 4], [2, 2, 0, 0]]
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert row_lengths({"position_ids": positions}).tolist() == [[3, 3, 3, 2, 2, 1], [6] * 6]


def test_the_noise_has_the_norm_of_the_paper_for_each_row_whatever_its_padding() -> None:
    embeddings, alpha = nn.Embedding(50, 64), 5.0
    noise = EmbeddingNoise(embeddings, alpha)
    lengths = [200, 20]
    mask = torch.tensor([[1] * n + [0] * (200 - n) for n in lengths])
    tokens = torch.randint(0, 50, mask.shape)
    clean = embeddings.weight[tokens]
    noise.prepare({"attention_mask": mask})
    added = embeddings(tokens) - clean
    for row, length in enumerate(lengths):
        of_row = added[row, :length]
        # uniform in [-a, a] with a = alpha / sqrt(L d): no number is beyond a, and the norm is about alpha / sqrt(3)
        assert of_row.abs().max() <= alpha / math.sqrt(length * 64) * 1.0001
        assert of_row.norm().item() == pytest.approx(alpha / math.sqrt(3), rel=0.05)
        assert (added[row, length:] == 0).all()
    embeddings.eval()
    assert torch.equal(embeddings(tokens), clean)


def test_noise_reaches_training_and_not_validation(tmp_path: Path, sft_options: Options) -> None:
    still = {"r": 4, "alpha": 8, "adapter_layers": 1.0}
    options = sft_options(lora=still, batch_size=24, micro_batch_size=24, num_epochs=1)
    losses = []
    for alpha in (0.0, 15.0):
        backbone, role, examples, trainer = make(
            SFTConfig(**options, neftune_alpha=alpha), tmp_path / f"{alpha}"
        )
        validated = mean_loss(backbone, role, examples, 1000)
        trainer.train()
        logged = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
        losses.append((validated, logged))
    assert losses[0][0] == losses[1][0] == pytest.approx(losses[0][1], abs=1e-4)
    assert abs(losses[1][1] - losses[1][0]) > 1e-3
