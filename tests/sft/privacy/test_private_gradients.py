"""DP-SGD by hand: each demonstration's gradient, its clipping, the noise, and batches as the accountant assumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf.core.backbone import Backbone, Role
from rlhf.core.errors import CheckpointError, ConfigError
from rlhf.core.guards import TokenBudget
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings
from sft.data import Example, load_examples
from sft.privacy.accountant import spent_epsilon
from sft.privacy.gradients import ExampleGradients, recorded
from sft.privacy.trainer import PrivateTrainer, example_losses, poisson_batch
from sft.watch import Validation


@pytest.fixture(scope="module")
def adapted(tiny_model: Callable[..., Path]) -> tuple[Backbone, Role]:
    """A tiny Llama with a LoRA adapter that already changes something, so that both matrices have gradients."""
    backbone = Backbone.load(
        tiny_model(chat_template=True, context=64, num_layers=2), ModelSettings(device="cpu"), name="b"
    )
    role = backbone.add_role("policy", LoraSettings(r=3, alpha=6, adapter_layers=1.0), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return backbone, role


@pytest.fixture(scope="module")
def examples(adapted: tuple[Backbone, Role], tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [
        {"prompt": f"say {c}", "completion": c * n}
        for c, n in zip("abcdef", (2, 9, 4, 1, 14, 6), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(path, adapted[0].codec, max_tokens=64)[0]


def made(adapted: tuple[Backbone, Role], examples: list[Example], **changes: Any) -> PrivateTrainer:
    backbone, role = adapted
    options: dict[str, Any] = {
        "batch_size": 2,
        "num_epochs": 1,
        "eval_steps": None,
        "patience": 1,
        "max_grad_norm": 0.05,
        "noise_multiplier": 1.0,
        "budget": TokenBudget(10_000),
        "collector": ExampleGradients(),
        "validate": lambda: Validation(1.0, {}),
    }
    values = options | changes
    return PrivateTrainer(backbone, role, examples, OptimSettings(), values.pop("collector"), **values)


def one_by_one(adapted: tuple[Backbone, Role], examples: list[Example]) -> list[list[torch.Tensor]]:
    """Each example's gradients through the model's own layers, one backward pass each."""
    backbone, role = adapted
    found = []
    for example in examples:
        losses, counts = example_losses(backbone, role, [example])
        found.append(list(torch.autograd.grad((losses / counts).sum(), role.parameters())))
    return found


def norm_of(gradients: list[torch.Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradients]).norm())


def test_clipping_by_hand() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    other = torch.nn.Parameter(torch.zeros(1))
    collector = ExampleGradients()
    # norms 5 (clipped to 1: a fifth), 0.5 (left), and 13 over both parameters together (clipped: a 13th)
    collector.add(weight, torch.tensor([[3.0, 4.0], [0.3, 0.4], [3.0, 4.0]]))
    collector.add(other, torch.tensor([[0.0], [0.0], [12.0]]))
    (first, second), norms = collector.clipped_sums([weight, other], 1.0)
    assert norms.tolist() == pytest.approx([5.0, 0.5, 13.0])
    assert first.tolist() == pytest.approx([0.6 + 0.3 + 3 / 13, 0.8 + 0.4 + 4 / 13])
    assert second.tolist() == pytest.approx([12 / 13])


def test_what_is_not_finite_counts_as_nothing() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    collector = ExampleGradients()
    collector.add(weight, torch.tensor([[float("nan"), 1.0], [0.3, 0.4], [float("inf"), 0.0]]))
    (total,), _ = collector.clipped_sums([weight], 1.0)
    assert total.tolist() == pytest.approx([0.3, 0.4])


def test_each_example_has_its_own_gradient(adapted: tuple[Backbone, Role], examples: list[Example]) -> None:
    _, role = adapted
    alone = one_by_one(adapted, examples)
    norms = [norm_of(gradients) for gradients in alone]
    limit = (sorted(norms)[2] + sorted(norms)[3]) / 2  # three of the six are clipped
    expected = [
        sum(g[k] * min(1.0, limit / norm) for g, norm in zip(alone, norms, strict=True))
        for k in range(len(role.parameters()))
    ]
    for tokens in (10_000, 40):  # in one pass, and in several
        with recorded(role.model) as collector:
            trainer = made(adapted, examples, max_grad_norm=limit, collector=collector)
            sums, figures = trainer._gradients(examples, tokens, lambda: None)
        for total, wanted in zip(sums, expected, strict=True):
            assert torch.allclose(total, wanted, atol=1e-5)
        assert figures["clipped"] == pytest.approx(3 / 6)
        assert figures["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
    # one more demonstration moves the sum by at most the clipping norm: what the noise is measured by
    with recorded(role.model) as collector:
        trainer = made(adapted, examples, max_grad_norm=limit, collector=collector)
        whole, _ = trainer._gradients(examples, 10_000, lambda: None)
        less, _ = trainer._gradients(examples[:-1], 10_000, lambda: None)
    assert norm_of([a - b for a, b in zip(whole, less, strict=True)]) <= limit * (1 + 1e-4)


def test_a_pass_that_ran_out_of_memory_leaves_nothing(
    adapted: tuple[Backbone, Role], examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients that it had collected would else be added to those of other demonstrations."""
    _, role = adapted
    with recorded(role.model) as collector:
        trainer = made(adapted, examples, collector=collector)
        expected, _ = trainer._gradients(examples[:2], 10_000, lambda: None)
        for parameter in trainer.parameters:
            collector.add(parameter, torch.ones(2, *parameter.shape))
        found, _ = trainer._gradients(examples[:2], 10_000, lambda: None)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_steps_of_another_cost_are_not_gone_on_with(
    adapted: tuple[Backbone, Role], examples: list[Example]
) -> None:
    trainer = made(adapted, examples)
    trainer.load_state_dict(trainer.state_dict())
    with pytest.raises(CheckpointError, match=r"had noise_multiplier 1, .*; now it is noise_multiplier 2, "):
        made(adapted, examples, noise_multiplier=2.0).load_state_dict(trainer.state_dict())
    with pytest.raises(CheckpointError, match=r"sample_rate 0\.5"):
        made(adapted, examples, batch_size=3).load_state_dict(trainer.state_dict())


