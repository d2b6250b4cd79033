"""Log-probabilities, entropy and masked means, never with a batch x time x vocabulary tensor.

`logprobs_N[n]` is log p(target_n | everything before it). Rows are worked through in chunks, and the gradient is
formed with the chunk's logits still at hand: the output matrix is frozen and a row's gradient is its incoming
number times (onehot - p) W, so [N, H] is all that is kept for the backward pass. Nothing of the size of the
vocabulary outlives its chunk and no logits are computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf.core.onednn import linear
from rlhf.core.vocabulary import OutputHead

# Logits of one chunk. On a CPU they should stay in its cache (2 MiB in fp32); a GPU wants large launches.
MAX_CHUNK_LOGITS = {"cpu": 2**19, "cuda": 2**26}


def token_logprobs(
    head: OutputHead,
    hidden_NH: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    entropy_gradient: bool = True,
    max_chunk_logits: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and the entropy of the distribution it came from, in nats, fp32.

    The distribution is softmax(logits / temperature). Without `entropy_gradient` the entropy is a measurement
    only, which saves a matrix product in training.
    """
    budget = max_chunk_logits or MAX_CHUNK_LOGITS.get(hidden_NH.device.type, 2**24)
    rows = max(1, budget // head.vocab_size)
    needs_gradient = torch.is_grad_enabled() and hidden_NH.requires_grad
    if needs_gradient and not head.plain:
        return _by_autograd(head, hidden_NH, targets_N, temperature, with_entropy, rows)
    if needs_gradient:
        entropy_gradient = with_entropy and entropy_gradient
        logprobs_N, entropy_N = _TokenLogprobs.apply(
            hidden_NH, targets_N, head, temperature, with_entropy, entropy_gradient, rows
        )
        return logprobs_N, entropy_N if with_entropy else None
    pieces = [
        _chunk(head, hidden, targets, temperature, with_entropy)
        for hidden, targets in zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
    ]
    return _joined(pieces, with_entropy)


def _chunk(
    head: OutputHead, hidden_nH: Tensor, targets_n: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n], and entropy [n] or nothing."""
    log_p_nV, _ = _distribution(head, hidden_nH, temperature)
    logprobs_n = log_p_nV.gather(-1, targets_n[:, None]).squeeze(-1)
    return logprobs_n, _entropy(log_p_nV, log_p_nV.exp()) if with_entropy else logprobs_n.new_zeros(0)


def _distribution(head: OutputHead, hidden_nH: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
    """(log-probabilities [n, V] in fp32, the logits [n, V] where a softcap needs them for its gradient)."""
    logits_nV = head(hidden_nH).float()
    log_p_nV = torch.log_softmax(logits_nV if temperature == 1 else logits_nV / temperature, dim=-1)
    return log_p_nV, logits_nV if head.softcap else None


def _entropy(log_p_nV: Tensor, p_nV: Tensor) -> Tensor:
    return -torch.linalg.vecdot(p_nV, log_p_nV)


class _TokenLogprobs(torch.autograd.Function):
    """hidden [N, H], targets [N] -> logprobs [N], entropy [N]; gradients for `hidden` alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        targets_N: Tensor,
        head: OutputHead,
        temperature: float,
        with_entropy: bool,
        entropy_gradient: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, slopes, entropy_slopes = [], [], [], []
        for hidden_nH, targets_n in zip(hidden_NH.split(rows), targets_N.split(rows), strict=True):
            log_p_nV, logits_nV = _distribution(head, hidden_nH, temperature)
            logprobs.append(log_p_nV.gather(-1, targets_n[:, None]).squeeze(-1))
            if entropy_gradient:
                p_nV = log_p_nV.exp()
                entropies.append(_entropy(log_p_nV, p_nV))
                # dH/dlogit_v = -p_v (log p_v + H)
                slope_nV = log_p_nV.add_(entropies[-1][:, None]).mul_(p_nV).neg_()
                entropy_slopes.append(_to_hidden(head, slope_nV, logits_nV, temperature, hidden_nH.dtype))
            elif with_entropy:
                p_nV = log_p_nV.exp()
                entropies.append(_entropy(log_p_nV, p_nV))
            else:
                p_nV = log_p_nV.exp_()
            # d log p_target / dlogit_v = 1[v = target] - p_v
            p_nV.neg_()
            p_nV.scatter_add_(1, targets_n[:, None], torch.ones_like(p_nV[:, :1]))
            slopes.append(_to_hidden(head, p_nV, logits_nV, temperature, hidden_nH.dtype))
        ctx.save_for_backward(torch.cat(slopes), torch.cat(entropy_slopes) if entropy_gradient else None)
        entropy_N = torch.cat(entropies) if entropies else hidden_NH.new_zeros(0)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_N)
        return torch.cat(logprobs), entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, entropy_grad_N: Tensor | None) -> tuple[Any, ...]:
        slopes_NH, entropy_slopes_NH = ctx.saved_tensors
        total_NH = slopes_NH * grad_N[:, None].to(slopes_NH.dtype)
        if entropy_slopes_NH is not None and entropy_grad_N is not None:
            total_NH.addcmul_(entropy_slopes_NH, entropy_grad_N[:, None].to(slopes_NH.dtype))
        return total_NH, None, None, None, None, None, None


def _to_hidden(
    head: OutputHead, slope_nV: Tensor, logits_nV: Tensor | None, temperature: float, dtype: torch.dtype
) -> Tensor:
    """Gradient [n, H] of the hidden states from that of softcapped logits divided by the temperature, in place."""
    if head.softcap and logits_nV is not None:
        slope_nV *= 1 - (logits_nV / head.softcap).square()
    if temperature != 1:
        slope_nV /= temperature
    return linear(slope_nV.to(dtype), head.weight_VH.T)


def _by_autograd(
    head: OutputHead, hidden_NH: Tensor, targets_N: Tensor, temperature: float, with_entropy: bool, rows: int
) -> tuple[Tensor, Tensor | None]:
    """The same where the matrix cannot be read (quantised): each chunk is computed again in the backward pass."""

    pieces = [
        checkpoint(_chunk, head, hidden, targets, temperature, with_entropy, use_reentrant=False)
        for hidden, targets in zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
    ]
    return _joined(pieces, with_entropy)


def _joined(pieces: list[tuple[Tensor, Tensor]], with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    logprobs_N = torch.cat([piece[0] for piece in pieces])
    return logprobs_N, torch.cat([piece[1] for piece in pieces]) if with_entropy else None


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is True; both of one shape. Raises ValueError when nothing counts."""
    if values.shape != mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} differ in shape")
    count = mask.sum()
    if count == 0:
        raise ValueError("masked_mean over an empty mask")
    return torch.where(mask, values, torch.zeros_like(values)).sum() / count
