"""PPO on a backbone in bfloat16: adapters and head stay in fp32, and the ratio starts at 1 within its rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rlhf.ppo.prompts import PromptStream
from rlhf.ppo.train import PPOTrainer


@pytest.mark.parametrize("trunk_cache", [True, False])
def test_two_iterations_in_bf16(
    make_trainer: Callable[..., tuple[PPOTrainer, PromptStream]], trunk_cache: bool
) -> None:
    trainer, stream = make_trainer({"dtype": "bfloat16"}, trunk_cache=trunk_cache)
    base = list(trainer.backbone.model.parameters())
    assert all(p.dtype == torch.bfloat16 for p in base)
    assert all(p.dtype == torch.float32 for p in trainer.parameters)
    base_before = [p.detach().clone() for p in base]
    start = [p.detach().clone() for p in trainer.parameters]
    for _ in range(2):
        batch = trainer.collect(stream)
        assert batch.recomputed, "the update's own numbers, since the sampler's differ by bf16 rounding"
        stats = trainer.update(batch, trainer.targets(batch))
        assert stats.first_ratio_error < 0.05
        trainer.finish_iteration(0.0, len(batch.texts))
    assert any(not torch.equal(p, q) for p, q in zip(trainer.parameters, start, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(base, base_before, strict=True))
