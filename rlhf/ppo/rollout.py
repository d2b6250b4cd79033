"""Collecting experience: sample, then measure everything the update needs, once, without gradients.

`RolloutBatch` is measured and never changes; `Targets` (rewards, advantages, returns) are derived from it.
Column t of every [B, T] tensor is the completion's token t; `old_logprobs_BT[b, t]` is log p(token t | the
tokens before t) under the policy that sampled it, `values_BT[b, t]` the value of the state before token t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.batching import token_budget_batches
from rlhf.core.logprobs import token_logprobs
from rlhf.core.records import Prompt
from rlhf.core.sampler import Request, sample
from rlhf.ppo.advantages import gae, shaped_rewards, whiten
from rlhf.ppo.completions import CompletionBatch, Completions
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.kl import k1
from rlhf.ppo.prompts import EncodedPrompt
from rlhf.ppo.rewards import Reward, score_completions
from rlhf.ppo.scores import ScoreScale, shaped_scores

POLICY, VALUE = "policy", "value"


@dataclass(frozen=True)
class RolloutBatch:
    """B completions as they were measured. scores_B are raw outputs of the reward, terms those of its parts.

    sampler_gap: largest difference between a log-probability of the sampler and its recomputation, nats.
    """

    completions: Completions
    prompts: list[Prompt]
    texts: list[str]
    old_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    values_BT: Tensor
    scores_B: Tensor
    sampler_gap: float
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """Derived from a batch: kl_BT (k1 against the reference), token rewards, advantages, returns."""

    kl_BT: Tensor
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor


def collect(
    backbone: Backbone,
    reward: Reward,
    prompts: Sequence[EncodedPrompt],
    config: PPOConfig,
    *,
    first_cursor: int,
    seed: int,
    samples_per_prompt: int = 1,
    check: Callable[[], None] = lambda: None,
) -> RolloutBatch:
    """Sample completions of the policy and measure them. `first_cursor` is the first prompt's place in the
    run's stream; the completions depend on it and on the seed, not on what else is in the batch."""
    requests = [
        Request(encoded.ids, first_cursor + i, g)
        for i, encoded in enumerate(prompts)
        for g in range(samples_per_prompt)
    ]
    owners = [encoded.prompt for encoded in prompts for _ in range(samples_per_prompt)]
    drawn = sample(
        backbone.merged(POLICY),
        requests,
        config.sampling,
        end_token_ids=backbone.codec.end_token_ids,
        seed=seed,
        on_step=check,
    )
    completions = Completions(backbone, requests, drawn, max_tokens=config.micro_batch_tokens)
    texts = [backbone.codec.decode(sampled.tokens) for sampled in drawn]
    shape = completions.mask_BT.shape
    old_BT, ref_BT, values_BT = (torch.zeros(shape, device=backbone.device) for _ in range(3))
    with torch.no_grad():
        for indices in token_budget_batches(completions.sequences.lengths, config.micro_batch_tokens):
            check()
            batch = completions.batch(indices)
            hidden_NH = completions.hidden(POLICY, batch)
            where = batch.rows_N, batch.columns_N
            old_BT[where] = token_logprobs_of(backbone, completions, batch, hidden_NH, config)[0]
            values_BT[where] = values_of(backbone, completions, batch, hidden_NH)
            reference_NH = completions.hidden(REFERENCE, batch)
            ref_BT[where] = token_logprobs_of(backbone, completions, batch, reference_NH, config)[0]
    sampled_N = torch.tensor([value for row in drawn for value in row.logprobs], device=backbone.device)
    gap = (sampled_N - old_BT[completions.mask_BT]).abs().max().item()
    scores = score_completions(reward, completions, owners, texts)
    return RolloutBatch(
        completions, owners, texts, old_BT, ref_BT, values_BT, scores.total_B, gap, scores.terms
    )


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
        backbone.logits,
        hidden_NH,
        batch.of(completions.tokens_BT),
        temperature=config.sampling.temperature,
        vocab_size=backbone.vocab_size,
        with_entropy=with_entropy,
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


def make_targets(batch: RolloutBatch, scale: ScoreScale, config: PPOConfig, kl_coef: float) -> Targets:
    """Scores and KL to token rewards, then advantages and returns."""
    mask_BT = batch.completions.mask_BT
    kl_BT = torch.where(mask_BT, k1(batch.old_logprobs_BT, batch.ref_logprobs_BT), 0.0)
    shaped_B = shaped_scores(batch.scores_B, batch.completions, scale, config)
    rewards_BT = shaped_rewards(shaped_B, kl_BT, mask_BT, kl_coef)
    advantages_BT, returns_BT = gae(
        rewards_BT, batch.values_BT, mask_BT, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    if config.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT)
    return Targets(kl_BT, rewards_BT, advantages_BT, returns_BT)
