"""The optimizer steps on one rollout: epochs x minibatches, each in micro-batches by token budget.

The loss of a minibatch is divided by its token count once, so cutting it into micro-batches changes nothing
but memory. The first pass starts at ratio 1 exactly as PPO assumes; that is checked, not hoped for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from rlhf.core.backbone import Backbone
from rlhf.core.batching import token_budget_batches
from rlhf.core.errors import GuardStop
from rlhf.core.guards import TokenBudget, require_finite
from rlhf.core.optim import clip_gradients
from rlhf.core.processes import ALONE, Processes
from rlhf.core.randomness import derived_seed
from rlhf.core.sharding import TRAIN
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.losses import policy_loss, value_loss
from rlhf.ppo.measure import POLICY, token_logprobs_of, values_of
from rlhf.ppo.rollout import RolloutBatch, Targets

# A recomputed log-probability may differ by rounding: the micro-batches of the update pad differently.
RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass
class UpdateStats:
    """Sums over what was actually computed; `means` divides each by its own count and averages no zeros."""

    num_steps: int = 0
    num_tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    grad_norms: list[float] = field(default_factory=list)
    first_ratio_error: float = 0.0
    stopped_early: bool = False

    def add(self, num_tokens: int, **sums: float) -> None:
        self.num_tokens += num_tokens
        for name, value in sums.items():
            self._add(name, value, num_tokens)

    def add_mean(self, name: str, total: float, count: int) -> None:
        """A figure whose mean is over something else than tokens."""
        self._add(name, total, count)

    def _add(self, name: str, value: float, count: int) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + count

    def merge(self, other: UpdateStats) -> None:
        """Take in the sums of some more rows of the same step."""
        self.num_tokens += other.num_tokens
        for name, value in other.sums.items():
            self._add(name, value, other.counts[name])
        self.first_ratio_error = max(self.first_ratio_error, other.first_ratio_error)

    def means(self) -> dict[str, float]:
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        return means | {
            "grad_norm": sum(self.grad_norms) / len(self.grad_norms),
            "num_optimizer_steps": float(self.num_steps),
            "first_ratio_error": self.first_ratio_error,
            "stopped_early": float(self.stopped_early),
        }


def update(
    backbone: Backbone,
    batch: RolloutBatch,
    targets: Targets,
    optimizer: Optimizer,
    parameters: Sequence[nn.Parameter],
    config: PPOConfig,
    *,
    iteration: int,
    budget: TokenBudget | None = None,
    processes: Processes = ALONE,
    on_step: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> UpdateStats:
    """num_epochs x num_minibatches optimizer steps, fewer only if target_kl ends them early.

    The minibatches are of all processes' rows and the same for any number of processes; each computes the
    gradients of its own rows. budget: of padded tokens per micro-batch, by default `config.micro_batch_tokens`;
    where memory does not suffice it is halved and the step begins again from its start.
    Raises GuardStop when the ratio does not start at 1 or when a loss or gradient is not finite.
    """
    stats, budget = UpdateStats(), budget or TokenBudget(config.micro_batch_tokens)

    def accumulate(rows: list[int], num_tokens: int, epoch: int) -> UpdateStats:
        own = [row for row in rows if row in batch.completions.own]

        def work(max_tokens: int) -> UpdateStats:
            optimizer.zero_grad(set_to_none=True)
            return _accumulate(
                backbone,
                batch,
                targets,
                config,
                own,
                num_tokens,
                max_tokens,
                first=not stats.num_steps,
                with_entropy=epoch == 0 or config.entropy_coef > 0,
                check=check,
            )

        return budget.fit(work, [batch.completions.sequences.lengths[row] for row in own])

    for epoch in range(config.num_epochs):
        generator = torch.Generator().manual_seed(derived_seed(config.seed, "minibatches", iteration, epoch))
        order = torch.randperm(len(batch.completions), generator=generator)
        for minibatch in order.tensor_split(config.num_minibatches):
            rows = minibatch.tolist()
            num_tokens = int(batch.completions.lengths_B[rows].sum())
            with processes.together():
                sums = accumulate(rows, num_tokens, epoch)
            processes.sum_gradients(parameters)
            step = UpdateStats()
            for share in processes.gather(sums):
                step.merge(share)
            kl_moved = step.sums["kl_old_new"] / num_tokens
            norm = clip_gradients(parameters, config.optim.max_grad_norm)
            where = f"optimizer step {stats.num_steps + 1} of an iteration"
            require_finite(where, grad_norm=norm, kl_old_new=kl_moved)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            stats.merge(step)
            stats.grad_norms.append(norm)
            stats.num_steps += 1
            on_step()
            if config.target_kl is not None and kl_moved > config.target_kl:
                stats.stopped_early = True
                return stats
    return stats


def _accumulate(
    backbone: Backbone,
    batch: RolloutBatch,
    targets: Targets,
    config: PPOConfig,
    rows: list[int],
    num_tokens: int,
    max_tokens: int,
    *,
    first: bool,
    with_entropy: bool,
    check: Callable[[], None],
) -> UpdateStats:
    """Gradients of some rows of a minibatch of `num_tokens`, in micro-batches of `max_tokens`. Returns their sums.

    first: no optimizer step has been made since the rollout. with_entropy: as a measurement it costs passes over
    the vocabulary, so without an entropy bonus the first epoch's is enough.
    """
    completions, stats = batch.completions, UpdateStats()
    lengths = [completions.sequences.lengths[i] for i in rows]
    for chosen in token_budget_batches(lengths, max_tokens):
        check()
        micro = completions.batch([rows[i] for i in chosen])
        backbone.lockstep.turn(TRAIN)
        hidden_NH = completions.hidden(POLICY, micro)
        logprobs_N, entropy_N = token_logprobs_of(
            backbone, completions, micro, hidden_NH, config, with_entropy=with_entropy
        )
        values_N = values_of(backbone, completions, micro, hidden_NH)
        old_N = micro.of(batch.old_logprobs_BT)
        surrogate, num_clipped = policy_loss(
            logprobs_N, old_N, micro.of(targets.advantages_BT), config.clip_range, config.dual_clip
        )
        critic, num_value_clipped = value_loss(
            values_N, micro.of(batch.values_BT), micro.of(targets.returns_BT), config.value_clip_range
        )
        loss = surrogate + config.value_coef * critic
        measured = {}
        if entropy_N is not None:
            loss = loss - config.entropy_coef * entropy_N.sum()
            measured["entropy"] = entropy_N.sum().item()
        (loss / num_tokens).backward()
        backbone.lockstep.done()
        with torch.no_grad():
            log_ratio_N = logprobs_N - old_N
            k3_sum = (torch.expm1(log_ratio_N) - log_ratio_N).sum().item()
            if first:
                _require_ratio_one(log_ratio_N.abs().max().item(), backbone, stats)
        stats.add(
            len(logprobs_N),
            policy_loss=surrogate.item(),
            value_loss=critic.item(),
            kl_old_new=k3_sum,
            clip_share=num_clipped.item(),
            value_clip_share=num_value_clipped.item(),
            ratio=log_ratio_N.exp().sum().item(),
            **measured,
        )
    return stats


def _require_ratio_one(error: float, backbone: Backbone, stats: UpdateStats) -> None:
    stats.first_ratio_error = max(stats.first_ratio_error, error)
    limit = RATIO_TOLERANCE[backbone.dtype]
    if error > limit:
        raise GuardStop(
            f"the policy changed between rollout and update: a log-ratio of {error:.2g} on the first pass, expected "
            f"at most {limit:g}; try --no-trunk-cache, and --model.dtype float32"
        )
