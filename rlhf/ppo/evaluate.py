"""Held-out prompts during training: what the policy scores, how far it has moved, what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlhf.core.backbone import Backbone
from rlhf.core.guards import TokenBudget, require_finite
from rlhf.core.processes import ALONE, Processes
from rlhf.core.randomness import derived_seed
from rlhf.core.stats import distinct_n
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.kl import clamped, k1
from rlhf.ppo.prompts import EncodedPrompt
from rlhf.ppo.rewards import Reward, all_scores, score_own
from rlhf.ppo.rollout import RolloutBatch, collect
from rlhf.ppo.scores import ScoreScale, clipped_share, shaped_scores


@dataclass(frozen=True)
class Evaluation:
    """figures for metrics.jsonl, all named eval_*; samples: rows for people to read.

    scores_P, heldout_P: scores of the single prompts by the reward and by the held-out one (None without one).
    """

    figures: dict[str, float]
    samples: list[dict[str, Any]]
    scores_P: Tensor
    heldout_P: Tensor | None


def summarize(batch: RolloutBatch, scale: ScoreScale, config: PPOConfig, kl_coef: float) -> dict[str, float]:
    """Means over a rollout, by the names that the text of `rlhf.ppo.train` explains."""
    completions = batch.completions
    kl = completion_kl(batch).mean().item()
    shaped = shaped_scores(batch.scores_B, completions, scale, config).mean().item()
    clamped_BT = clamped(batch.old_logprobs_BT, batch.ref_logprobs_BT) & completions.mask_BT
    return {
        "score": batch.scores_B.mean().item(),
        **{f"score/{name}": scores_B.mean().item() for name, scores_B in batch.terms.items()},
        "score_normalized": shaped,
        "score_clip_share": clipped_share(batch.scores_B, scale, config),
        "objective": shaped - kl_coef * kl,
        "kl": kl,
        "kl_clamp_share": (clamped_BT.sum() / completions.mask_BT.sum()).item(),
        "length": completions.lengths_B.float().mean().item(),
        "finished": completions.finished_B.float().mean().item(),
        "distinct_2": distinct_n(batch.texts, 2),
    }


def completion_kl(batch: RolloutBatch) -> Tensor:
    """Summed k1 [B] of each completion, nats."""
    kl_BT = k1(batch.old_logprobs_BT, batch.ref_logprobs_BT) * batch.completions.mask_BT
    return kl_BT.sum(1)


def evaluate(
    backbone: Backbone,
    reward: Reward,
    prompts: Sequence[EncodedPrompt],
    config: PPOConfig,
    scale: ScoreScale,
    *,
    eval_reward: Reward | None = None,
    budget: TokenBudget | None = None,
    processes: Processes = ALONE,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """One completion per held-out prompt, drawn with the same random numbers at every evaluation.

    Measured with one scale and the KL weight that the run began with, so that evaluations can be compared.
    Raises GuardStop when a figure is not finite.
    """
    seed = derived_seed(config.seed, "evaluation")
    batch = collect(
        backbone,
        reward,
        prompts,
        config,
        first_cursor=0,
        seed=seed,
        budget=budget,
        processes=processes,
        check=check,
    )
    figures = summarize(batch, scale, config, config.kl_coef)
    columns: dict[str, list[Any]] = {
        "prompt": [prompt.text for prompt in batch.prompts],
        "completion": batch.texts,
        "score": batch.scores_B.tolist(),
        **{f"score/{name}": scores_B.tolist() for name, scores_B in batch.terms.items()},
    }
    heldout_B = None
    if eval_reward is not None:
        with processes.together():
            check()
            heldout = score_own(eval_reward, batch.completions, batch.prompts, batch.texts)
        heldout_B = all_scores(heldout, processes).total_B
        figures["heldout_score"] = heldout_B.mean().item()
        columns["heldout_score"] = heldout_B.tolist()
    columns["kl"] = completion_kl(batch).tolist()
    columns["finished"] = batch.completions.finished_B.tolist()
    require_finite("evaluation", **figures)
    samples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    named = {f"eval_{name}": value for name, value in figures.items()}
    return Evaluation(named, samples, batch.scores_B.cpu(), None if heldout_B is None else heldout_B.cpu())
