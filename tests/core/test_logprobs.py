"""Log-probabilities and entropy against hand computation; chunking changes neither values nor gradients."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.core.logprobs import masked_mean, token_logprobs


def test_logprobs_and_entropy_by_hand() -> None:
    # logits log 1, log 2, log 5 -> probabilities 1/8, 2/8, 5/8
    hidden = torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]).log()
    logprobs, entropy = token_logprobs(
        lambda h: h, hidden, torch.tensor([2, 0]), vocab_size=3, with_entropy=True
    )
    torch.testing.assert_close(logprobs, torch.tensor([math.log(5 / 8), math.log(1 / 4)]))
    # H = -(1/8 ln 1/8 + 1/4 ln 1/4 + 5/8 ln 5/8);  H(1/4, 1/4, 1/2) = 1.5 ln 2
    first = -(math.log(1 / 8) / 8 + math.log(1 / 4) / 4 + 5 * math.log(5 / 8) / 8)
    assert entropy is not None
    torch.testing.assert_close(entropy, torch.tensor([first, 1.5 * math.log(2)]))


def test_temperature_divides_the_logits() -> None:
    # at temperature 2 the logits log 1, log 4, log 9 become log 1, log 2, log 3 -> 1/6, 2/6, 3/6
    hidden = torch.tensor([[1.0, 4.0, 9.0]]).log()
    logprobs, entropy = token_logprobs(lambda h: h, hidden, torch.tensor([1]), temperature=2.0, vocab_size=3)
    torch.testing.assert_close(logprobs, torch.tensor([math.log(2 / 6)]))
    assert entropy is None  # not computed unless asked for


def test_half_precision_hidden_states_give_fp32_results() -> None:
    logprobs, _ = token_logprobs(
        lambda h: h, torch.zeros(1, 4, dtype=torch.bfloat16), torch.tensor([0]), vocab_size=4
    )
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, torch.tensor([-math.log(4)]))


def test_chunks_give_the_same_values_and_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(11, 6, generator=generator, requires_grad=True)
    hidden = torch.randn(10, 6, generator=generator, requires_grad=True)
    targets = torch.randint(0, 11, (10,), generator=generator)
    results = []
    for max_chunk_logits in (1000, 3 * 11):  # one chunk, then chunks of 3, 3, 3 and 1 rows
        logprobs, entropy = token_logprobs(
            lambda h: h @ weight.T,
            hidden,
            targets,
            vocab_size=11,
            with_entropy=True,
            max_chunk_logits=max_chunk_logits,
        )
        assert entropy is not None
        (logprobs.sum() + 0.3 * entropy.square().sum()).backward()
        results.append((logprobs.detach(), entropy.detach(), weight.grad, hidden.grad))
        weight.grad = hidden.grad = None
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)


def test_chunks_never_hold_more_logits_than_allowed() -> None:
    sizes = []

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(hidden.shape[0] * 5)
        return hidden

    hidden = torch.randn(9, 5, requires_grad=True)
    logprobs, _ = token_logprobs(
        logits, hidden, torch.zeros(9, dtype=torch.int64), vocab_size=5, max_chunk_logits=10
    )
    logprobs.sum().backward()
    assert max(sizes) == 10
    assert sum(sizes) == 2 * 45  # each chunk once forward, once again in the backward pass


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
