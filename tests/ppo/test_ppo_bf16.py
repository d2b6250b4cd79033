"""PPO on a backbone in bfloat16: adapters and head stay in fp32, and the ratio starts at 1 within its rounding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf.core.backbone import Backbone
from rlhf.core.settings import ModelSettings
from rlhf.ppo.prompts import PromptStream, load_prompts
from rlhf.ppo.train import PPOTrainer
from tests.ppo.conftest import WORDS, LetterReward, tiny_config


def base_hash(backbone: Backbone) -> str:
    digest = hashlib.sha256()
    for parameter in backbone.model.parameters():
        digest.update(parameter.detach().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("trunk_cache", [True, False])
def test_two_iterations_in_bf16(tiny_model: Callable[..., Path], tmp_path: Path, trunk_cache: bool) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a tale of {word}"}) + "\n" for word in WORDS))
    backbone = Backbone.load(tiny_model(), ModelSettings(device="cpu", dtype="bfloat16"), name="models/base")
    before = base_hash(backbone)
    config = tiny_config(trunk_cache=trunk_cache)
    prompts, _ = load_prompts(path, backbone.codec, room=8, drop_too_long=False)
    trainer, stream = (
        PPOTrainer(backbone, LetterReward(), config, max_tokens=32),
        PromptStream(prompts, config.seed),
    )
    assert all(p.dtype == torch.float32 for p in trainer.parameters)
    start = [p.detach().clone() for p in trainer.parameters]
    for _ in range(2):
        batch = trainer.collect(stream)
        assert batch.recomputed, "the update's own numbers, since the sampler's differ by bf16 rounding"
        stats = trainer.update(batch, trainer.targets(batch))
        assert stats.first_ratio_error < 0.05
        trainer.finish_iteration(0.0, len(batch.texts))
    assert any(not torch.equal(p, q) for p, q in zip(trainer.parameters, start, strict=True))
    assert base_hash(backbone) == before
