"""The norms and MLPs that take fewer passes give what the model's own give, and only those are changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.core.backbone import Backbone
from rlhf.core.fused import fuse
from rlhf.core.settings import LoraSettings

LoadTiny = Callable[..., Backbone]
# What is changed in the four layers of each: norms a layer, gated MLPs a layer, norms at the end.
CHANGED = {
    "llama": (2, 1, 1),
    "qwen2": (2, 1, 1),
    "qwen3": (4, 1, 1),  # beside the two, one for the queries and one for the keys
    "phi3": (2, 0, 1),  # one matrix for gate and up
    "gemma2": (0, 0, 0),  # a norm with 1 + weight and a GELU
    "gemma3_text": (0, 0, 0),
    "gpt2": (0, 0, 0),
    "gpt_neox": (0, 0, 0),
}


def changed(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if "forward" in m.__dict__}


def value_and_gradient(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = forward(x)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("architecture", CHANGED)
def test_values_and_gradients_are_the_plain_modules(load_tiny: LoadTiny, architecture: str) -> None:
    model = load_tiny(architecture).model
    with torch.no_grad():  # weights of 1 would hide a norm that forgets them
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    norms, mlps, final = CHANGED[architecture]
    assert fuse(model) == 4 * (norms + mlps) + final
    assert len(changed(model)) == 4 * (norms + mlps) + final
    for name, module in changed(model).items():
        assert name.endswith(("norm", "mlp")), name
        width = next(module.parameters()).shape[-1]
        for shape in ((2, 7, width), (2, 3, 5, width)) if "norm" in name else ((2, 7, width),):
            x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
            plain = value_and_gradient(lambda x, m=module: type(m).forward(m, x), x)
            for found, expected in zip(value_and_gradient(module, x), plain, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert fuse(model) == 0, "what has been changed is not changed again"


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3"])
def test_a_whole_model_gives_the_same_logits(load_tiny: LoadTiny, architecture: str) -> None:
    model = load_tiny(architecture).model
    tokens = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        before = model(tokens).logits
        assert fuse(model) > 0
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-4)


def test_a_norm_that_is_trained_is_left_alone(load_tiny: LoadTiny) -> None:
    model = load_tiny().model
    norm = model.get_decoder().norm
    norm.weight.requires_grad_(True)
    fuse(model)
    assert "forward" not in norm.__dict__
    assert len(changed(model)) == 4 * 3


def test_a_module_that_only_looks_the_part_is_left_alone(load_tiny: LoadTiny) -> None:
    """By what they hold they could be changed; what they compute is something else."""
    model = load_tiny().model
    layer = model.get_decoder().layers[0]

    class OffsetRMSNorm(type(layer.input_layernorm)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + self.weight)

    class ScaledMLP(type(layer.mlp)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layer.input_layernorm.__class__, layer.mlp.__class__ = OffsetRMSNorm, ScaledMLP
    fuse(model)
    assert "forward" not in layer.input_layernorm.__dict__
    assert "forward" not in layer.mlp.__dict__
    assert len(changed(model)) == 4 * 3 + 1 - 2


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_in_bf16_they_are_as_near_to_the_exact_numbers_as_the_modules_own(
    load_tiny: LoadTiny, architecture: str
) -> None:
    exact, model = load_tiny(architecture).model, load_tiny(architecture, dtype="bfloat16").model
    assert fuse(model) == fuse(load_tiny(architecture).model)
    modules = dict(exact.named_modules())
    for name, module in changed(model).items():
        width = next(module.parameters()).shape[-1]
        x = 3 * torch.randn((2, 7, width), generator=torch.Generator().manual_seed(0)).bfloat16()
        wanted = value_and_gradient(modules[name], x.float())
        own = value_and_gradient(lambda x, m=module: type(m).forward(m, x), x)
        for found, plain, truth in zip(value_and_gradient(module, x), own, wanted, strict=True):
            assert found.dtype == torch.bfloat16
            error, plain_error = ((t.float() - truth).norm() / truth.norm() for t in (found, plain))
            assert error <= 1.2 * plain_error + 1e-3, name


def test_an_mlp_whose_down_projection_adds_its_paths_gives_pefts_gradients(load_tiny: LoadTiny) -> None:
    """bf16: LoRA on all three; gate and up are all that is kept of their width."""
    backbone = load_tiny(dtype="bfloat16")
    role = backbone.add_role("policy", LoraSettings(r=4, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    mlp = role.causal_lm.get_decoder().layers[2].mlp
    x = torch.randn(2, 7, backbone.hidden_size, generator=generator).bfloat16()
    adapters = [p for p in mlp.parameters() if p.requires_grad]
    results = []
    for forward in (mlp, lambda x: type(mlp).forward(mlp, x)):
        for parameter in adapters:
            parameter.grad = None
        results.append([*value_and_gradient(forward, x), *(p.grad.clone() for p in adapters)])
    assert "GatedDownAdded" in type(mlp(x.requires_grad_()).grad_fn).__name__
    assert len(adapters) == 6
    for found, expected in zip(*results, strict=True):
        found, expected = found.float(), expected.float()
        assert (found - expected).norm() <= 2e-2 * expected.norm()
