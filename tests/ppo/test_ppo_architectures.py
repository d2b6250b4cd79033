"""Two PPO iterations on every architecture that we name, with prompts beyond the sliding windows.

The windows of the tiny models are 8 tokens long, so a cache, a mask or a split that is wrong only beyond a
window is wrong here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.core.records import Prompt
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import SamplingSettings
from rlhf.ppo.prompts import EncodedPrompt, PromptStream
from rlhf.ppo.train import PPOTrainer

MakeTrainer = Callable[..., tuple[PPOTrainer, PromptStream]]
# Whether the layers below the adapters can be computed once: GPT-2 adds learned positions to its input twice.
TRUNK = {
    "llama": True,
    "qwen2": True,
    "qwen3": True,
    "mistral": True,
    "gemma2": True,
    "gemma3_text": True,
    "phi3": True,
    "gpt2": False,
    "gpt_neox": True,
    "olmo2": True,
    "smollm3": True,
}
WINDOWED = {"mistral", "gemma2", "gemma3_text"}
WINDOW = 8
PROMPT_LENGTHS = (20, 3, 9, 17, 8, 23)


def long_prompts(trainer: PPOTrainer) -> PromptStream:
    """Six prompts of random tokens: two within the window, four beyond it."""
    generator = torch.Generator().manual_seed(0)
    encoded = []
    for number, length in enumerate(PROMPT_LENGTHS):
        ids = torch.randint(5, trainer.backbone.vocab_size, (length,), generator=generator).tolist()
        encoded.append(EncodedPrompt(Prompt.model_validate({"prompt": f"prompt {number}"}), ids))
    return PromptStream(encoded, seed=0)


def base_hash(trainer: PPOTrainer) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(trainer.backbone.model.state_dict().items()):
        total.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def two_iterations(trainer: PPOTrainer) -> list[torch.Tensor]:
    """The trained weights afterwards. Both iterations must begin at ratio 1 and agree with the sampler."""
    stream = long_prompts(trainer)
    for iteration in range(2):
        batch = trainer.collect(stream)
        stats = trainer.update(batch, trainer.targets(batch))
        trainer.finish_iteration(0.0, len(batch.texts))
        moved = (batch.old_logprobs_BT - batch.ref_logprobs_BT).abs().max().item()
        assert (moved > 1e-3) == (iteration == 1), "the second rollout is of a policy that has learned"
        assert stats.first_ratio_error < 1e-4
        assert batch.sampler_gap < 1e-3
        assert stats.num_steps == 4
    return [p.detach().clone() for p in trainer.parameters]


@pytest.mark.parametrize("architecture", TRUNK)
def test_two_iterations(make_trainer: MakeTrainer, architecture: str) -> None:
    """With the trunk cache (or correctly without it) and without: the same weights, and a base nobody touched."""
    model = {"architecture": architecture}
    cached, _ = make_trainer(model)
    assert cached.backbone.trunk_enabled == TRUNK[architecture]
    assert cached.trunk_note.startswith("trunk cache on" if TRUNK[architecture] else "trunk cache off")
    config = cached.backbone.model.config.get_text_config()
    assert (getattr(config, "sliding_window", None) == WINDOW) == (architecture in WINDOWED)
    before = base_hash(cached)
    weights = two_iterations(cached)
    assert base_hash(cached) == before
    whole, _ = make_trainer(model, trunk_cache=False)
    for one, two in zip(weights, two_iterations(whole), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
    assert_greedy_equals_generate(cached)


def assert_greedy_equals_generate(trainer: PPOTrainer) -> None:
    """The trained policy, sampled greedily in one batch of mixed lengths, against transformers' own engine."""
    model = trainer.backbone.merged("policy")
    requests = [Request(encoded.ids, i) for i, encoded in enumerate(long_prompts(trainer).prompts)]
    settings = SamplingSettings(temperature=0, max_completion_tokens=16)

    def drawn(end: int) -> list[Any]:
        return sample(model, requests, settings, end_token_ids=[end], seed=0)

    # An end token that greedy decoding meets in some rows, so that rows leave the batch at different times.
    free = [row.tokens for row in drawn(trainer.backbone.codec.end_token_ids[0])]
    end = max(
        {t for row in free for t in row[2:]}, key=lambda t: 0 < sum(t in row for row in free) < len(free)
    )
    found = drawn(end)
    assert sum(row.finished for row in found) > 0
    for request, row in zip(requests, found, strict=True):
        output = model.generate(
            torch.tensor([list(request.prompt_ids)]),
            attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=end,
            pad_token_id=0,
        )
        assert row.tokens == output[0, len(request.prompt_ids) :].tolist()
