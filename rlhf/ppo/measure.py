"""What a rollout needs to know of its completions besides their scores: log-probabilities and values, once.

The sampler has most of it at hand: the trunk states it computed, the log-probabilities it drew from, the value
head's reading of the same hidden states. They are used only after a subsample has been computed again from the
tokens and agrees; otherwise everything is computed again and the metrics say so. In bf16 the log-probabilities
are always computed again, by the code that the update uses, so that the ratio starts at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.batching import token_budget_batches
from rlhf.core.logprobs import token_logprobs
from rlhf.core.sampler import Request, Sampled
from rlhf.ppo.completions import CompletionBatch, Completions
from rlhf.ppo.config import PPOConfig

POLICY, VALUE = "policy", "value"
ANCHOR = "anchor"  # a frozen adapter that KL is measured from, where there is one, instead of the backbone

# Mean difference between the sampler and the recomputation beyond which the sampler is not used: of the
# log-probabilities in nats per token, of the trunk states as a share of their mean size.
SAMPLER_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
CHECKED_SHARE = 16  # one completion in so many is computed again


@dataclass(frozen=True)
class Measured:
    """[B, T] tensors of the completions' tokens, zero elsewhere.

    sampler_gap: largest difference between a log-probability of the sampler and its recomputation, nats, over
    the rows that were computed again. recomputed: the sampler's numbers were not used.
    """

    completions: Completions
    old_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    values_BT: Tensor
    sampler_gap: float
    recomputed: bool


@torch.no_grad()
def measure(
    backbone: Backbone,
    requests: Sequence[Request],
    drawn: Sequence[Sampled],
    config: PPOConfig,
    max_tokens: int,
    *,
    own: range,
    states: Sequence[Tensor | None],
    check: Callable[[], None] = lambda: None,
) -> Measured:
    """Log-probabilities of policy and reference, and values, for completions of the policy as it is now.

    own: the rows that are measured here; all others stay 0. states: what the sampler captured of these rows.
    max_tokens: padded tokens per forward pass.
    """
    trusted, gap = _check_sampler(backbone, requests, drawn, config, max_tokens, own, states)
    captured = [state for state in states if state is not None]
    completions = Completions(
        backbone,
        requests,
        drawn,
        max_tokens=max_tokens,
        own=own,
        states=captured if trusted and len(captured) == len(own) > 0 else None,
    )
    fp32 = backbone.dtype == torch.float32
    keep = trusted and (config.old_logprobs == "sampler" or (config.old_logprobs == "auto" and fp32))
    keep_values = keep and VALUE not in backbone.roles
    old_BT, ref_BT, values_BT = (torch.zeros_like(completions.sampled_logprobs_BT) for _ in range(3))
    rows = slice(own.start, own.stop)
    if keep:
        old_BT[rows] = completions.sampled_logprobs_BT[rows]
    if keep_values:
        values_BT[rows] = completions.readings_BT[rows]
    for places in token_budget_batches([completions.sequences.lengths[i] for i in own], max_tokens):
        check()
        batch = completions.batch([own[place] for place in places])
        where = batch.rows_N, batch.columns_N
        hidden_NH = completions.hidden(ANCHOR if ANCHOR in backbone.roles else REFERENCE, batch)
        ref_BT[where] = token_logprobs_of(backbone, completions, batch, hidden_NH, config)[0]
        if not keep:
            hidden_NH = completions.hidden(POLICY, batch)
            old_BT[where] = token_logprobs_of(backbone, completions, batch, hidden_NH, config)[0]
        if not keep_values:
            values_BT[where] = values_of(backbone, completions, batch, hidden_NH)
    if not keep and len(own):
        gap = _largest((completions.sampled_logprobs_BT - old_BT)[rows])
    return Measured(completions, old_BT, ref_BT, values_BT, gap, not keep)


def _check_sampler(
    backbone: Backbone,
    requests: Sequence[Request],
    drawn: Sequence[Sampled],
    config: PPOConfig,
    max_tokens: int,
    own: range,
    states: Sequence[Tensor | None],
) -> tuple[bool, float]:
    """(whether the sampler's numbers agree with a recomputation from the tokens, the largest difference of a
    log-probability)."""
    rows, checked = own[::CHECKED_SHARE], states[::CHECKED_SHARE]
    # With an adapter of its own the value is not read from the policy, and the sampler reads nothing.
    missing = VALUE not in backbone.roles and any(len(drawn[i].readings) != len(drawn[i].tokens) for i in own)
    reference = config.sampling.engine == "transformers"
    if not rows or missing or reference or config.old_logprobs == "recompute":
        return False, 0.0
    some = Completions(backbone, [requests[i] for i in rows], [drawn[i] for i in rows], max_tokens=max_tokens)
    differences_BT, tolerance = torch.zeros_like(some.sampled_logprobs_BT), SAMPLER_TOLERANCE[backbone.dtype]
    agree = True
    for indices in token_budget_batches(some.sequences.lengths, max_tokens):
        batch = some.batch(indices)
        hidden_NH = some.hidden(POLICY, batch)
        logprobs_N, _ = token_logprobs_of(backbone, some, batch, hidden_NH, config)
        where = batch.rows_N, batch.columns_N
        differences_BT[where] = logprobs_N - some.sampled_logprobs_BT[where]
        agree = agree and _same_trunk(batch, [checked[i] for i in indices], tolerance)
    mean = (differences_BT.abs().sum() / some.mask_BT.sum()).item()
    return agree and mean <= tolerance, _largest(differences_BT)


def _same_trunk(batch: CompletionBatch, states: Sequence[Tensor | None], tolerance: float) -> bool:
    """Whether the captured states of a batch's rows are those that its tokens give."""
    trunk_BSH = batch.sequence.trunk_BSH
    if trunk_BSH is None:
        return True
    for expected_SH, found_SH in zip(trunk_BSH, states, strict=True):
        if found_SH is None:
            continue
        expected_SH = expected_SH[: len(found_SH)].float()
        off = (found_SH.float() - expected_SH).abs().mean().item()
        if not off <= tolerance * expected_SH.abs().mean().item():
            return False
    return True


def _largest(differences_BT: Tensor) -> float:
    return differences_BT.abs().max().item()


def token_logprobs_of(
    backbone: Backbone,
    completions: Completions,
    batch: CompletionBatch,
    hidden_NH: Tensor,
    config: PPOConfig,
    *,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability [N] of the batch's completion tokens at the sampling temperature, and their entropy [N]."""
    return token_logprobs(
        backbone.head,
        hidden_NH,
        batch.of(completions.tokens_BT),
        temperature=config.sampling.temperature,
        with_entropy=with_entropy,
        entropy_gradient=config.entropy_coef > 0,
    )


def values_of(
    backbone: Backbone, completions: Completions, batch: CompletionBatch, policy_hidden_NH: Tensor
) -> Tensor:
    """Values [N] of the states before each token, from the policy's hidden states or the value role's own."""
    role, hidden_NH = backbone.roles[POLICY], policy_hidden_NH
    if VALUE in backbone.roles:
        role, hidden_NH = backbone.roles[VALUE], completions.hidden(VALUE, batch)
    assert role.head is not None
    return role.head(hidden_NH.float()).squeeze(1)
