"""Collecting experience: sample, then measure everything the update needs, once, without gradients.

`RolloutBatch` is measured and never changes; `Targets` (rewards, advantages, returns) are derived from it.
Column t of every [B, T] tensor is the completion's token t; `old_logprobs_BT[b, t]` is log p(token t | the
tokens before t) under the policy that sampled it, `values_BT[b, t]` the value of the state before token t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlhf.core.allocator import release_freed_memory
from rlhf.core.backbone import Backbone
from rlhf.core.guards import TokenBudget
from rlhf.core.processes import ALONE, Processes
from rlhf.core.records import Prompt
from rlhf.core.sampler import Request, Sampled, sample
from rlhf.core.stopping import StopRule
from rlhf.ppo.advantages import gae, shaped_rewards, whiten
from rlhf.ppo.completions import Completions
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.kl import k1
from rlhf.ppo.measure import POLICY, Measured, measure
from rlhf.ppo.prompts import EncodedPrompt
from rlhf.ppo.rewards import Reward, Scores, all_scores, score_own
from rlhf.ppo.scores import ScoreScale, shaped_scores


@dataclass(frozen=True)
class RolloutBatch:
    """B completions as they were measured (see `rlhf.ppo.measure`).

    scores_B are raw outputs of the reward, terms those of its parts. sampler_gap: largest difference between a
    log-probability of the sampler and its recomputation, nats. recomputed: the sampler's were not used.
    """

    completions: Completions
    prompts: list[Prompt]
    texts: list[str]
    old_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    values_BT: Tensor
    scores_B: Tensor
    sampler_gap: float
    recomputed: bool
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
    stop = StopRule(backbone.codec, config.sampling)
    # Between the phases the kernel gets back what was freed: the blocks of one fit little of the other.
    release_freed_memory(backbone.device)
    with processes.together():
        drawn_own = _draw(backbone, requests[own.start : own.stop], config, stop, seed, check)
    release_freed_memory(backbone.device)
    states = [sampled.trunk_SH for sampled in drawn_own]
    # What the others need to know of a row is small: its states stay here.
    drawn = processes.gather_rows([replace(sampled, trunk_SH=None) for sampled in drawn_own])
    texts = [stop.text(sampled.tokens) for sampled in drawn]
    lengths = [len(requests[i].prompt_ids) + len(drawn[i].tokens) for i in own]

    def work(max_tokens: int) -> tuple[Measured, Scores]:
        measured = measure(backbone, requests, drawn, config, max_tokens, own=own, states=states, check=check)
        return measured, score_own(reward, measured.completions, owners, texts)

    with processes.together():
        measured, scores = (budget or TokenBudget(config.micro_batch_tokens)).fit(work, lengths)
    processes.sum_([measured.old_logprobs_BT, measured.ref_logprobs_BT, measured.values_BT])
    scores = all_scores(scores, processes)
    return RolloutBatch(
        measured.completions,
        owners,
        texts,
        measured.old_logprobs_BT,
        measured.ref_logprobs_BT,
        measured.values_BT,
        scores.total_B,
        max(processes.gather(measured.sampler_gap)),
        any(processes.gather(measured.recomputed)),
        scores.terms,
    )


def _draw(
    backbone: Backbone,
    requests: Sequence[Request],
    config: PPOConfig,
    stop: StopRule,
    seed: int,
    check: Callable[[], None],
) -> list[Sampled]:
    """Sample, and keep the trunk states and values that the sampler has at hand anyway."""
    head = backbone.roles[POLICY].head
    with backbone.sampling(POLICY) as model:
        return sample(
            model,
            requests,
            config.sampling,
            end_token_ids=stop.token_ids,
            ended_by_text=stop.ended_by_text,
            seed=seed,
            capture_layer=backbone.first_top_layer,
            read=None if head is None else lambda hidden_BH: head(hidden_BH.float()).squeeze(1),
            on_step=check,
        )


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
