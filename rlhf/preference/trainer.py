"""The state of an offline run and what changes it: steps over examples, validation after every epoch, the best epoch.

As in the reward stage an epoch's order and a step's dropout are functions of (seed, number) alone, so a state between
any two steps is enough to go on to the same bits. Trunk states and the reference's log-probabilities are computed once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from reward.examples import Comparison
from reward.trainer import set_dropout_on
from rlhf.core.adapters import load_role_weights, role_weights
from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.batching import token_budget_batches
from rlhf.core.guards import TokenBudget, require_finite, require_finite_parameters
from rlhf.core.logprobs import token_logprobs
from rlhf.core.optim import clip_gradients, make_optimizer
from rlhf.core.randomness import derived_seed
from rlhf.core.sampler import Request, Sampled
from rlhf.ppo.completions import Completions
from rlhf.ppo.measure import POLICY
from rlhf.preference.budget import FORWARD, TRAINED, Budget
from rlhf.preference.config import PairMethod, PreferConfig
from rlhf.preference.data import PreferenceData, Verdict
from rlhf.preference.losses import PairLoss, Sides, kto_losses


@dataclass
class Sums:
    """Sums over examples by name, each with the weight that divides it."""

    totals: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, weight: float, **sums: float) -> None:
        for name, value in sums.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def merge(self, other: Sums) -> None:
        for name, value in other.totals.items():
            self.add(other.weights[name], **{name: value})

    def means(self) -> dict[str, float]:
        return {name: total / max(self.weights[name], 1e-12) for name, total in self.totals.items()}


class OfflineTrainer:
    """A policy adapter trained on the examples of `rlhf.preference.data`."""

    def __init__(
        self,
        backbone: Backbone,
        data: PreferenceData,
        config: PreferConfig,
        *,
        check: Callable[[], None] = lambda: None,
        on_reference: Callable[[int], None] = lambda n: None,
    ) -> None:
        self.backbone, self.config, self.data = backbone, config, data
        self.role = backbone.add_role(POLICY, config.lora, seed=config.seed)
        self.trunk_note = "trunk cache off: --no-trunk-cache"
        if config.trunk_cache:
            self.trunk_note = backbone.enable_trunk(data.longest)
        if config.gradient_checkpointing:
            backbone.checkpoint_gradients(POLICY)
        self.completions = completions_of(backbone, data, config)
        self.examples, self.validation = data.examples["train"], data.examples["validation"]
        self.pair_loss = pair_loss_of(config)
        self.budget = TokenBudget(config.micro_batch_tokens, shorter="max_tokens")
        self.spent = Budget(config.budget_seconds, config.budget_tokens)
        self.parameters = self.role.parameters()
        self.optimizer = make_optimizer(self.parameters, [], config.optim, None)
        self.steps_per_epoch = math.ceil(len(self.examples) / config.batch_size)
        self.schedule = self.spent.schedule(
            self.optimizer, config.optim, config.num_epochs * self.steps_per_epoch
        )
        self.epoch = self.step = self.stale = self.best_epoch = 0
        self.best_loss = math.inf
        self.best = role_weights(self.role)
        self.spent.start()
        self.reference_R = self._reference(check, on_reference)
        self.spent.stop()

    @property
    def done(self) -> bool:
        over = self.epoch >= self.config.num_epochs or self.stale >= self.config.patience
        return over or (self.spent.used_up and self.step == 0)

    @property
    def epoch_is_over(self) -> bool:
        return self.step >= self.steps_per_epoch or (self.spent.used_up and self.step > 0)

    @property
    def global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    # ---- steps -------------------------------------------------------------------------------------------

    def train_step(self, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The next optimizer step; returns its figures. Raises GuardStop; after Stopped the state is that before it."""
        self.spent.start()
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "epoch", self.epoch))
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        size = self.config.batch_size
        batch = [self.examples[i] for i in order[self.step * size : (self.step + 1) * size]]
        set_dropout_on([self.role], True)
        lengths = [self._length(example) for example in batch]
        sums = self.budget.fit(lambda max_tokens: self._accumulate(batch, max_tokens, check), lengths)
        set_dropout_on([self.role], False)
        figures = sums.means()
        norm = clip_gradients(self.parameters, self.config.optim.max_grad_norm)
        figures |= {"grad_norm": norm, "lr": float(self.optimizer.param_groups[0]["lr"])}
        require_finite(f"step {self.global_step + 1}", **figures)
        self.optimizer.step()
        self.spent.spend(TRAINED * sum(self._tokens(example) for example in batch))
        self.spent.stop()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return figures

    def finish_epoch(self, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Validate, remember the best epoch, count. Returns what is logged."""
        require_finite_parameters(f"epoch {self.epoch + 1}", self.parameters)
        figures = {
            f"validation_{name}": value for name, value in self.measure(self.validation, check).items()
        }
        require_finite(f"epoch {self.epoch + 1}", **figures)
        self.epoch, self.step = self.epoch + 1, 0
        if figures["validation_loss"] < self.best_loss:
            self.best_loss, self.best_epoch, self.stale = figures["validation_loss"], self.epoch, 0
            self.best = role_weights(self.role)
        else:
            self.stale += 1
        return figures

    @torch.no_grad()
    def measure(self, examples: Sequence[Any], check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Means over examples, without dropout."""
        if not examples:
            return {}
        lengths = [self._length(example) for example in examples]

        def work(max_tokens: int) -> Sums:
            kl = self._kl(examples, max_tokens, check)
            sums = Sums()
            for places in token_budget_batches(lengths, max_tokens):
                check()
                sums.merge(self._pass([examples[place] for place in places], kl)[1])
            return sums

        return self.budget.fit(work, lengths).means()

    def _accumulate(self, batch: Sequence[Any], max_tokens: int, check: Callable[[], None]) -> Sums:
        """Gradients of one batch in micro-batches of whole examples."""
        self.optimizer.zero_grad(set_to_none=True)
        # Dropout draws from the global generator.
        torch.manual_seed(derived_seed(self.config.seed, "dropout", self.epoch, self.step))
        kl = self._kl(batch, max_tokens, check)
        total_weight = sum(example.weight for example in batch)
        sums = Sums()
        for places in token_budget_batches([self._length(example) for example in batch], max_tokens):
            check()
            loss, found = self._pass([batch[place] for place in places], kl)
            (loss / total_weight).backward()
            sums.merge(found)
        return sums

    def _pass(self, examples: Sequence[Any], kl: Tensor) -> tuple[Tensor, Sums]:
        """(weighted sum of losses, sums of what is logged) of one micro-batch."""
        # Each distinct completion goes through the model once.
        rows = sorted({row for example in examples for row in example.rows})
        place = {row: k for k, row in enumerate(rows)}
        logprobs_R = self.logprobs(POLICY, rows)
        weights = logprobs_R.new_tensor([example.weight for example in examples])
        if self.config.method == "kto":
            losses, sums = self._verdict_losses(
                cast(Sequence[Verdict], examples), logprobs_R, rows, place, kl
            )
        else:
            losses, sums = self._pair_losses(cast(Sequence[Comparison], examples), logprobs_R, rows, place)
        loss = (weights * losses).sum()
        sums.add(weights.sum().item(), loss=loss.item())
        return loss, sums

    def _pair_losses(
        self, examples: Sequence[Comparison], logprobs_R: Tensor, rows: Sequence[int], place: dict[int, int]
    ) -> tuple[Tensor, Sums]:
        where = torch.tensor([[place[row] for row in example.rows] for example in examples])
        numbers = torch.tensor(rows)[where]
        device = logprobs_R.device
        lengths_R = self.completions.lengths_B
        sides = Sides(
            logprobs_R[where.to(device)],
            self.reference_R[numbers].to(device),
            lengths_R[numbers.to(device)].to(logprobs_R.dtype),
        )
        outcome_P3 = logprobs_R.new_tensor([example.outcome for example in examples])
        margin_P = logprobs_R.new_tensor([example.margin for example in examples])
        assert self.pair_loss is not None
        losses_P = self.pair_loss(sides, outcome_P3, margin_P)
        sums = Sums()
        with torch.no_grad():
            rewards_P2 = self.pair_loss.rewards(sides)
            difference_P = rewards_P2[:, 0] - rewards_P2[:, 1]
            sign_P = (outcome_P3[:, 0] - outcome_P3[:, 2]).sign()
            decided = sign_P != 0
            right_P = (difference_P * sign_P > 0).float() + 0.5 * (difference_P == 0)
            sums.add(decided.sum().item(), accuracy=right_P[decided].sum().item())
            sums.add(decided.sum().item(), margin=(difference_P * sign_P)[decided].sum().item())
            ratios = (sides.logprobs_P2 - sides.ref_logprobs_P2).sum(1)
            sums.add(2 * len(examples), log_ratio=ratios.sum().item())
        return losses_P, sums

    def _verdict_losses(
        self,
        examples: Sequence[Verdict],
        logprobs_R: Tensor,
        rows: Sequence[int],
        place: dict[int, int],
        kl: Tensor,
    ) -> tuple[Tensor, Sums]:
        ratios_R = logprobs_R - self.reference_R[torch.tensor(rows)].to(logprobs_R.device)
        ratios_B = ratios_R[[place[example.row] for example in examples]]
        good_B = ratios_B.new_tensor([example.good for example in examples])
        bad_B = ratios_B.new_tensor([example.bad for example in examples])
        losses_B = kto_losses(
            ratios_B,
            good_B,
            bad_B,
            kl,
            beta=self.config.kl_weight,
            desirable_weight=self.config.desirable_weight,
            undesirable_weight=self.config.undesirable_weight,
        )
        sums = Sums()
        with torch.no_grad():
            sign_B = (good_B - bad_B).sign()
            right_B = ((ratios_B - kl) * sign_B > 0).float()
            decided = sign_B != 0
            sums.add(decided.sum().item(), accuracy=right_B[decided].sum().item())
            sums.add(len(examples), log_ratio=ratios_B.sum().item(), kl_estimate=kl.item() * len(examples))
        return losses_B, sums

    # ---- log-probabilities -------------------------------------------------------------------------------

    def logprobs(self, role: str, rows: Sequence[int]) -> Tensor:
        """[R] summed log-probability of the rows' completions, at the sampling temperature."""
        batch = self.completions.batch(rows)
        logprobs_N, _ = token_logprobs(
            self.backbone.head,
            self.completions.hidden(role, batch),
            batch.of(self.completions.tokens_BT),
            temperature=self.config.sampling.temperature,
        )
        return logprobs_N.new_zeros(len(rows)).index_add(0, batch.local_N, logprobs_N)

    @torch.no_grad()
    def _reference(self, check: Callable[[], None], on_reference: Callable[[int], None]) -> Tensor:
        """[rows] of the reference, on the CPU; it never changes."""
        lengths = self.completions.sequences.lengths

        def work(max_tokens: int) -> Tensor:
            found_R = torch.zeros(len(lengths))
            for rows in token_budget_batches(lengths, max_tokens):
                check()
                found_R[rows] = self.logprobs(REFERENCE, rows).cpu()
                on_reference(len(rows))
            return found_R

        self.spent.spend(FORWARD * sum(lengths))
        return self.budget.fit(work, lengths)

    @torch.no_grad()
    def _kl(self, examples: Sequence[Any], max_tokens: int, check: Callable[[], None]) -> Tensor:
        """kto's estimate z of KL(policy || reference): mean log-ratio of completions of other prompts, at least 0."""
        if self.config.method != "kto":
            return torch.zeros((), device=self.backbone.device)
        rows = [example.kl_row for example in examples]
        lengths = [self.completions.sequences.lengths[row] for row in rows]
        total = torch.zeros((), device=self.backbone.device)
        for places in token_budget_batches(lengths, max_tokens):
            check()
            chosen = [rows[place] for place in places]
            ratios = self.logprobs(POLICY, chosen) - self.reference_R[chosen].to(self.backbone.device)
            total = total + ratios.sum()
        return (total / len(rows)).clamp(min=0)

    def _length(self, example: Any) -> int:
        """Padded tokens of an example."""
        return len(example.rows) * max(self.completions.sequences.lengths[row] for row in example.rows)

    def _tokens(self, example: Any) -> int:
        """Tokens of an example as the budget counts them: for kto also a third of the row of the KL estimate."""
        lengths = self.completions.sequences.lengths
        extra = lengths[example.kl_row] * FORWARD // TRAINED if isinstance(example, Verdict) else 0
        return sum(lengths[row] for row in set(example.rows)) + extra

    # ---- state -------------------------------------------------------------------------------------------

    def restore_best(self) -> None:
        load_role_weights(self.role, self.best, "best epoch")

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs. Raises GuardStop rather than hand out weights that are not finite."""
        require_finite_parameters(f"step {self.global_step}", self.parameters)
        return {
            "epoch": self.epoch,
            "step": self.step,
            "stale": self.stale,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "best": self.best,
            "weights": role_weights(self.role),
            # A copy: the optimizer goes on changing its own tensors in place.
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": self.schedule.last_epoch,
            "spent": self.spent.state(),
            "micro_batch_tokens": self.budget.tokens,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError where the state is of another adapter."""
        load_role_weights(self.role, state["weights"], "checkpoint")
        self.epoch, self.step, self.stale = state["epoch"], state["step"], state["stale"]
        self.best_epoch, self.best_loss, self.best = state["best_epoch"], state["best_loss"], state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]
        self.spent.load_state(state["spent"])
        self.budget.tokens = min(state["micro_batch_tokens"], self.config.micro_batch_tokens)
        # Sums over another number of threads round differently: the same bits need the same number.
        torch.set_num_threads(state["threads"])


def pair_loss_of(config: PreferConfig) -> PairLoss | None:
    """The loss of comparisons, or None for kto."""
    if config.method == "kto":
        return None
    return PairLoss(
        cast(PairMethod, config.method),
        config.kl_weight,
        flip_rate=config.flip_rate,
        margin=config.simpo_margin if config.method == "simpo" else 0.0,
        imitation=config.imitation,
    )


def completions_of(backbone: Backbone, data: PreferenceData, config: PreferConfig) -> Completions:
    """All rows as completions of their prompts, with trunk states where there is a trunk."""
    cut = list(zip(data.rows, data.prompt_lengths, strict=True))
    return Completions(
        backbone,
        [Request(row[:length], 0) for row, length in cut],
        [Sampled(row[length:], [], True) for row, length in cut],
        max_tokens=config.micro_batch_tokens,
        max_bytes=int(config.trunk_cache_gib * 2**30),
    )
