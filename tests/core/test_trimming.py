"""The last layer's MLP where its output is read: the same values and gradients there, and whole elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rlhf.core.backbone import Backbone
from rlhf.core.settings import LoraSettings
from rlhf.core.trimming import make_trim

LoadTiny = Callable[..., Backbone]
ROWS, COLUMNS = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([3, 7, 0, 5, 8])


def tokens_for(backbone: Backbone) -> Tensor:
    return torch.randint(5, backbone.vocab_size, (3, 9), generator=torch.Generator().manual_seed(0))


def with_policy(backbone: Backbone) -> Backbone:
    role = backbone.add_role("policy", LoraSettings(r=4), seed=0)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return backbone


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3", "gpt2", "gpt_neox"])
def test_values_and_gradients_at_the_places_are_those_of_the_whole(
    load_tiny: LoadTiny, architecture: str
) -> None:
    backbone = with_policy(load_tiny(architecture))
    role, tokens_BS = backbone.roles["policy"], tokens_for(backbone)
    assert role.trim is not None
    weights_NH = torch.linspace(-1, 1, 5 * backbone.hidden_size).reshape(5, -1)
    found = []
    for hidden_NH in (
        backbone.hidden_at("policy", tokens_BS, ROWS, COLUMNS),
        backbone.hidden("policy", tokens_BS)[ROWS, COLUMNS],
    ):
        (hidden_NH * weights_NH).sum().backward()
        found.append([hidden_NH.detach(), *(p.grad for p in role.parameters())])
        for parameter in role.parameters():
            parameter.grad = None
    assert len(found[0]) > 5
    for trimmed, whole in zip(*found, strict=True):
        assert whole.abs().max() > 0
        torch.testing.assert_close(trimmed, whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item())


def test_only_the_places_go_through_the_mlp(load_tiny: LoadTiny) -> None:
    backbone = with_policy(load_tiny())
    trim = backbone.roles["policy"].trim
    assert trim is not None
    counted: list[int] = []
    trim.mlp.get_submodule("down_proj").register_forward_hook(
        lambda module, inputs, output: counted.append(output.numel() // output.shape[-1])
    )
    with torch.no_grad():
        backbone.hidden_at("policy", tokens_for(backbone), ROWS, COLUMNS)
        backbone.hidden("policy", tokens_for(backbone))
    assert counted == [5, 27]


def test_outside_the_context_the_mlp_is_whole_even_after_an_error(load_tiny: LoadTiny) -> None:
    backbone = with_policy(load_tiny())
    trim, tokens_BS = backbone.roles["policy"].trim, tokens_for(backbone)
    assert trim is not None
    with torch.no_grad():
        before = backbone.hidden("policy", tokens_BS)
        backbone.hidden_at("policy", tokens_BS, ROWS, COLUMNS)
        torch.testing.assert_close(backbone.hidden("policy", tokens_BS), before, rtol=0, atol=0)
        with pytest.raises(IndexError), trim.only(ROWS, COLUMNS + 100):
            backbone.hidden("policy", tokens_BS)
        torch.testing.assert_close(backbone.hidden("policy", tokens_BS), before, rtol=0, atol=0)
        # the reference has no trim of its own and is not touched by the policy's
        with trim.only(ROWS, COLUMNS):
            whole = backbone.hidden("reference", tokens_BS)
        torch.testing.assert_close(backbone.hidden("reference", tokens_BS), whole, rtol=0, atol=0)


def test_a_checkpointed_role_has_none(load_tiny: LoadTiny) -> None:
    """Its backward pass computes the layer again, outside the context that knows the places."""
    backbone = with_policy(load_tiny())
    backbone.checkpoint_gradients("policy")
    role, tokens_BS = backbone.roles["policy"], tokens_for(backbone)
    assert role.trim is None
    plain = with_policy(load_tiny())
    for one in (backbone, plain):
        one.hidden_at("policy", tokens_BS, ROWS, COLUMNS).square().sum().backward()
    for checkpointed, expected in zip(role.parameters(), plain.roles["policy"].parameters(), strict=True):
        assert checkpointed.grad is not None
        assert expected.grad is not None
        scale = expected.grad.abs().max().item()
        torch.testing.assert_close(checkpointed.grad, expected.grad, rtol=1e-4, atol=1e-4 * scale)


def test_an_mlp_with_rows_and_columns_of_its_own_is_still_given_three_dimensions() -> None:
    """Mixtures of experts take [batch, length, hidden] apart themselves."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            batch, length, hidden = x.shape
            return self.linear(x.view(-1, hidden)).view(batch, length, hidden)

    layer = nn.Module()
    layer.mlp = Experts()
    trim = make_trim(layer, 4, torch.device("cpu"), torch.float32)
    assert trim is not None
    x = torch.randn(3, 9, 4)
    with torch.no_grad(), trim.only(ROWS, COLUMNS):
        found = layer.mlp(x)
    torch.testing.assert_close(found[ROWS, COLUMNS], layer.mlp(x)[ROWS, COLUMNS])
    assert (found != 0).any(-1).sum() == 5


class Mixing(nn.Module):
    """Looks at the whole row."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(-2, keepdim=True)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class WithResidual(nn.Module):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return x + residual


@pytest.mark.parametrize("mlp", [Mixing(), Pair(), WithResidual(), None])
def test_what_is_not_a_function_of_each_position_is_left_alone(mlp: nn.Module | None) -> None:
    layer = nn.Module()
    if mlp is not None:
        layer.mlp = mlp
    assert make_trim(layer, 4, torch.device("cpu"), torch.float32) is None
    if isinstance(mlp, Mixing):
        x = torch.randn(2, 3, 4)
        torch.testing.assert_close(layer.mlp(x), x + x.mean(-2, keepdim=True))