def test_the_layers_are_as_before_when_the_block_ends(
    adapted: tuple[Backbone, Role], examples: list[Example]
) -> None:
    backbone, role = adapted
    before, _ = example_losses(backbone, role, examples)
    forwards = {name: m.forward for name, m in role.model.named_modules() if hasattr(m, "lora_A")}
    with recorded(role.model):
        inside, _ = example_losses(backbone, role, examples)
    after, _ = example_losses(backbone, role, examples)
    assert torch.equal(before, after)
    assert torch.allclose(before, inside, atol=1e-4)
    for name, module in role.model.named_modules():
        if name in forwards:
            assert module.forward is forwards[name]
            assert hasattr(module, "merged_weight")


def test_other_adapters_are_refused(tiny_model: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(num_layers=2))
    model = get_peft_model(model, LoraConfig(use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="plain LoRA"), recorded(model):
        pass


def test_the_noise_has_the_deviation_that_is_accounted_for(
    adapted: tuple[Backbone, Role], examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An empty batch: the gradient is the noise alone, of deviation 2.5 * 0.05 / 2.
    _, role = adapted
    weights = [p.detach().clone() for p in role.parameters()]
    trainer = made(adapted, examples, noise_multiplier=2.5)
    monkeypatch.setattr(trainer, "sample_rate", 0.0)
    seen: list[list[torch.Tensor]] = []

    def look() -> None:
        seen.append([p.grad.detach().clone() for p in trainer.parameters])

    monkeypatch.setattr(trainer.optimizer, "step", look)
    monkeypatch.setattr(trainer.schedule, "step", lambda: None)
    for _ in range(12):
        figures = trainer.train_step(lambda: None)
    assert figures["batch"] == 0
    assert "loss" not in figures
    drawn = torch.stack([torch.cat([g.flatten() for g in step]) for step in seen])
    # twelve times about 2,000 numbers: the deviation is known to 0.5 %
    assert drawn.std().item() == pytest.approx(2.5 * 0.05 / 2, rel=0.03)
    assert abs(drawn.mean().item()) < 0.002
    correlation = np.corrcoef(drawn[0].numpy(), drawn[1].numpy())[0, 1]
    assert abs(correlation) < 0.1
    # the same key and step: the same noise; it does not come from the run's seed, and all bits of the key count
    again = made(adapted, examples, noise_multiplier=2.5)
    assert again.key != trainer.key
    again.key, again.step = trainer.key, 11
    monkeypatch.setattr(again, "sample_rate", 0.0)
    monkeypatch.setattr(again.optimizer, "step", lambda: None)
    monkeypatch.setattr(again.schedule, "step", lambda: None)
    monkeypatch.setattr(again.optimizer, "zero_grad", lambda **_: None)
    again.train_step(lambda: None)
    assert all(torch.equal(p.grad, g) for p, g in zip(again.parameters, seen[11], strict=True))
    again.key, again.step = trainer.key ^ 1 << 100, 11
    again.train_step(lambda: None)
    assert not any(torch.equal(p.grad, g) for p, g in zip(again.parameters, seen[11], strict=True))
    for parameter, weight in zip(role.parameters(), weights, strict=True):
        assert torch.equal(parameter, weight)
        parameter.grad = None


def test_batches_are_poisson() -> None:
    generator = np.random.default_rng(1)
    batches = [poisson_batch(200, 0.1, generator) for _ in range(2000)]
    sizes = np.array([len(batch) for batch in batches])
    # binomial: mean 20, variance 200 * 0.1 * 0.9 = 18
    assert sizes.mean() == pytest.approx(20, abs=0.4)
    assert sizes.var() == pytest.approx(18, rel=0.12)
    counts = np.bincount([i for batch in batches for i in batch], minlength=200)
    assert counts.min() > 140  # each 200 times on average, deviation 13.4
    assert counts.max() < 260
    together = sum(0 in batch and 1 in batch for batch in batches)  # independent: 2000 * 0.01
    assert 6 <= together <= 38
    assert poisson_batch(5, 1.0, generator) == [0, 1, 2, 3, 4]


def test_the_accountant_agrees_with_the_formula_of_one_step() -> None:
    # Without subsampling one step is the Gaussian mechanism, whose delta for an epsilon is known exactly (Balle and
    # Wang, arXiv:1805.06530): Phi(1 / 2s - es) - exp(e) Phi(-1 / 2s - es).
    phi, sigma = NormalDist().cdf, 1.5
    epsilon = spent_epsilon(sigma, 1.0, 1, 1e-5)
    delta = phi(1 / (2 * sigma) - epsilon * sigma) - np.exp(epsilon) * phi(-1 / (2 * sigma) - epsilon * sigma)
    assert delta == pytest.approx(1e-5, rel=0.1)
    assert delta <= 1e-5
    assert spent_epsilon(sigma, 1.0, 0, 1e-5) == 0
