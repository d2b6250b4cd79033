"""GRPO, RLOO, online DPO and RAFT on PPO's engine: its rollouts, evaluations, checkpoints and exact resume, no critic.

An iteration samples `samples_per_prompt` completions of each prompt, scores them, and makes steps on what the group
says (`rlhf.preference.groups`). The policy keeps PPO's value head, which stays at zero and is not saved.

Departures from the papers: scores are normalised and clipped as in PPO before groups are formed (it changes nothing for
grpo's advantages, whose scale is the group's); rloo has PPO's clip, on the ratio of whole completions, which acts only
where an iteration has several steps; raft takes its steps on the fresh group at once instead of after a whole pass
over the prompts.

Logged per iteration beside PPO's figures: `loss`, `group_std` mean deviation of the shaped scores in a group, `used`
share of the completions that a step learns from (to online-dpo groups of equal scores teach nothing), `tokens_spent`
and `seconds_spent` so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.core.backbone import Backbone
from rlhf.core.batching import token_budget_batches
from rlhf.core.errors import GuardStop
from rlhf.core.guards import require_finite
from rlhf.core.optim import clip_gradients
from rlhf.core.randomness import derived_seed
from rlhf.core.run import Launch
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.evaluate import summarize
from rlhf.ppo.kl import k1, k3
from rlhf.ppo.measure import POLICY, token_logprobs_of
from rlhf.ppo.prompts import PromptStream
from rlhf.ppo.rewards import Reward
from rlhf.ppo.rollout import RolloutBatch
from rlhf.ppo.scores import shaped_scores
from rlhf.ppo.train import PPOTrainer, run_with
from rlhf.ppo.update import RATIO_TOLERANCE, UpdateStats
from rlhf.preference.budget import FORWARD, TRAINED, Budget
from rlhf.preference.config import PreferConfig
from rlhf.preference.groups import (
    best_rows,
    extremes,
    grpo_advantages,
    grpo_losses,
    online_dpo_losses,
    raft_losses,
    rloo_advantages,
    rloo_losses,
)

# Passes over a rollout's tokens before its updates: sampling, the reference, the reward.
ROLLOUT_PASSES = 3 * FORWARD


def run(config: PreferConfig, launch: Launch) -> None:
    """`rlhf prefer` with an online method: a run as of `rlhf ppo`."""
    run_with(partial(GroupTrainer, prefer=config), config.as_ppo(), config, launch, stage="prefer")


class BudgetedTrainer(PPOTrainer):
    """PPO that counts what it spends and ends when its budget is spent."""

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        config: PPOConfig,
        *,
        budget_seconds: float | None = None,
        budget_tokens: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, reward, config, **options)
        self.spent = Budget(budget_seconds, budget_tokens)
        num_steps = config.num_iterations * config.num_epochs * config.num_minibatches
        self.schedule = self.spent.schedule(self.optimizer, config.optim, num_steps)
        self._tokens = 0

    @property
    def expected_iterations(self) -> int | None:
        return None if self.spent.is_bounded else super().expected_iterations

    def collect(self, stream: PromptStream, check: Callable[[], None] = lambda: None) -> RolloutBatch:
        self.spent.start()
        batch = super().collect(stream, check)
        self._tokens = ROLLOUT_PASSES * sum(batch.completions.sequences.lengths)
        return batch

    def update(
        self, batch: RolloutBatch, targets: Any, check: Callable[[], None] = lambda: None
    ) -> UpdateStats:
        stats = super().update(batch, targets, check)
        self.count_update(batch, stats)
        return stats

    def count_update(self, batch: RolloutBatch, stats: UpdateStats) -> None:
        """Note the tokens that an update trained on, prompts included."""
        lengths = batch.completions.sequences.lengths
        share = stats.num_tokens / int(batch.completions.lengths_B.sum())
        self._tokens += round(TRAINED * share * sum(lengths))

    def finish_iteration(self, kl: float, num_completions: int) -> None:
        self.spent.stop()
        self.spent.spend(self._tokens)
        super().finish_iteration(kl, num_completions)
        if self.spent.used_up:
            self.watch.ended = self.watch.ended or self.spent.why()

    def final_figures(self) -> dict[str, float]:
        return {"seconds_training": self.spent.seconds, "tokens_spent": float(self.spent.tokens)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"spent": self.spent.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.spent.load_state(state["spent"])


@dataclass(frozen=True)
class GroupTargets:
    """kl_BT: k1 against the reference. advantages_B: of whole completions. units: what a step is a mean of: rows, or
    the (better, worse) rows of a pair."""

    kl_BT: Tensor
    advantages_B: Tensor
    units: list[tuple[int, ...]]
    group_std: float


class GroupTrainer(BudgetedTrainer):
    """The online methods of `rlhf prefer`; a script of one's own drives it like `PPOTrainer`."""

    stage = "prefer"

    def __init__(
        self, backbone: Backbone, reward: Reward, config: PPOConfig, *, prefer: PreferConfig, **options: Any
    ) -> None:
        super().__init__(
            backbone,
            reward,
            config,
            budget_seconds=prefer.budget_seconds,
            budget_tokens=prefer.budget_tokens,
            **options,
        )
        self.prefer = prefer

    def targets(self, batch: RolloutBatch) -> Any:
        """What the groups of a rollout say."""
        method, config = self.prefer.method, self.config
        size = config.samples_per_prompt
        mask_BT = batch.completions.mask_BT
        kl_BT = torch.where(mask_BT, k1(batch.old_logprobs_BT, batch.ref_logprobs_BT), 0.0)
        scores_B = shaped_scores(batch.scores_B, batch.completions, self.scores.scale, config)
        group_std = scores_B.reshape(-1, size).std(1).mean().item()
        advantages_B = torch.zeros_like(scores_B)
        if method == "grpo":
            advantages_B = grpo_advantages(scores_B, size, scale=self.prefer.online.group_scale)
        elif method == "rloo":
            advantages_B = rloo_advantages(scores_B - self.kl.coef * kl_BT.sum(1), size)
        units: list[tuple[int, ...]]
        if method == "online-dpo":
            units = list(extremes(scores_B, size))
        elif method == "raft":
            units = [(row,) for row in best_rows(scores_B, size)]
        else:
            units = [(row,) for row in range(len(scores_B))]
        return GroupTargets(kl_BT, advantages_B, units, group_std)

    def update(
        self, batch: RolloutBatch, targets: Any, check: Callable[[], None] = lambda: None
    ) -> UpdateStats:
        """num_epochs x num_minibatches optimizer steps. Raises GuardStop as PPO's update does."""
        stats, config, lengths = UpdateStats(), self.config, batch.completions.sequences.lengths
        for epoch in range(config.num_epochs):
            generator = torch.Generator().manual_seed(
                derived_seed(config.seed, "minibatches", self.iteration, epoch)
            )
            order = torch.randperm(len(targets.units), generator=generator)
            for minibatch in order.tensor_split(config.num_minibatches):
                units = [targets.units[i] for i in minibatch.tolist()]
                if units:
                    first = not stats.num_steps
                    work = partial(self._accumulate, batch, targets, units, first, epoch == 0, check)
                    step = self.budget.fit(work, [_padded(unit, lengths) for unit in units])
                    norm = clip_gradients(self.parameters, config.optim.max_grad_norm)
                    require_finite(f"optimizer step {stats.num_steps + 1} of an iteration", grad_norm=norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad(set_to_none=True)
                    stats.merge(step)
                    stats.grad_norms.append(norm)
                    stats.num_steps += 1
                self.schedule.step()
        self.count_update(batch, stats)
        return stats

    def _accumulate(
        self,
        batch: RolloutBatch,
        targets: GroupTargets,
        units: list[tuple[int, ...]],
        first: bool,
        with_entropy: bool,
        check: Callable[[], None],
        max_tokens: int,
    ) -> UpdateStats:
        """Gradients of one minibatch in micro-batches of whole units. Returns their sums."""
        self.optimizer.zero_grad(set_to_none=True)
        completions, stats = batch.completions, UpdateStats()
        lengths = completions.sequences.lengths
        for places in token_budget_batches([_padded(unit, lengths) for unit in units], max_tokens):
            check()
            chosen = [units[place] for place in places]
            micro = completions.batch([row for unit in chosen for row in unit])
            logprobs_N, entropy_N = token_logprobs_of(
                self.backbone,
                completions,
                micro,
                completions.hidden(POLICY, micro),
                self.config,
                with_entropy=with_entropy,
            )
            old_N = micro.of(batch.old_logprobs_BT)
            losses, clip_share = self._losses(batch, targets, micro, logprobs_N, old_N)
            (losses.sum() / len(units)).backward()
            with torch.no_grad():
                log_ratio_N = logprobs_N - old_N
                if first:
                    self._require_ratio_one(log_ratio_N.abs().max().item(), stats)
                k3_sum = (torch.expm1(log_ratio_N) - log_ratio_N).sum().item()
                measured = {} if entropy_N is None else {"entropy": entropy_N.sum().item()}
            count = len(logprobs_N)
            stats.add(
                count,
                kl_old_new=k3_sum,
                ratio=log_ratio_N.exp().sum().item(),
                clip_share=clip_share * count,
                **measured,
            )
            stats.add_mean("loss", losses.sum().item(), len(chosen))
        return stats

    def _losses(
        self, batch: RolloutBatch, targets: GroupTargets, micro: Any, logprobs_N: Tensor, old_N: Tensor
    ) -> tuple[Tensor, float]:
        """(losses of the units of a micro-batch, share that was clipped)."""
        rows_N, num_rows, beta = micro.local_N, len(micro.indices), self.kl.coef
        advantages_b = targets.advantages_B[list(micro.indices)]
        if self.prefer.method == "grpo":
            losses, clipped = grpo_losses(
                logprobs_N,
                old_N,
                micro.of(batch.ref_logprobs_BT),
                advantages_b,
                rows_N,
                clip_range=self.config.clip_range,
                beta=beta,
            )
            return losses, clipped.float().mean().item()
        if self.prefer.method == "rloo":
            losses, clipped = rloo_losses(
                logprobs_N, old_N, advantages_b, rows_N, clip_range=self.config.clip_range
            )
            return losses, clipped.float().mean().item()
        if self.prefer.method == "online-dpo":
            ref_N = micro.of(batch.ref_logprobs_BT)
            return online_dpo_losses(logprobs_N, ref_N, rows_N, num_rows, beta=beta), 0.0
        return raft_losses(logprobs_N, rows_N, num_rows), 0.0

    def _require_ratio_one(self, error: float, stats: UpdateStats) -> None:
        stats.first_ratio_error = max(stats.first_ratio_error, error)
        limit = RATIO_TOLERANCE[self.backbone.dtype]
        if error > limit:
            raise GuardStop(
                f"the policy changed between rollout and update: a log-ratio of {error:.2g} on the first pass, "
                f"expected at most {limit:g}; try --no-trunk-cache, and --model.dtype float32"
            )

    def figures(
        self, batch: RolloutBatch, targets: Any, stats: UpdateStats, seconds: dict[str, float]
    ) -> dict[str, float]:
        """What is logged for an iteration; see the module's text. Raises GuardStop when a figure is not finite."""
        k3_BT = k3(batch.old_logprobs_BT, batch.ref_logprobs_BT) * batch.completions.mask_BT
        scale = self.scores.scale
        figures = summarize(batch, scale, self.config, self.kl.coef) | (
            stats.means() if stats.num_steps else {}
        )
        used = {row for unit in targets.units for row in unit}
        figures |= {
            "kl_k3": k3_BT.sum(1).mean().item(),
            "kl_coef": self.kl.coef,
            "score_mean": scale.mean,
            "score_std": scale.std,
            "group_std": targets.group_std,
            "used": len(used) / len(batch.texts),
            "sampler_gap": batch.sampler_gap,
            "recomputed": float(batch.recomputed),
            "micro_batch_tokens": float(self.budget.tokens),
            "lr": float(self.schedule.get_last_lr()[0]),
            "seconds_rollout": seconds["rollout"],
            "seconds_update": seconds["update"],
            "episodes_per_s": len(batch.texts) / sum(seconds.values()),
            "tokens_spent": float(self.spent.tokens + self._tokens),
            "seconds_spent": self.spent.seconds + sum(seconds.values()),
        }
        require_finite(f"iteration {self.iteration + 1}", **figures)
        return figures

    def save(self, folder: Path) -> None:
        """folder/adapter, without the value head, which was never trained."""
        self.backbone.roles[POLICY].head = None
        super().save(folder)

    def final_figures(self) -> dict[str, float]:
        return super().final_figures() | {"group_size": float(self.config.samples_per_prompt)}


def _padded(unit: tuple[int, ...], lengths: list[int]) -> int:
    """Padded tokens of a unit."""
    return len(unit) * max(lengths[row] for row in unit)
