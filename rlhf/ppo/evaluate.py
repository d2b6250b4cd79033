"""Held-out prompts during training: what the policy scores, how far it has moved, what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf.core.backbone import Backbone
from rlhf.core.randomness import derived_seed
from rlhf.core.stats import distinct_n
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.kl import k1
from rlhf.ppo.prompts import EncodedPrompt
from rlhf.ppo.rewards import Reward
from rlhf.ppo.rollout import RolloutBatch, collect, normalized_scores


@dataclass(frozen=True)
class Evaluation:
    """figures for metrics.jsonl, all named eval_*; samples: (prompt, completion, score) for people to read."""

    figures: dict[str, float]
    samples: list[tuple[str, str, float]]

    @property
    def objective(self) -> float:
        """What PPO maximises: mean normalised score less kl_coef times the KL divergence."""
        return self.figures["eval_objective"]


def summarize(batch: RolloutBatch, reward: Reward, config: PPOConfig, kl_coef: float) -> dict[str, float]:
    """score (raw), score_normalized, objective, kl (nats per completion), length (tokens), finished, distinct_2."""
    completions = batch.completions
    kl_BT = k1(batch.old_logprobs_BT, batch.ref_logprobs_BT) * completions.mask_BT
    kl = kl_BT.sum(1).mean().item()
    normalized = normalized_scores(batch, reward, config).mean().item()
    return {
        "score": batch.scores_B.mean().item(),
        "score_normalized": normalized,
        "objective": normalized - kl_coef * kl,
        "kl": kl,
        "length": completions.lengths_B.float().mean().item(),
        "finished": completions.finished_B.float().mean().item(),
        "distinct_2": distinct_n(batch.texts, 2),
    }


def evaluate(
    backbone: Backbone,
    reward: Reward,
    prompts: Sequence[EncodedPrompt],
    config: PPOConfig,
    kl_coef: float,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """One completion per held-out prompt, drawn with the same random numbers at every evaluation."""
    seed = derived_seed(config.seed, "evaluation")
    batch = collect(backbone, reward, prompts, config, first_cursor=0, seed=seed, check=check)
    figures = summarize(batch, reward, config, kl_coef)
    rows = zip(batch.prompts, batch.texts, batch.scores_B.tolist(), strict=True)
    samples = [(prompt.text, text, score) for prompt, text, score in rows]
    return Evaluation({f"eval_{name}": value for name, value in figures.items()}, samples)
