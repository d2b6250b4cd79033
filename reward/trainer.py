"""The state of a reward run and what changes it: steps over examples, validation after every epoch, the best epoch.

An epoch's order, a step's dropout and an ensemble's resamples are functions of (seed, number) alone, so that a state
between any two steps is enough to go on to the same bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from reward.config import RewardConfig
from reward.data import RewardData
from reward.evaluate import accuracy
from reward.examples import Example, Weigh, examples_of
from reward.heads import Heads, resampled
from reward.objective import Objective
from rlhf.core.adapters import load_role_weights, role_weights
from rlhf.core.backbone import Role
from rlhf.core.batching import token_budget_batches
from rlhf.core.errors import CheckpointError, DataError
from rlhf.core.guards import TokenBudget, require_finite, require_finite_parameters
from rlhf.core.optim import clip_gradients, make_optimizer, make_schedule
from rlhf.core.randomness import derived_seed
from rlhf.core.sequences import Sequences

Weights = dict[str, dict[str, Tensor]]


class RewardTrainer:
    """roles: one, or an ensemble's adapters, each with a head as `heads` describes it.

    weigh: what an answer of each annotator counts, in training and in the validation loss. nats: see `examples_of`.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        heads: Heads,
        sequences: Sequences,
        data: RewardData,
        config: RewardConfig,
        weigh: Weigh,
        nats: float | None = None,
    ) -> None:
        self.roles, self.heads, self.sequences, self.config = roles, heads, sequences, config
        self.examples = examples_of(data, "train", config, weigh, heads.attributes, nats)
        # By all alike, a model that has learned whom to believe looks too sure of itself, and the first epoch wins.
        self.validation = examples_of(
            data, "validation", config, weigh, heads.attributes, nats
        ) or examples_of(data, "validation", config, lambda annotator: 1.0, heads.attributes)
        self.validation_pairs = data.pairs["validation"]
        self.objective = Objective(config, heads.attributes, sequences.backbone.device)
        if not self.examples:
            raise DataError(
                "no training example is left: the answers of like reliable raters contradict each other everywhere"
            )
        self.budget = TokenBudget(sequences.max_tokens, shorter="max_tokens")
        self.steps_per_epoch = math.ceil(len(self.examples) / config.batch_pairs)
        self._resampled = resampled(
            [example.family for example in self.examples], config.ensemble, self._generator("ensemble", 0)
        )
        self._extras = self.objective.used(self.examples)
        top = [p for role in roles for p in _head(role).parameters()] + self._extras
        self.parameters = [p for role in roles for p in role.parameters()] + self._extras
        below = [p for p in self.parameters if all(p is not one for one in top)]
        self.optimizer: AdamW = make_optimizer(below, top, config.optim, config.head_lr)
        num_steps = config.num_epochs * self.steps_per_epoch
        self.schedule: LambdaLR = make_schedule(self.optimizer, config.optim, num_steps)
        self.epoch = self.step = self.stale = self.best_epoch = 0
        self.sums = {"loss": 0.0, "grad_norm": 0.0}
        self.best_loss = math.inf
        self.best = self.weights()

    @property
    def done(self) -> bool:
        return self.epoch >= self.config.num_epochs or self.stale >= self.config.patience

    @property
    def global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    # ---- steps -------------------------------------------------------------------------------------------

    def train_step(self, check: Callable[[], None]) -> float:
        """The next optimizer step. Returns its loss. Raises GuardStop; after Stopped the state is that before it."""
        generator = self._generator("epoch", self.epoch)
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        size = self.config.batch_pairs
        batch = [self.examples[i] for i in order[self.step * size : (self.step + 1) * size]]
        set_dropout_on(self.roles, True)
        lengths = [self._length(example) for example in batch]
        loss = self.budget.fit(lambda max_tokens: self._accumulate(batch, max_tokens, check), lengths)
        set_dropout_on(self.roles, False)
        norm = clip_gradients(self.parameters, self.config.optim.max_grad_norm)
        where = f"epoch {self.epoch + 1}, step {self.step + 1}"
        require_finite(where, loss=loss, grad_norm=norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.sums["loss"] += loss
        self.sums["grad_norm"] += norm
        self.step += 1
        return loss

    def finish_epoch(self) -> dict[str, float]:
        """Validate, remember the best epoch, count. Returns what is logged."""
        require_finite_parameters(f"epoch {self.epoch + 1}", self.parameters)
        figures = {f"train_{name}": value / self.steps_per_epoch for name, value in self.sums.items()}
        figures["grad_norm"] = figures.pop("train_grad_norm")
        self.epoch, self.step = self.epoch + 1, 0
        self.sums = dict.fromkeys(self.sums, 0.0)
        validation_loss, validation_accuracy = self._validate()
        if validation_loss < self.best_loss:
            self.best_loss, self.best_epoch, self.stale = validation_loss, self.epoch, 0
            self.best = self.weights()
        else:
            self.stale += 1
        figures |= {"validation_loss": validation_loss, "validation_accuracy": validation_accuracy}
        return figures | {"lr": float(self.schedule.get_last_lr()[0])}

    def _length(self, example: Example) -> int:
        """Padded tokens of an example."""
        return len(example.rows) * max(self.sequences.lengths[row] for row in example.rows)

    def _accumulate(self, batch: Sequence[Example], max_tokens: int, check: Callable[[], None]) -> float:
        """Gradients of one batch in micro-batches of whole examples. Returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        # Dropout draws from the global generator.
        torch.manual_seed(derived_seed(self.config.seed, "dropout", self.epoch, self.step))
        total_weight = sum(example.weight for example in batch)
        total = 0.0
        for indices in token_budget_batches([self._length(example) for example in batch], max_tokens):
            examples = [batch[i] for i in indices]
            # Each distinct completion goes through the model once.
            rows = sorted({row for example in examples for row in example.rows})
            place = {row: k for k, row in enumerate(rows)}
            states = self.sequences.batch(rows)
            times = torch.tensor(
                [self._resampled[example.family] for example in examples], dtype=torch.float32
            ).to(self.sequences.backbone.device)
            for number, role in enumerate(self.roles):
                check()
                columns = times if len(self.roles) == 1 else times[:, number, None]
                outputs = _head(role)(self.sequences.last_hidden(role.name, states).float())
                loss = self.objective.loss_sum(outputs, examples, place, columns) / total_weight
                loss.backward()
                total += loss.item() / len(self.roles)
        return total

    # ---- scores ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def outputs(self, rows: Sequence[int], check: Callable[[], None] = lambda: None) -> Tensor:
        """[roles, len(rows), C] outputs of all heads for these rows, in fp32 on the CPU."""
        lengths = [self.sequences.lengths[row] for row in rows]

        def work(max_tokens: int) -> Tensor:
            found = torch.zeros(len(self.roles), len(rows), self.heads.num_outputs)
            for places in token_budget_batches(lengths, max_tokens):
                check()
                states = self.sequences.batch([rows[place] for place in places])
                for number, role in enumerate(self.roles):
                    hidden = self.sequences.last_hidden(role.name, states).float()
                    found[number, places] = _head(role)(hidden).cpu()
            return found

        return self.budget.fit(work, lengths)

    def scores(self, outputs: Tensor) -> np.ndarray:
        """[len(rows)] the score that will be saved, from `outputs`."""
        return torch.stack([self.heads.scores(one) for one in outputs]).mean(0).numpy()

    def _validate(self) -> tuple[float, float]:
        """(mean loss of the validation examples; accuracy on decided comparisons, 0.5 where there are none)."""
        rows = sorted(
            {row for example in self.validation for row in example.rows}
            | {row for pair in self.validation_pairs for row in (pair.chosen, pair.rejected)}
        )
        place = {row: k for k, row in enumerate(rows)}
        outputs = self.outputs(rows)
        members = self.heads.num_members
        # The ensemble is judged by the score it gives together.
        mean = torch.cat(
            [outputs[:, :, :members].mean((0, 2))[:, None], outputs[:, :, members:].mean(0)], dim=1
        )
        with torch.no_grad():
            mean = mean.to(self.sequences.backbone.device)
            loss = self.objective.loss_sum(mean, self.validation, place, centred=False).item()
        loss /= sum(example.weight for example in self.validation)
        scores = np.full(len(self.sequences), np.nan)
        scores[rows] = self.scores(outputs)
        interval = accuracy(scores, self.validation_pairs, self.config.seed)
        return loss, interval.mean if interval else 0.5

    # ---- state -------------------------------------------------------------------------------------------

    def weights(self) -> Weights:
        """Copies of all that is trained."""
        found = {role.name: role_weights(role) for role in self.roles}
        return found | {
            "objective": {k: v.detach().cpu().clone() for k, v in self.objective.state_dict().items()}
        }

    def load_weights(self, weights: Weights, where: str) -> None:
        if set(weights) != {*(role.name for role in self.roles), "objective"}:
            raise CheckpointError(f"{where}: holds {sorted(weights)}")
        for role in self.roles:
            load_role_weights(role, weights[role.name], where)
        self.objective.load_state_dict(weights["objective"])

    def restore_best(self) -> None:
        self.load_weights(self.best, "best epoch")

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs. Raises GuardStop rather than hand out weights that are not finite."""
        require_finite_parameters(f"epoch {self.epoch + 1}, step {self.step}", self.parameters)
        return {
            "epoch": self.epoch,
            "step": self.step,
            "sums": dict(self.sums),
            "stale": self.stale,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "best": self.best,
            "weights": self.weights(),
            # A copy: the optimizer goes on changing its own tensors in place.
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "micro_batch_tokens": self.budget.tokens,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step, self.stale = state["epoch"], state["step"], state["stale"]
        self.sums = dict(state["sums"])
        self.best_epoch, self.best_loss, self.best = state["best_epoch"], state["best_loss"], state["best"]
        self.load_weights(state["weights"], "checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.budget.tokens = min(state["micro_batch_tokens"], self.config.micro_batch_tokens)
        # Sums over another number of threads round differently: the same bits need the same number.
        torch.set_num_threads(state["threads"])

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.config.seed, purpose, number))


def _head(role: Role) -> nn.Linear:
    assert role.head is not None
    return role.head


def set_dropout_on(roles: Sequence[Role], on: bool) -> None:
    """Only the adapters' dropout: the model's own would also act below the trunk."""
    for role in roles:
        for name, module in role.model.named_modules():
            if "lora_dropout" in name:
                module.train(on)


def set_dropout(roles: Sequence[Role], share: float) -> None:
    """Change the share that the adapters' dropout leaves out, where there is dropout at all."""
    for role in roles:
        if role.lora is not None:
            role.lora.lora_dropout = share
        for name, module in role.model.named_modules():
            if "lora_dropout" in name and isinstance(module, nn.Dropout):
                module.p = share
