"""Memory that runs out costs smaller micro-batches and nothing else: same batch, same steps, same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import rlhf.ppo.measure as ppo_measure
import rlhf.ppo.train as ppo_train
import rlhf.ppo.update as ppo_update
from rlhf.core.errors import GuardStop
from rlhf.core.guards import TokenBudget
from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.prompts import PromptStream
from rlhf.ppo.train import PPOTrainer

MakeTrainer = Callable[..., tuple[PPOTrainer, PromptStream]]
ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ON_THE_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)


def room_for(monkeypatch: pytest.MonkeyPatch, module: Any, num_rows: int, error: RuntimeError) -> list[int]:
    """Passes of `module` with more rows than that run out of memory; the rows of every pass are recorded."""
    original, passes = module.token_logprobs_of, []

    def limited(backbone: Any, completions: Any, batch: Any, *args: Any, **options: Any) -> Any:
        passes.append(len(batch.indices))
        if len(batch.indices) > num_rows:
            raise error
        return original(backbone, completions, batch, *args, **options)

    monkeypatch.setattr(module, "token_logprobs_of", limited)
    return passes


def iterate(trainer: PPOTrainer, stream: PromptStream, count: int = 2) -> list[dict[str, float]]:
    rows = []
    for _ in range(count):
        batch = trainer.collect(stream)
        targets = trainer.targets(batch)
        stats = trainer.update(batch, targets)
        rows.append(trainer.figures(batch, targets, stats, {"rollout": 1.0, "update": 1.0}))
        trainer.finish_iteration(rows[-1]["kl"], len(batch.texts))
    return rows


@pytest.mark.parametrize("error", [ON_A_GPU, ON_THE_CPU])
@pytest.mark.parametrize("module", [ppo_measure, ppo_update])
def test_the_budget_is_halved_until_it_fits_and_the_result_is_the_same(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, module: Any, error: RuntimeError
) -> None:
    plain = make_trainer(num_prompts=12)
    expected = iterate(*plain)
    trainer, stream = make_trainer(num_prompts=12)
    with monkeypatch.context() as patch:
        passes = room_for(patch, module, 2, error)
        found = iterate(trainer, stream)
    assert max(passes) > 2  # memory did run out
    budgets = [row.pop("micro_batch_tokens") for row in found]
    assert [row.pop("micro_batch_tokens") for row in expected] == [16_384, 16_384]
    # at least a row of the longest kind, at most what two rows fill; once found it stays
    assert 8 < budgets[0] <= 64
    assert budgets[0] == budgets[1]
    for one, two in zip(expected, found, strict=True):
        for name in ("clip_share", "value_clip_share"):  # counts: rounding can move a token over the edge
            assert one.pop(name) == pytest.approx(two.pop(name), abs=0.02)
        assert one == pytest.approx(two, abs=1e-4, rel=1e-3)
        assert two["num_optimizer_steps"] == 4
    for one, two in zip(plain[0].parameters, trainer.parameters, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_a_step_begins_again_from_zero_gradients(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second micro-batch of a step, when the first has left its gradients."""
    steps: list[list[torch.Tensor]] = []

    def gradients(parameters: Any, max_norm: float) -> float:
        steps.append([p.grad.clone() for p in parameters])
        return 1.0

    monkeypatch.setattr(ppo_update, "clip_gradients", gradients)
    for fails in (False, True):
        trainer, stream = make_trainer(num_prompts=12, num_epochs=1, num_minibatches=1, micro_batch_tokens=50)
        batch = trainer.collect(stream)
        calls, original = [], ppo_update.policy_loss

        def loss(*args: Any, calls: Any = calls, fails: bool = fails, original: Any = original) -> Any:
            calls.append(1)
            if fails and len(calls) == 2:
                raise ON_A_GPU
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(ppo_update, "policy_loss", loss)
            trainer.update(batch, trainer.targets(batch))
        assert len(calls) > 3
    for one, two in zip(*steps, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_one_row_that_does_not_fit_stops_with_one_line(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, stream = make_trainer()
    batch = trainer.collect(stream)
    targets = trainer.targets(batch)
    room_for(monkeypatch, ppo_update, 0, ON_A_GPU)
    longest = max(batch.completions.sequences.lengths)
    with pytest.raises(GuardStop, match=r"out of memory with one row of \d+ tokens at a time") as caught:
        trainer.update(batch, targets)
    assert "\n" not in str(caught.value)
    assert trainer.budget.tokens < 2 * longest  # one row at a time was tried


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    budget = TokenBudget(100)

    def work(tokens: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        budget.fit(work, [10, 10])
    assert budget.tokens == 100


def test_the_budget_is_logged_and_is_part_of_the_state(
    ppo_launch: Launch,
    ppo_config: Callable[..., PPOConfig],
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        room_for(patch, ppo_update, 2, ON_A_GPU)
        ppo_train.run(ppo_config(eval_prompts=None), ppo_launch)
    assert ppo_launch.out is not None
    rows = read_metrics(ppo_launch.out / "metrics.jsonl")
    assert rows[-1]["micro_batch_tokens"] < 100
    trainer, _ = make_trainer()
    trainer.budget.tokens = 48
    other, _ = make_trainer()
    other.load_state_dict(trainer.state_dict())
    assert other.budget.tokens == 48
