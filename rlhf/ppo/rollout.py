"""Collecting experience: sample, then measure everything the update needs, once, without gradients.

`RolloutBatch` is measured and never changes; `Targets` (rewards, advantages, returns) are derived from it.
Column t of every [B, T] tensor is the completion's token t; `old_logprobs_BT[b, t]` is log p(token t | the
tokens before t) under the policy that sampled it, `values_BT[b, t]` the value of the state before token t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.core.backbone import Backbone
from rlhf.core.batching import token_budget_batches
from rlhf.core.records import Prompt
from rlhf.core.sampler import Request, Sampled, sample
from rlhf.core.stopping import StopRule
from rlhf.ppo.advantages import gae, shaped_rewards, whiten
from rlhf.ppo.completions import Completions
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.kl import k1
from rlhf.ppo.measure import POLICY, measure
from rlhf.ppo.prompts import EncodedPrompt
from rlhf.ppo.rewards import Reward


@dataclass(frozen=True)
class RolloutBatch:
    """B completions as they were measured (see `rlhf.ppo.measure`). scores_B are raw outputs of the reward."""

    completions: Completions
    prompts: list[Prompt]
    texts: list[str]
    old_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    values_BT: Tensor
    scores_B: Tensor
    sampler_gap: float
    recomputed: bool


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
    stop = StopRule(backbone.codec, config.sampling)
    drawn = _draw(backbone, requests, config, stop, seed, check)
    measured = measure(backbone, requests, drawn, config, check)
    texts = [stop.text(sampled.tokens) for sampled in drawn]
    completions = measured.completions
    scores_B = torch.zeros(len(owners), device=backbone.device)
    for indices in token_budget_batches(completions.sequences.lengths, config.micro_batch_tokens):
        asked, answered = [owners[i] for i in indices], [texts[i] for i in indices]
        batch = completions.sequences.batch(indices)
        scores_B[indices] = reward.score(completions.sequences, batch, asked, answered).float()
    return RolloutBatch(prompts=owners, texts=texts, scores_B=scores_B, **vars(measured))


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
    return sample(
        backbone.merged(POLICY),
        requests,
        config.sampling,
        stop=stop,
        seed=seed,
        capture_layer=backbone.first_top_layer,
        read=None if head is None else lambda hidden_BH: head(hidden_BH.float()).squeeze(1),
        on_step=check,
    )


def normalized_scores(batch: RolloutBatch, reward: Reward, config: PPOConfig) -> Tensor:
    """Scores [B] brought to the scale that the reward saved, clipped, less the penalty for not ending in time."""
    scores_B = batch.scores_B
    if config.normalize_scores:
        scores_B = (scores_B - reward.mean) / reward.std
    scores_B = scores_B.clamp(-config.score_clip, config.score_clip)
    return scores_B - config.missing_end_penalty * (~batch.completions.finished_B)


def make_targets(batch: RolloutBatch, reward: Reward, config: PPOConfig, kl_coef: float) -> Targets:
    """Scores and KL to token rewards, then advantages and returns."""
    mask_BT = batch.completions.mask_BT
    kl_BT = torch.where(mask_BT, k1(batch.old_logprobs_BT, batch.ref_logprobs_BT), 0.0)
    rewards_BT = shaped_rewards(normalized_scores(batch, reward, config), kl_BT, mask_BT, kl_coef)
    advantages_BT, returns_BT = gae(
        rewards_BT, batch.values_BT, mask_BT, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    if config.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT)
    return Targets(kl_BT, rewards_BT, advantages_BT, returns_BT)
