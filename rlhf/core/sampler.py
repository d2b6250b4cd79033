"""Completions with the log-probability of every sampled token.

Prompts of like length are decoded together (padded on the left within a batch), rows leave the batch as
they end, and only the last position's logits ever exist. The uniform number behind each token is a function
of (seed, cursor, sample, position): see `rlhf.core.randomness`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf.core.randomness import uniforms
from rlhf.core.settings import SamplingSettings

# Copying the key/value cache to drop finished rows pays once a quarter of them are done.
EVICT_BELOW = 0.75


@dataclass(frozen=True)
class Request:
    """One completion to draw. cursor: the prompt's place in the run's stream of prompts; sample: 0..G-1."""

    prompt_ids: Sequence[int]
    cursor: int
    sample: int = 0


@dataclass
class Sampled:
    """tokens: the completion, its end token included where `finished`; logprobs: of the sampled distribution."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def sample(
    model: Any,
    requests: Sequence[Request],
    settings: SamplingSettings,
    *,
    end_token_ids: Sequence[int],
    seed: int,
    max_batch_tokens: int = 65_536,
    on_step: Callable[[], None] = lambda: None,
    on_done: Callable[[int], None] = lambda n: None,
) -> list[Sampled]:
    """Draw one completion per request, in the order of the requests.

    model: a causal LM of transformers (a role merged by `Backbone.merged`).
    max_batch_tokens: rows x (prompt + completion) tokens decoded at once; bounds the key/value cache.
    on_step is called after each token (a place to notice signals), on_done with the number of rows of each
    finished batch.
    """
    results = [Sampled() for _ in requests]
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order):
            longest = len(requests[order[end]].prompt_ids) + settings.max_completion_tokens
            if (end - start + 1) * longest > max_batch_tokens:
                break
            end += 1
        rows = order[start:end]
        _decode(
            model,
            [requests[i] for i in rows],
            [results[i] for i in rows],
            settings,
            end_token_ids,
            seed,
            on_step,
        )
        on_done(len(rows))
        start = end
    return results


def _decode(
    model: Any,
    requests: list[Request],
    results: list[Sampled],
    settings: SamplingSettings,
    end_token_ids: Sequence[int],
    seed: int,
    on_step: Callable[[], None],
) -> None:
    """Decode one batch, filling `results` in place."""
    device = model.device
    width = max(len(r.prompt_ids) for r in requests)
    pads_B = torch.tensor([width - len(r.prompt_ids) for r in requests], device=device)
    tokens_BS = torch.zeros(len(requests), width, dtype=torch.int64)
    for i, request in enumerate(requests):
        tokens_BS[i, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
    tokens_BS = tokens_BS.to(device)
    # Without padding no mask is needed, which lets the attention kernel take its fast path.
    mask_BS = (torch.arange(width, device=device) >= pads_B[:, None]).long() if bool(pads_B.any()) else None
    positions_BS = (torch.arange(width, device=device) - pads_B[:, None]).clamp(min=0)

    cursors_B = torch.tensor([r.cursor for r in requests], device=device)
    samples_B = torch.tensor([r.sample for r in requests], device=device)
    ends_E = torch.tensor(list(end_token_ids), device=device)
    rows_B = torch.arange(len(requests), device=device)
    cache = DynamicCache(config=model.config)
    drawn: list[Tensor] = []
    for position in range(settings.max_completion_tokens):
        logits_BV = (
            model(
                input_ids=tokens_BS,
                attention_mask=mask_BS,
                position_ids=positions_BS,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        uniforms_B = uniforms(seed, cursors_B, samples_B, torch.full_like(cursors_B, position))
        next_B, logprobs_B = choose(logits_BV, uniforms_B, settings)
        done_B = torch.isin(next_B, ends_E)
        drawn.append(
            torch.stack([rows_B.double(), next_B.double(), logprobs_B.double(), done_B.double()], dim=1)
        )
        on_step()
        alive_B = ~torch.isin(rows_B, torch.cat([d[d[:, 3] > 0, 0] for d in drawn]).long())
        num_alive = int(alive_B.sum())
        if num_alive == 0:
            break
        tokens_BS, positions_BS = next_B[:, None], positions_BS[:, -1:] + 1
        if mask_BS is not None:
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(mask_BS.shape[0], 1)], dim=1)
        if num_alive <= EVICT_BELOW * len(alive_B):
            keep = alive_B.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            tokens_BS, positions_BS = tokens_BS[keep], positions_BS[keep]
            mask_BS = mask_BS[keep] if mask_BS is not None else None
            cursors_B, samples_B, rows_B = cursors_B[keep], samples_B[keep], rows_B[keep]
    for row, token, logprob, done in torch.cat(drawn).cpu().tolist():
        result = results[int(row)]
        if not result.finished:
            result.tokens.append(int(token))
            result.logprobs.append(logprob)
            result.finished = bool(done)


def choose(logits_BV: Tensor, uniforms_B: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at the row's uniform number.

    Returns token ids [B] and their log-probability [B] under the distribution that was sampled from, that is
    after temperature, top-k and top-p. Temperature 0 takes the most probable token (log-probability 0).
    """
    if settings.temperature == 0:
        return logits_BV.argmax(-1), logits_BV.new_zeros(logits_BV.shape[0])
    logprobs_BV = torch.log_softmax(logits_BV / settings.temperature, dim=-1)
    if settings.top_k or settings.top_p < 1:
        logprobs_BV = _filtered(logprobs_BV, settings)
    # Summed in float64: in fp32 the tail of a large vocabulary would be lost in rounding.
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    targets_B = uniforms_B * cumulative_BV[:, -1]
    next_B = torch.searchsorted(cumulative_BV, targets_B[:, None], right=True).squeeze(1)
    next_B = next_B.clamp(max=logits_BV.shape[1] - 1)
    return next_B, logprobs_BV.gather(1, next_B[:, None]).squeeze(1)


def _filtered(logprobs_BV: Tensor, settings: SamplingSettings) -> Tensor:
    """Log-probabilities renormalised over the tokens that top-k and top-p keep."""
    sorted_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True)
    keep_BV = torch.ones_like(sorted_BV, dtype=torch.bool)
    if settings.top_k:
        keep_BV[:, settings.top_k :] = False
    if settings.top_p < 1:
        # A token stays while the mass before it is below top_p, so the first one always does.
        before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
        keep_BV &= before_BV < settings.top_p
    kept_BV = torch.zeros_like(keep_BV).scatter(1, order_BV, keep_BV)
    return torch.log_softmax(logprobs_BV.masked_fill(~kept_BV, float("-inf")), dim=-1)
