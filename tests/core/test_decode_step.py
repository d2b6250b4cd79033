"""The decoding step in few operations against transformers' own, and which models it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rlhf.core import decode_step as module
from rlhf.core import onednn, sampler
from rlhf.core.backbone import Backbone
from rlhf.core.decode_step import decode_step
from rlhf.core.few_rows import FewRows, handy_rows
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import LoraSettings, SamplingSettings

LoadTiny = Callable[..., Backbone]
needs_onednn = pytest.mark.skipif(not onednn.AVAILABLE, reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models' layers are smaller than what is worth it."""
    monkeypatch.setattr(onednn, "MIN_ELEMENTS", 1)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@needs_onednn
@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("outputs", [48, 1008])  # with the other layer's 16: 64, and a page of numbers a row
def test_few_rows_multiply_as_one_layer_or_several(
    monkeypatch: pytest.MonkeyPatch, intel: bool, biased: bool, outputs: int
) -> None:
    monkeypatch.setattr(onednn, "is_intel", lambda: intel)
    layers = [nn.Linear(32, outputs, bias=biased), nn.Linear(32, 16, bias=False)]
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    with torch.no_grad():
        for x in (numbers(5, 32), numbers(2, 3, 32)):
            expected = torch.cat([layer(x) for layer in layers], dim=-1)
            torch.testing.assert_close(FewRows(weights, biases)(x), expected)
        y = numbers(5, outputs)
        expected = y + layers[0](numbers(5, 32))
        FewRows(weights[:1], biases[:1]).add_to(y, numbers(5, 32))
        torch.testing.assert_close(y, expected)


def test_rows_are_kept_in_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between 16 and 32: 24 and 32, or with MKL 20, 24, 28 and 32."""
    monkeypatch.setattr(onednn, "is_intel", lambda: False)
    assert [handy_rows(n) for n in (1, 4, 5, 6, 7, 9, 13, 16, 17, 24, 25, 33)] == [
        *(4, 4, 6, 6, 8, 12, 16, 16, 24, 24, 32, 48)
    ]
    assert all(onednn.recurs(handy_rows(n)) for n in range(1, 300))
    monkeypatch.setattr(onednn, "is_intel", lambda: True)
    assert [handy_rows(n) for n in (1, 5, 7, 9, 13, 17, 21, 25, 30, 33)] == [
        4,
        5,
        7,
        10,
        14,
        20,
        24,
        28,
        32,
        40,
    ]


def drawn(model: Any, backbone: Backbone, **options: Any) -> list[sampler.Sampled]:
    prompts = [[1, 7, 9, 30], [1, 8], [1, 8], [1, 50, 60, 70, 80, 90], [1]]
    return sample(
        model,
        [Request(prompt, cursor) for cursor, prompt in enumerate(prompts)],
        SamplingSettings(max_completion_tokens=24),
        end_token_ids=list(range(100, 130)),
        seed=0,
        **options,
    )


# Llama's kind with and without biases or norms of heads, with heads that share keys; the others keep their own forward.
@needs_onednn
@pytest.mark.parametrize(
    ("architecture", "taken"),
    [
        ("llama", True),
        ("qwen2", True),
        ("mistral", False),
        ("qwen3", True),
        ("olmo2", False),
        ("gemma2", False),
        ("gpt2", False),
    ],
)
def test_sampling_gives_what_the_models_own_forward_gives(
    load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch, architecture: str, taken: bool
) -> None:
    backbone = load_tiny(architecture)
    role = backbone.add_role("policy", LoraSettings(r=4, alpha=12), seed=0)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.copy_(numbers(*parameter.shape) * 0.1)
    model = backbone.sampling_model("policy")
    assert (decode_step(model) is not None) == taken
    options: dict[str, Any] = {"capture_layer": 2, "read": lambda hidden_BH: hidden_BH.sum(1)}
    ours = drawn(model, backbone, **options)
    monkeypatch.setattr(sampler, "decode_step", lambda model: None)
    own = drawn(model, backbone, **options)
    assert max(len(row.tokens) for row in own) > 3
    for found, expected in zip(ours, own, strict=True):
        assert (found.tokens, found.finished) == (expected.tokens, expected.finished)
        torch.testing.assert_close(found.trunk_SH, expected.trunk_SH, atol=1e-4, rtol=1e-4)
        for name in ("logprobs", "readings"):
            torch.testing.assert_close(
                torch.tensor(getattr(found, name)),
                torch.tensor(getattr(expected, name)),
                atol=1e-3,
                rtol=1e-4,
            )


@needs_onednn
def test_a_model_that_only_looks_like_llama_keeps_its_own_forward(load_tiny: LoadTiny) -> None:
    """One layer scales its attention in a way that its names do not tell."""
    backbone = load_tiny("llama")
    attention = backbone.model.get_decoder().layers[1].self_attn
    own = attention.forward
    attention.forward = lambda *args, **kwargs: (own(*args, **kwargs)[0] * 1.01, None)
    assert decode_step(backbone.model) is None
    assert decode_step(backbone.model) is None
    del attention.forward
    assert module._agrees[backbone.model.get_decoder()] is False


@needs_onednn
def test_the_step_is_for_weights_of_now_in_fp32(load_tiny: LoadTiny) -> None:
    backbone = load_tiny("llama")
    assert decode_step(backbone.model) is not None
    assert decode_step(backbone.model.to(torch.bfloat16)) is None
