"""Attention in fewer passes gives what the model's own gives, and only modules that it is for are changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.core.attention import fuse_attention, turn
from rlhf.core.backbone import Backbone

LoadTiny = Callable[..., Backbone]


def test_a_quarter_turn_swaps_a_pair() -> None:
    """At 90 degrees (x1, x2) becomes (-x2, x1); pairs are (0, 2) and (1, 3), and the second is not turned at all."""
    cos, sin = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    found = turn(torch.tensor([3.0, 5.0, 7.0, 9.0]), cos, sin)
    assert found.tolist() == [-7.0, 5.0, 3.0, 9.0]


# Layers of four that are changed. Qwen3 normalises its heads, SmolLM3 turns them in three of four layers.
@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        ("llama", 4),
        ("qwen2", 4),
        ("mistral", 4),
        ("smollm3", 3),
        ("qwen3", 4),
        ("olmo2", 0),
        ("gemma2", 0),
        ("gpt_neox", 0),
    ],
)
def test_values_and_gradients_are_the_models_own(load_tiny: LoadTiny, architecture: str, count: int) -> None:
    model = load_tiny(architecture).model
    tokens_BS = torch.arange(5, 45).reshape(2, 20)
    embedded_BSH = model.get_input_embeddings()(tokens_BS).detach()
    mask_BS = torch.ones_like(tokens_BS)
    mask_BS[0, :3] = 0

    def found() -> list[Tensor]:
        x_BSH = embedded_BSH.clone().requires_grad_()
        whole = model(inputs_embeds=x_BSH, use_cache=False).logits
        whole.square().sum().backward()
        assert x_BSH.grad is not None
        padded = model(input_ids=tokens_BS, attention_mask=mask_BS).logits[mask_BS.bool()]
        return [whole.detach(), x_BSH.grad, padded.detach()]

    before = found()
    assert fuse_attention(model) == count
    assert fuse_attention(model) == 0, "what has been changed is not changed again"
    for ours, own in zip(found(), before, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5 * own.abs().max().item())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_in_bf16_it_is_as_near_to_the_exact_numbers_as_the_models_own(
    load_tiny: LoadTiny, architecture: str
) -> None:
    tokens_BS = torch.arange(5, 45).reshape(2, 20)

    def logits(model: Any) -> Tensor:
        with torch.no_grad():
            return model(tokens_BS).logits.float()

    exact = logits(load_tiny(architecture).model)
    model = load_tiny(architecture, dtype="bfloat16").model
    own = logits(model)
    assert fuse_attention(model) == 4
    assert (logits(model) - exact).norm() <= 1.2 * (own - exact).norm() + 1e-3 * exact.norm()


def test_dropout_in_training_is_the_models_own(load_tiny: LoadTiny) -> None:
    """With everything dropped nothing is attended to; in eval mode nothing is dropped."""
    model = load_tiny("llama").model
    assert fuse_attention(model) == 4
    attention = model.get_decoder().layers[0].self_attn
    attention.attention_dropout = 1.0
    x_BSH, angles_BSD = torch.ones(1, 3, 32), torch.zeros(1, 3, 8)
    with torch.no_grad():
        assert attention(x_BSH, (angles_BSD.cos(), angles_BSD.sin()), None)[0].abs().max() > 0
        attention.train()
        assert attention(x_BSH, (angles_BSD.cos(), angles_BSD.sin()), None)[0].abs().max() == 0
