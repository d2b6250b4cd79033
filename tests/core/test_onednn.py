"""fp32 products by oneDNN, and weights arranged for decoding: the same numbers, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from rlhf.core import onednn
from rlhf.core.backbone import Backbone
from rlhf.core.packed import packed
from rlhf.core.sampler import Request, sample
from rlhf.core.settings import LoraSettings, SamplingSettings

needs_onednn = pytest.mark.skipif(not onednn.AVAILABLE, reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models' layers are smaller than what is worth it."""
    monkeypatch.setattr(onednn, "MIN_ELEMENTS", 1)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("rows", [1, 4, 7, 24, 96])
@pytest.mark.parametrize("transposed", [False, True])
def test_linear_is_torchs(rows: int, transposed: bool) -> None:
    weight = numbers(48, 32).T.contiguous().T if transposed else numbers(48, 32)
    x, bias = numbers(rows, 32), numbers(48)
    for given in (x, x[None], x.T.contiguous().T):
        expected = nn.functional.linear(given, weight, bias)
        torch.testing.assert_close(onednn.linear(given, weight, bias), expected)


def test_only_numbers_of_rows_that_come_again_get_a_kernel() -> None:
    assert [rows for rows in range(-1, 33) if onednn.recurs(rows)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


def test_only_plain_fp32_weights_on_a_cpu_suit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onednn.suits(numbers(8, 8)) == onednn.AVAILABLE
    assert not onednn.suits(numbers(8, 8, dtype=torch.bfloat16))
    assert not onednn.suits(torch.empty(8, 8, device="meta"))
    monkeypatch.setattr(onednn, "MIN_ELEMENTS", 65)
    assert not onednn.suits(numbers(8, 8))
    x = numbers(4, 8)
    assert torch.equal(onednn.linear(x, numbers(8, 8)), nn.functional.linear(x, numbers(8, 8)))


def test_a_build_without_onednn_multiplies_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "AVAILABLE", False)
    monkeypatch.setattr(onednn, "times", None)
    x, weight = numbers(4, 8), numbers(8, 8)
    assert torch.equal(onednn.linear(x, weight), nn.functional.linear(x, weight))
    with packed(nn.Sequential(nn.Linear(8, 8))) as count:
        assert count == 0


def adapted(load_tiny: Callable[..., Backbone]) -> tuple[Backbone, Any]:
    backbone = load_tiny("llama")
    role = backbone.add_role("policy", LoraSettings(r=4, alpha=12), seed=0)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.copy_(numbers(*parameter.shape) * 0.3)
    return backbone, role


@needs_onednn
def test_a_packed_model_gives_the_same_and_is_left_as_it_was(load_tiny: Callable[..., Backbone]) -> None:
    backbone, _ = adapted(load_tiny)
    model = backbone.sampling_model("policy")
    before = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        with packed(model) as count:
            found = model(input_ids=tokens).logits
        after = model(input_ids=tokens).logits
    lora = [m for m in model.modules() if isinstance(m, LoraLayer)]
    # 7 linear layers in each decoder layer, with adapters or without, and the output matrix
    assert count == 7 * backbone.num_layers + 1
    assert 0 < len(lora) < count
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(after, expected)
    assert before == {name: module.__dict__.get("forward") for name, module in model.named_modules()}


@needs_onednn
def test_packed_weights_are_those_of_now(load_tiny: Callable[..., Backbone]) -> None:
    backbone, role = adapted(load_tiny)
    model, x = backbone.sampling_model("policy"), torch.arange(1, 9)[None]
    with torch.no_grad(), packed(model):
        first = model(input_ids=x).logits
    optimizer = torch.optim.SGD(role.parameters(), lr=0.5)
    for parameter in role.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with torch.no_grad():
        expected = model(input_ids=x).logits
        with packed(model):
            second = model(input_ids=x).logits
    assert not torch.allclose(first, second, atol=1e-3)
    torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-4)


@needs_onednn
def test_an_error_while_decoding_leaves_the_model_whole(load_tiny: Callable[..., Backbone]) -> None:
    backbone, _ = adapted(load_tiny)
    model = backbone.sampling_model("policy")
    before = {name: module.__dict__.get("forward") for name, module in model.named_modules()}

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, [Request([1, 2], 0)], SamplingSettings(), end_token_ids=[], seed=0, on_step=stop)
    assert before == {name: module.__dict__.get("forward") for name, module in model.named_modules()}


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(8, 8), nn.Linear(8, 8).to(torch.bfloat16), nn.LayerNorm(8))
    with packed(model) as count:
        assert count == 0
