"""The generalised Jensen-Shannon divergence of next-token distributions (Agarwal et al., arXiv:2306.13649)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits of one chunk, of each of the two models; a chunk is computed again in the backward pass.
MAX_CHUNK_LOGITS = 2**21


def generalised_jsd(student_NV: Tensor, teacher_NV: Tensor, beta: float, temperature: float = 1.0) -> Tensor:
    """[N] nats from logits [N, V]: beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, P the
    teacher's distribution and Q the student's.

    At the ends, where that is 0 for any two distributions, its limits divided by beta and 1 - beta: 0 gives
    KL(P || Q), 1 gives KL(Q || P).
    """
    if student_NV.shape != teacher_NV.shape or student_NV.dim() != 2:
        raise ValueError(f"logits have shapes {tuple(student_NV.shape)} and {tuple(teacher_NV.shape)}")
    log_q = torch.log_softmax(student_NV.float() / temperature, dim=-1)
    log_p = torch.log_softmax(teacher_NV.float() / temperature, dim=-1)
    if beta == 0:
        return _kl(log_p, log_q)
    if beta == 1:
        return _kl(log_q, log_p)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def student_losses(
    student_head: torch.nn.Module | object,
    teacher_head: torch.nn.Module | object,
    student_NH: Tensor,
    teacher_NG: Tensor | None,
    targets_N: Tensor,
    *,
    vocab_size: int,
    beta: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """(summed divergence, summed negative log-likelihood) over N tokens, both with gradients for the student.

    Heads map hidden states to logits; the teacher's hidden states may have another width G, and are None where no
    teacher is asked (the divergence is then 0). Logits beyond `vocab_size` fill up a matrix and mean no token.
    """

    def chunk(student_nH: Tensor, teacher_nG: Tensor | None, targets_n: Tensor) -> tuple[Tensor, Tensor]:
        student_nV = student_head(student_nH)[..., :vocab_size]  # type: ignore[operator]
        nll = torch.nn.functional.cross_entropy(student_nV.float(), targets_n, reduction="sum")
        if teacher_nG is None:
            return nll.new_zeros(()), nll
        with torch.no_grad():
            teacher_nV = teacher_head(teacher_nG)[..., :vocab_size]  # type: ignore[operator]
        return generalised_jsd(student_nV, teacher_nV, beta, temperature).sum(), nll

    rows = max(1, MAX_CHUNK_LOGITS // vocab_size)
    divergence = nll = student_NH.new_zeros(())
    for start in range(0, len(targets_N), rows):
        part = slice(start, start + rows)
        teacher = None if teacher_NG is None else teacher_NG[part]
        first, second = checkpoint(chunk, student_NH[part], teacher, targets_N[part], use_reentrant=False)
        divergence, nll = divergence + first, nll + second
    return divergence, nll
