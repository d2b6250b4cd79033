"""Log-probabilities, entropy and masked means, never with a batch x time x vocabulary tensor.

`logprobs_N[n]` is log p(target_n | everything before it). Rows are worked through in chunks; where a
gradient is needed and there is more than one chunk, each chunk's logits are recomputed in the backward pass
instead of being kept (N x V floats would be the largest tensor of a PPO step by far).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits of one chunk: 2**24 floats are 64 MiB in fp32.
MAX_CHUNK_LOGITS = 2**24

LogitsFn = Callable[[Tensor], Tensor]


def token_logprobs(
    logits_fn: LogitsFn,
    hidden_NH: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int,
    with_entropy: bool = False,
    max_chunk_logits: int = MAX_CHUNK_LOGITS,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and the entropy of the distribution it came from, in nats, fp32.

    logits_fn maps [n, H] to [n, V]. The distribution is softmax(logits / temperature).
    """

    def chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_fn(hidden).float()
        if temperature != 1.0:
            logits = logits / temperature
        log_z = torch.logsumexp(logits, dim=-1)
        logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_z
        if not with_entropy:
            return logprobs, logprobs.new_zeros(0)
        # H = log Z - E[logit]: one pass over the chunk, no log-softmax tensor.
        entropy = log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)
        return logprobs, entropy

    rows = max(1, max_chunk_logits // vocab_size)
    if hidden_NH.shape[0] <= rows:
        logprobs_N, entropy_N = chunk(hidden_NH, targets_N)
        return logprobs_N, entropy_N if with_entropy else None
    pieces = []
    for hidden, targets in zip(hidden_NH.split(rows), targets_N.split(rows), strict=True):
        if torch.is_grad_enabled() and hidden.requires_grad:
            pieces.append(checkpoint(chunk, hidden, targets, use_reentrant=False))
        else:
            pieces.append(chunk(hidden, targets))
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
