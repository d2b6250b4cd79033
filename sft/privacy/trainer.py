"""The state of a private run and what changes it: Poisson batches, clipped gradients, noise, validation.

Batches and noise come from a key that is drawn once and kept in the checkpoints only: the seed of a run is written
down for everybody, and who knows the noise can take it off again. With the key a state goes on to the same bits; a
step that is done again after a crash sees and adds the same, so that nothing is spent twice.
"""

from __future__ import annotations

import copy
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.core.adapters import load_role_tensors, role_tensors
from rlhf.core.backbone import Backbone, Role, right_padded
from rlhf.core.batching import token_budget_batches
from rlhf.core.errors import CheckpointError
from rlhf.core.guards import TokenBudget, require_finite, require_finite_parameters
from rlhf.core.logprobs import token_logprobs
from rlhf.core.optim import make_optimizer, make_schedule
from rlhf.core.randomness import derived_seed
from rlhf.core.settings import OptimSettings
from sft.data import Example
from sft.privacy.gradients import ExampleGradients
from sft.watch import Validation

KEY_BITS = 128


def poisson_batch(num_examples: int, sample_rate: float, generator: np.random.Generator) -> list[int]:
    """Each example with probability sample_rate, independently of the others: of any size, or empty."""
    return [int(i) for i in np.flatnonzero(generator.random(num_examples) < sample_rate)]


