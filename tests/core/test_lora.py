"""The fast LoRA layer against peft's own forward: values, gradients, and when it must step aside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rlhf.core import lora, onednn
from rlhf.core.adapters import load_role_tensors, role_tensors
from rlhf.core.backbone import Backbone, Role
from rlhf.core.settings import LoraSettings, ModelSettings

LoadTiny = Callable[..., Backbone]
TINY = LoraSettings(r=4, alpha=12)


def make_role(backbone: Backbone, settings: LoraSettings = TINY) -> Role:
    """A role whose adapter does something."""
    role = backbone.add_role("policy", settings, seed=0)
    randomize(role)
    return role


def randomize(role: Role) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def layers(role: Role) -> Iterator[Any]:
    return (m for m in role.model.modules() if isinstance(m, LoraLayer))


def one_layer(role: Role, name: str = "gate_proj") -> Any:
    return next(m for key, m in role.model.named_modules() if key.endswith(name) and isinstance(m, LoraLayer))


def peft_forward(module: Any, x: Tensor) -> Tensor:
    return type(module).forward(module, x)


def input_of(module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 5, module.in_features, generator=generator).to(dtype)


def value_and_gradients(module: Any, forward: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradients of the adapter, for a loss that weighs every output differently."""
    x = x.clone().requires_grad_()
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    a.grad = b.grad = None
    y = forward(module, x)
    weights = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype)
    (y * weights).sum().backward()
    found = [y.detach(), x.grad, a.grad, b.grad]
    assert all(tensor is not None for tensor in found)
    return [tensor.float() for tensor in found if tensor is not None]


