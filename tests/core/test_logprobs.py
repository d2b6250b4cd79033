"""Log-probabilities and entropy against hand computation and autograd; chunks change nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.core.logprobs import masked_mean, token_logprobs
from rlhf.core.vocabulary import OutputHead


def head_of(weight_VH: Tensor, softcap: float | None = None, kind: type[nn.Linear] = nn.Linear) -> OutputHead:
    linear = kind(weight_VH.shape[1], weight_VH.shape[0], bias=False, dtype=weight_VH.dtype)
    linear.weight = nn.Parameter(weight_VH, requires_grad=False)
    return OutputHead(linear, softcap)


def test_logprobs_and_entropy_by_hand() -> None:
    # logits log 1, log 2, log 5 -> probabilities 1/8, 2/8, 5/8
    hidden = torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]).log()
    logprobs, entropy = token_logprobs(head_of(torch.eye(3)), hidden, torch.tensor([2, 0]), with_entropy=True)
    torch.testing.assert_close(logprobs, torch.tensor([math.log(5 / 8), math.log(1 / 4)]))
    # H = -(1/8 ln 1/8 + 1/4 ln 1/4 + 5/8 ln 5/8);  H(1/4, 1/4, 1/2) = 1.5 ln 2
    first = -(math.log(1 / 8) / 8 + math.log(1 / 4) / 4 + 5 * math.log(5 / 8) / 8)
    assert entropy is not None
    torch.testing.assert_close(entropy, torch.tensor([first, 1.5 * math.log(2)]))


def test_temperature_divides_the_logits() -> None:
    # at temperature 2 the logits log 1, log 4, log 9 become log 1, log 2, log 3 -> 1/6, 2/6, 3/6
    hidden = torch.tensor([[1.0, 4.0, 9.0]]).log()
    logprobs, entropy = token_logprobs(head_of(torch.eye(3)), hidden, torch.tensor([1]), temperature=2.0)
    torch.testing.assert_close(logprobs, torch.tensor([math.log(2 / 6)]))
    assert entropy is None  # not computed unless asked for


def test_half_precision_hidden_states_give_fp32_results() -> None:
    head = head_of(torch.eye(4, dtype=torch.bfloat16))
    logprobs, _ = token_logprobs(head, torch.zeros(1, 4, dtype=torch.bfloat16), torch.tensor([0]))
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, torch.tensor([-math.log(4)]))


class OtherLinear(nn.Linear):
    """As a quantised matrix would be: its weight cannot be read, only applied."""


@pytest.mark.parametrize("kind", [nn.Linear, OtherLinear])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("rows", [100, 3])  # one chunk, then chunks of 3, 3, 3 and 1 rows
def test_gradients_are_those_of_autograd(
    kind: type[nn.Linear], temperature: float, softcap: float | None, rows: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    head = head_of(torch.randn(11, 6, generator=generator), softcap, kind)
    hidden = torch.randn(10, 6, generator=generator, requires_grad=True)
    targets = torch.randint(0, 11, (10,), generator=generator)
    weights = torch.randn(10, generator=generator)

    def gradient(logprobs: Tensor, entropy: Tensor) -> Any:
        loss = (weights * logprobs.exp()).sum() + 0.3 * entropy.square().sum()
        return torch.autograd.grad(loss, hidden)[0]

    whole = (head(hidden) / temperature).log_softmax(-1)
    expected = whole.gather(1, targets[:, None]).squeeze(1), -(whole.exp() * whole).sum(-1)
    found = token_logprobs(
        head, hidden, targets, temperature=temperature, with_entropy=True, max_chunk_logits=rows * 11
    )
    assert found[1] is not None
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    torch.testing.assert_close(gradient(found[0], found[1]), gradient(*expected))


def test_entropy_without_a_gradient_is_a_measurement() -> None:
    hidden = torch.randn(4, 6, requires_grad=True)
    head, targets = head_of(torch.randn(11, 6)), torch.zeros(4, dtype=torch.int64)
    logprobs, entropy = token_logprobs(head, hidden, targets, with_entropy=True, entropy_gradient=False)
    assert entropy is not None
    assert not entropy.requires_grad
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().max() > 0


def test_chunks_never_hold_more_logits_than_allowed_and_are_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    inner = OutputHead.__call__

    def counted(head: OutputHead, hidden: Tensor) -> Tensor:
        logits = inner(head, hidden)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(OutputHead, "__call__", counted)
    hidden = torch.randn(9, 5, requires_grad=True)
    logprobs, _ = token_logprobs(
        head_of(torch.eye(5)), hidden, torch.zeros(9, dtype=torch.int64), max_chunk_logits=10
    )
    logprobs.sum().backward()
    assert max(sizes) == 10
    assert sum(sizes) == 45


def test_masked_mean() -> None:
    values, mask = (
        torch.tensor([[1.0, 2.0], [9.0, float("nan")]]),
        torch.tensor([[True, True], [True, False]]),
    )
    assert masked_mean(values, mask).item() == 4.0  # (1 + 2 + 9) / 3; what is masked may even be NaN
    with pytest.raises(ValueError, match="empty mask"):
        masked_mean(values, torch.zeros_like(mask))
    with pytest.raises(ValueError, match=r"\(2, 2\) and mask \(2,\)"):
        masked_mean(values, torch.tensor([True, False]))