def example_losses(backbone: Backbone, role: Role, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """(sum of -log p over each example's completion tokens [B], how many they are [B])."""
    tokens_BS = right_padded([row.input_ids for row in rows], backbone.codec.pad_token_id, backbone.device)
    counts_BS = right_padded([row.completion_mask for row in rows], 0, backbone.device).bool()[:, 1:]
    hidden_BSH = backbone.hidden(role.name, tokens_BS)[:, :-1]
    logprobs_N, _ = token_logprobs(backbone.head, hidden_BSH[counts_BS], tokens_BS[:, 1:][counts_BS])
    losses_BS = torch.zeros(counts_BS.shape, device=logprobs_N.device).masked_scatter(counts_BS, -logprobs_N)
    return losses_BS.sum(1), counts_BS.sum(1)


class PrivateTrainer:
    """Trains a role's adapter. `collector` is at work (`sft.privacy.gradients.recorded`) while steps are made.

    noise_multiplier: deviation of the noise on the sum of the clipped gradients, in units of max_grad_norm.
    """

    def __init__(
        self,
        backbone: Backbone,
        role: Role,
        train: Sequence[Example],
        optim: OptimSettings,
        collector: ExampleGradients,
        *,
        validate: Callable[[], Validation],
        batch_size: int,
        num_epochs: int,
        eval_steps: int | None,
        patience: int,
        max_grad_norm: float,
        noise_multiplier: float,
        budget: TokenBudget,
    ) -> None:
        self.backbone, self.role, self.train = backbone, role, train
        self.collector, self.patience, self.budget = collector, patience, budget
        self._validate = validate
        self.max_grad_norm, self.noise_multiplier = max_grad_norm, noise_multiplier
        self.sample_rate = min(1.0, batch_size / len(train))
        self.expected_batch = self.sample_rate * len(train)
        self.num_steps, self.eval_steps = planned_steps(len(train), batch_size, num_epochs, eval_steps)
        self.parameters = role.parameters()
        self.optimizer = make_optimizer(self.parameters, [], optim, None)
        self.schedule = make_schedule(self.optimizer, optim, self.num_steps)
        self.key = secrets.randbits(KEY_BITS)
        self.step = self.best_step = self.stale = 0
        self.validated = -1
        self.first, self.best_loss = Validation(math.inf, {}), math.inf
        self.best: dict[str, Tensor] = {}
        self.best_parts: dict[str, float] = {}

    @property
    def due(self) -> bool:
        """Whether the state has to be validated before the next step."""
        return self.validated != self.step and (
            self.step % self.eval_steps == 0 or self.step == self.num_steps
        )

    @property
    def done(self) -> bool:
        return not self.due and (self.step >= self.num_steps or self.stale >= self.patience)

    # ---- steps -------------------------------------------------------------------------------------------

    def train_step(self, check: Callable[[], None]) -> dict[str, float]:
        """The next optimizer step. Returns what is logged, which is not private: keep it with the data.

        Raises GuardStop; after Stopped the state is that before the step.
        """
        places = poisson_batch(len(self.train), self.sample_rate, self._generator("batch"))
        batch = [self.train[i] for i in places]
        lengths = [len(example.input_ids) for example in batch]
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters]
        figures: dict[str, float] = {}  # of an empty batch nothing is known
        if batch:
            sums, figures = self.budget.fit(lambda tokens: self._gradients(batch, tokens, check), lengths)
        noise = self._generator("noise")
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter, total in zip(self.parameters, sums, strict=True):
            # drawn on the CPU: the same numbers on every device
            drawn = torch.from_numpy(noise.standard_normal(tuple(total.shape), dtype=np.float32)) * deviation
            # by the expected size of the batch: its true size is a secret too
            parameter.grad = ((total + drawn.to(total.device)) / self.expected_batch).to(parameter.dtype)
        require_finite(f"step {self.step + 1}", **figures)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return figures | {"batch": float(len(batch)), "lr": float(self.optimizer.param_groups[0]["lr"])}

    def _gradients(
        self, batch: Sequence[Example], max_tokens: int, check: Callable[[], None]
    ) -> tuple[list[Tensor], dict[str, float]]:
        """(sums of clipped gradients; mean loss, mean norm before clipping and share of clipped examples)."""
        torch.manual_seed(derived_seed(self.key, "dropout", self.step))
        self.collector.forget()  # what a pass left that ran out of memory half-way
        self.role.model.train()
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters]
        loss = norm = clipped = 0.0
        try:
            for places in token_budget_batches([len(e.input_ids) for e in batch], max_tokens):
                check()
                losses_B, counts_B = example_losses(self.backbone, self.role, [batch[i] for i in places])
                mean_B = losses_B / counts_B
                mean_B.sum().backward()
                found, norms_B = self.collector.clipped_sums(self.parameters, self.max_grad_norm)
                for total, part in zip(sums, found, strict=True):
                    total += part
                loss += mean_B.sum().item() / len(batch)
                norm += norms_B.sum().item() / len(batch)
                clipped += (norms_B > self.max_grad_norm).sum().item() / len(batch)
        finally:
            self.role.model.eval()
        return sums, {"loss": loss, "grad_norm": norm, "clipped": clipped}

    def _generator(self, purpose: str) -> np.random.Generator:
        # Not torch's generator, which keeps 32 bits of a seed: so few can be tried out one by one.
        return np.random.default_rng([self.key, self.step, *purpose.encode()])

    # ---- validation --------------------------------------------------------------------------------------

    def validate(self) -> Validation:
        """As `rlhf sft` without privacy does; remembers the best step."""
        require_finite_parameters(f"step {self.step}", self.parameters)
        found = self._validate()
        require_finite(f"step {self.step}", validation_loss=found.loss)
        self.validated = self.step
        if found.loss < self.best_loss:
            self.best_loss, self.best_parts = found
            self.best_step, self.stale = self.step, 0
            self.best = role_tensors(self.role)
        else:
            self.stale += 1
        if self.step == 0:
            self.first = found
        return found

    def restore_best(self) -> None:
        load_role_tensors(self.role, self.best, "the best step")

    # ---- state -------------------------------------------------------------------------------------------

    @property
    def _mechanism(self) -> dict[str, float]:
        """What one step costs: equal in all steps, or the accountant would be wrong."""
        return {
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": self.max_grad_norm,
            "sample_rate": self.sample_rate,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs, the key of the noise too. Raises GuardStop for weights that are not finite."""
        require_finite_parameters(f"step {self.step}", self.parameters)
        return {
            "key": self.key,
            "mechanism": self._mechanism,
            "step": self.step,
            "stale": self.stale,
            "validated": self.validated,
            "first": tuple(self.first),
            "best_loss": self.best_loss,
            "best_parts": self.best_parts,
            "best_step": self.best_step,
            "best": self.best,
            "weights": role_tensors(self.role),
            # A copy: the optimizer goes on changing its own tensors in place.
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "pass_tokens": self.budget.tokens,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError for a state whose steps had another noise, clipping norm or rate."""
        if state["mechanism"] != self._mechanism:
            before, now = (
                ", ".join(f"{name} {value:g}" for name, value in one.items())
                for one in (state["mechanism"], self._mechanism)
            )
            raise CheckpointError(
                f"the checkpoint's private steps had {before}; now it is {now}; expected the same, or a run of its own "
                "(--force without --resume)"
            )
        self.key, self.step, self.stale = state["key"], state["step"], state["stale"]
        self.validated, self.first = state["validated"], Validation(*state["first"])
        self.best_loss, self.best_parts = state["best_loss"], state["best_parts"]
        self.best_step, self.best = state["best_step"], state["best"]
        load_role_tensors(self.role, state["weights"], "checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.budget.tokens = state["pass_tokens"]
        # Sums over another number of threads round differently: the same bits need the same number.
        torch.set_num_threads(state["threads"])


def planned_steps(
    num_examples: int, batch_size: int, num_epochs: int, eval_steps: int | None
) -> tuple[int, int]:
    """(steps in all, steps between validations): an epoch sees each demonstration once on average."""
    per_epoch = math.ceil(num_examples / batch_size)
    return per_epoch * num_epochs, eval_steps or per_epoch
