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
from rlhf.core.guards import TokenBudget
from rlhf.core.logprobs import token_logprobs
from rlhf.core.processes import ALONE, Processes
from rlhf.core.records import Prompt
from rlhf.core.sampler import Request, sample
from rlhf.ppo.advantages import gae, shaped_rewards, whiten
from rlhf.ppo.completions import CompletionBatch, Completions
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.kl import k1
from rlhf.ppo.prompts import EncodedPrompt
from rlhf.ppo.rewards import Reward, Scores, all_scores, score_own
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
    budget: TokenBudget | None = None,
    processes: Processes = ALONE,
    check: Callable[[], None] = lambda: None,
) -> RolloutBatch:
    """Sample completions of the policy and measure them. `first_cursor` is the first prompt's place in the
    run's stream; the completions depend on it and on the seed, not on what else is in the batch.

    Each process samples and measures the prompts of its share; the batch that all of them get is the whole one.
    budget: of padded tokens per forward pass, by default `config.micro_batch_tokens`.
    """
    requests = [
        Request(encoded.ids, first_cursor + i, g)
        for i, encoded in enumerate(prompts)
        for g in range(samples_per_prompt)
    ]
    owners = [encoded.prompt for encoded in prompts for _ in range(samples_per_prompt)]
    share = processes.share(len(prompts))
    own = range(share.start * samples_per_prompt, share.stop * samples_per_prompt)
    with processes.together():
        drawn = sample(
            backbone.merged(POLICY),
            requests[own.start : own.stop],
            config.sampling,
            end_token_ids=backbone.codec.end_token_ids,
            seed=seed,
            on_step=check,
        )
    drawn = processes.gather_rows(drawn)
    texts = [backbone.codec.decode(sampled.tokens) for sampled in drawn]
    lengths = [len(requests[i].prompt_ids) + len(drawn[i].tokens) for i in own]

    def measure(max_tokens: int) -> tuple[Completions, list[Tensor], Scores]:
        completions = Completions(backbone, requests, drawn, max_tokens=max_tokens, own=own)
        measured = _measure(backbone, completions, config, max_tokens, check)
        return completions, measured, score_own(reward, completions, owners, texts)

    with processes.together():
        completions, measured, scores = (budget or TokenBudget(config.micro_batch_tokens)).fit(
            measure, lengths
        )
    processes.sum_(measured)
    old_BT, ref_BT, values_BT = measured
    sampled_N = torch.tensor([value for row in drawn for value in row.logprobs], device=backbone.device)
    gap = (sampled_N - old_BT[completions.mask_BT]).abs().max().item()
    scores = all_scores(scores, processes)
    return RolloutBatch(
        completions, owners, texts, old_BT, ref_BT, values_BT, scores.total_B, gap, scores.terms
    )


def _measure(
    backbone: Backbone,
    completions: Completions,
    config: PPOConfig,
    max_tokens: int,
    check: Callable[[], None],
) -> list[Tensor]:
    """Logprobs of the policy and of the reference, and values, all [B, T]; 0 in the rows of other processes."""
    shape = completions.mask_BT.shape
    own = completions.own
    old_BT, ref_BT, values_BT = (torch.zeros(shape, device=backbone.device) for _ in range(3))
    with torch.no_grad():
        for places in token_budget_batches([completions.sequences.lengths[i] for i in own], max_tokens):
            check()
            batch = completions.batch([own[place] for place in places])
            hidden_NH = completions.hidden(POLICY, batch)
            where = batch.rows_N, batch.columns_N
            old_BT[where] = token_logprobs_of(backbone, completions, batch, hidden_NH, config)[0]
            values_BT[where] = values_of(backbone, completions, batch, hidden_NH)
            reference_NH = completions.hidden(REFERENCE, batch)
            ref_BT[where] = token_logprobs_of(backbone, completions, batch, reference_NH, config)[0]
    return [old_BT, ref_BT, values_BT]


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