def assert_as_peft(module: Any, x: Tensor, rtol: float) -> None:
    expected = value_and_gradients(module, peft_forward, x)
    for found, wanted in zip(value_and_gradients(module, lambda m, x: m(x), x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * wanted.abs().max().item())


@pytest.mark.parametrize("max_bytes", [lora.MAX_MERGED_BYTES, 0])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # qwen2 has biases
def test_fp32_is_pefts_forward_and_its_gradients(
    load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch, architecture: str, max_bytes: int
) -> None:
    monkeypatch.setattr(lora, "MAX_MERGED_BYTES", max_bytes)
    role = make_role(load_tiny(architecture))
    assert role.holds_merged == (max_bytes > 0)
    for module in layers(role):
        assert "forward" in module.__dict__
        x = input_of(module)
        assert_as_peft(module, x, 2e-5)
        with torch.no_grad():  # how the sampler calls it
            torch.testing.assert_close(module(x), peft_forward(module, x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_layers_that_read_the_same_states_are_as_each_alone(
    load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch, architecture: str, dtype: Any
) -> None:
    """q, k, v and gate, up: outputs, the gradient of what they read, and those of their adapters; on either library."""
    role = make_role(load_tiny(architecture, dtype=dtype))
    tolerance = 2e-5 if dtype == "float32" else 2e-2
    for intel in (True, False):
        monkeypatch.setattr(onednn, "is_intel", lambda intel=intel: intel)
        monkeypatch.setattr(onednn, "MIN_ELEMENTS", 1)
        for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            group = [one_layer(role, name) for name in names]
            results = []
            for project in (lora.project_together, lambda layers, x: [layer(x) for layer in layers]):
                x = input_of(group[0], getattr(torch, dtype))[:, :4].clone().requires_grad_()
                parameters = [
                    p for m in group for p in (m.lora_A["default"].weight, m.lora_B["default"].weight)
                ]
                for parameter in parameters:
                    parameter.grad = None
                outputs = project(group, x)
                weights = [torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype) for y in outputs]
                torch.stack([(y * w).sum() for y, w in zip(outputs, weights, strict=True)]).sum().backward()
                gradients = [p.grad for p in [x, *parameters]]
                results.append([*outputs, *gradients])
            assert "Together" in type(lora.project_together(group, x)[0].grad_fn).__name__
            for found, expected in zip(*results, strict=True):
                assert found.shape == expected.shape
                found, expected = found.detach().float(), expected.detach().float()
                assert (found - expected).norm() <= tolerance * expected.norm()


def test_of_layers_together_one_that_is_not_plain_keeps_all_apart(load_tiny: LoadTiny) -> None:
    role = make_role(load_tiny())
    group = [one_layer(role, "gate_proj"), one_layer(role, "up_proj")]
    x = input_of(group[0])
    group[1].lora_dropout["default"] = nn.Dropout(0.5)
    group[1].train()
    outputs = lora.project_together(group, x.requires_grad_())
    assert "Together" not in type(outputs[0].grad_fn).__name__
    torch.testing.assert_close(outputs[0], peft_forward(group[0], x), rtol=2e-5, atol=2e-5)


def test_two_dimensions_expanded_gradients_and_no_gradient_for_the_input(load_tiny: LoadTiny) -> None:
    module = one_layer(make_role(load_tiny()))
    x = input_of(module)[0]
    a = module.lora_A["default"].weight
    gradients = []
    for forward in (peft_forward, lambda m, x: m(x)):
        a.grad = None
        forward(module, x).sum().backward()  # the gradient of a sum is one number, expanded
        gradients.append(a.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert x.grad is None


def test_bf16_adds_the_two_paths_within_rounding(tiny_model: Callable[..., Path]) -> None:
    backbone = Backbone.load(tiny_model(), ModelSettings(device="cpu", dtype="bfloat16"))
    role = make_role(backbone)
    assert not role.holds_merged
    for module in layers(role):
        assert module.weight.dtype == torch.bfloat16
        assert_as_peft(module, input_of(module, torch.bfloat16), 2e-2)


def test_bf16_keeps_an_update_that_a_rounded_sum_would_lose(tiny_model: Callable[..., Path]) -> None:
    """1 + 0.0012 rounds to 1 in bf16; where the base path cancels, the update must still be seen."""
    backbone = Backbone.load(tiny_model(), ModelSettings(device="cpu", dtype="bfloat16"))
    module = one_layer(backbone.add_role("policy", TINY, seed=0))
    with torch.no_grad():
        signs = torch.ones(module.in_features).index_fill(0, torch.arange(0, module.in_features, 2), -1.0)
        module.get_base_layer().weight.fill_(1.0)
        module.lora_A["default"].weight.copy_(0.01 * signs.expand(4, -1))
        module.lora_B["default"].weight.fill_(0.01)
        found = module(signs[None].bfloat16()).float()
    # base: 16 - 16 = 0; update: alpha / r * rank * 0.01 * 0.01 * 32 = 3 * 4 * 1e-4 * 32
    torch.testing.assert_close(found, torch.full_like(found, 0.0384), rtol=1e-2, atol=0)


CHANGES: dict[str, Callable[[Role, Any], None]] = {}


def change(function: Callable[[Role, Any], None]) -> Callable[[Role, Any], None]:
    CHANGES[function.__name__] = function
    return function


@change
def optimizer_step(role: Role, module: Any) -> None:
    optimizer = torch.optim.AdamW(role.parameters(), lr=0.1)
    module(input_of(module)).sum().backward()
    optimizer.step()


@change
def fused_optimizer_step(role: Role, module: Any) -> None:
    optimizer = torch.optim.AdamW(role.parameters(), lr=0.1, fused=True)
    module(input_of(module)).sum().backward()
    optimizer.step()


@change
def loaded_weights(role: Role, module: Any) -> None:
    tensors = {key: value + 0.5 for key, value in role_tensors(role).items()}
    load_role_tensors(role, tensors, "a test")


@change
def in_place(role: Role, module: Any) -> None:
    with torch.no_grad():
        module.lora_A["default"].weight.mul_(2)


@change
def only_b(role: Role, module: Any) -> None:
    torch.nn.init.constant_(module.lora_B["default"].weight, 0.25)


@change
def another_scale(role: Role, module: Any) -> None:
    module.scale_layer(3.0)


@change
def another_tensor(role: Role, module: Any) -> None:
    module.lora_A["default"].weight = nn.Parameter(torch.ones(4, module.in_features))


@change
def another_base(role: Role, module: Any) -> None:
    with torch.no_grad():
        module.get_base_layer().weight.add_(1.0)


@pytest.mark.parametrize("name", CHANGES)
def test_the_sum_is_renewed_when_what_it_was_formed_from_changes(load_tiny: LoadTiny, name: str) -> None:
    role = make_role(load_tiny())
    module = one_layer(role)
    x = input_of(module)
    with torch.no_grad():
        before = module(x)
    CHANGES[name](role, module)
    with torch.no_grad():
        after, expected = module(x), peft_forward(module, x)
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


def test_a_sum_is_formed_once_as_long_as_nothing_changes(
    load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = make_role(load_tiny())
    module = one_layer(role)
    formed = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: formed.append(1) or addmm(*a, **k))
    for _ in range(3):
        module(input_of(module)).sum().backward()
        with torch.no_grad():
            module(input_of(module))
    assert len(formed) == 1


def test_dropout_at_work_is_pefts(load_tiny: LoadTiny) -> None:
    role = make_role(load_tiny(), LoraSettings(r=4, dropout=0.5))
    module = one_layer(role)
    x = input_of(module)
    torch.testing.assert_close(module(x), peft_forward(module, x))  # in eval mode nothing drops
    still = module(x)
    module.train()
    torch.manual_seed(0)
    found = module(x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, peft_forward(module, x), rtol=0, atol=0)
    assert (found - still).abs().max() > 1e-2


def test_a_disabled_adapter_is_the_base(load_tiny: LoadTiny) -> None:
    role = make_role(load_tiny())
    module = one_layer(role)
    x = input_of(module)
    with role.model.disable_adapter():
        torch.testing.assert_close(module(x), module.get_base_layer()(x), rtol=0, atol=0)
    assert (module(x) - module.get_base_layer()(x)).abs().max() > 1e-2


def test_two_adapters_at_once_are_pefts(load_tiny: LoadTiny) -> None:
    role = make_role(load_tiny())
    module, first = one_layer(role), role.lora
    assert first is not None
    role.model.add_adapter("second", copy.deepcopy(first))
    torch.nn.init.constant_(module.lora_B["second"].weight, 0.1)
    x = input_of(module)
    role.model.base_model.set_adapter("second")
    torch.testing.assert_close(module(x), peft_forward(module, x), rtol=1e-4, atol=1e-4)
    role.model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(module(x), peft_forward(module, x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["lora_bias", "use_dora", "use_rslora"])
def test_other_kinds_of_adapters_give_what_peft_gives(load_tiny: LoadTiny, kind: str) -> None:
    """As an adapter that somebody else trained might be."""
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["gate_proj", "q_proj"], task_type="CAUSAL_LM", **{kind: True}
    )
    role = load_tiny().attach_role("other", config, head=None)
    randomize(role)
    module = one_layer(role)
    x = input_of(module)
    with torch.no_grad():
        torch.testing.assert_close(module(x), peft_forward(module, x), rtol=1e-4, atol=1e-4)


def test_transposed_bases_keep_pefts_forward(load_tiny: LoadTiny) -> None:
    role = make_role(load_tiny("gpt2"))
    assert not role.holds_merged
    assert all("forward" not in module.__dict__ for module in layers(role))


def test_a_deep_copy_is_a_layer_of_its_own(load_tiny: LoadTiny) -> None:
    role = make_role(load_tiny())
    module = one_layer(role)
    x = input_of(module)
    with torch.no_grad():
        before = module(x)
        twin = copy.deepcopy(module)
        torch.testing.assert_close(twin(x), before, rtol=0, atol=0)
        twin.lora_B["default"].weight.zero_()
        torch.testing.assert_close(twin(x), module.get_base_layer()(x))
        torch.testing.assert_close(module(x), before, rtol=0, atol=0)


def test_the_base_gets_no_gradient(load_tiny: LoadTiny) -> None:
    backbone = load_tiny()
    role = make_role(backbone)
    tokens = torch.randint(5, backbone.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    backbone.hidden("policy", tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in role.parameters())
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
