"""The state of a classify run and what changes it: steps over texts, validation, the best step.

An epoch's order and a step's dropout are functions of (seed, number) alone, so that a state between any two steps is
enough to go on to the same bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.core.batching import token_budget_batches
from rlhf.core.errors import CheckpointError
from rlhf.core.guards import TokenBudget, require_finite, require_finite_parameters
from rlhf.core.optim import clip_gradients, make_optimizer, make_schedule
from rlhf.core.randomness import derived_seed
from sft.classify.config import ClassifyConfig
from sft.classify.measure import confusion_matrix, scores_of
from sft.classify.model import TextClassifier


@dataclass(frozen=True)
class TokenSet:
    """Token rows and the number of each one's label."""

    rows: Sequence[Sequence[int]]
    targets: Sequence[int]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]


def class_weights(targets: Sequence[int], num_labels: int, kind: str) -> Tensor:
    """[K] weights in the loss: 1, or N / (K * how often the label occurs), whose mean over the rows is 1."""
    if kind == "none":
        return torch.ones(num_labels)
    counts = torch.bincount(torch.tensor(targets), minlength=num_labels)
    return len(targets) / (num_labels * counts.clamp(min=1).float())


class ClassifyTrainer:
    """train, validation: tokens with labels. The classifier's trained weights are changed in place."""

    def __init__(
        self, classifier: TextClassifier, train: TokenSet, validation: TokenSet, config: ClassifyConfig
    ) -> None:
        self.classifier, self.train, self.validation, self.config = classifier, train, validation, config
        self.weights_K = class_weights(train.targets, len(classifier.labels), config.class_weights)
        self.budget = TokenBudget(config.micro_batch_tokens, shorter="max_tokens")
        self.parameters = classifier.trained()
        head = classifier.head_parameters()
        body = [p for p in self.parameters.values() if all(p is not one for one in head)]
        self.optimizer = make_optimizer(body, head, config.optim, config.head_lr)
        self.per_epoch = math.ceil(len(train.rows) / config.batch_size)
        self.num_steps = self.per_epoch * config.num_epochs
        self.schedule = make_schedule(self.optimizer, config.optim, self.num_steps)
        self.step = self.best_step = self.stale = 0
        self.validated = -1
        self.sums = {"loss": 0.0, "grad_norm": 0.0, "steps": 0.0}
        self.best_figures: dict[str, float] = {}
        self.best: dict[str, Tensor] = {}

    @property
    def due(self) -> bool:
        """Whether the state has to be validated before the next step."""
        every = self.config.eval_steps or self.per_epoch
        return self.validated != self.step and (self.step % every == 0 or self.step == self.num_steps)

    @property
    def done(self) -> bool:
        return not self.due and (self.step >= self.num_steps or self.stale >= self.config.patience)

    # ---- steps -------------------------------------------------------------------------------------------

    def train_step(self, check: Callable[[], None]) -> float:
        """The next optimizer step. Returns its loss. Raises GuardStop; after Stopped the state is that before it."""
        epoch, place = divmod(self.step, self.per_epoch)
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "epoch", epoch))
        order = torch.randperm(len(self.train.rows), generator=generator).tolist()
        size = self.config.batch_size
        batch = order[place * size : (place + 1) * size]
        lengths = [len(self.train.rows[i]) for i in batch]
        loss = self.budget.fit(lambda max_tokens: self._accumulate(batch, max_tokens, check), lengths)
        norm = clip_gradients(list(self.parameters.values()), self.config.optim.max_grad_norm)
        require_finite(f"step {self.step + 1}", loss=loss, grad_norm=norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name, value in (("loss", loss), ("grad_norm", norm), ("steps", 1.0)):
            self.sums[name] += value
        self.step += 1
        return loss

    def _accumulate(self, batch: Sequence[int], max_tokens: int, check: Callable[[], None]) -> float:
        """Gradients of one batch in micro-batches. Returns the loss: the weighted mean over its texts."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(derived_seed(self.config.seed, "dropout", self.step))
        self.classifier.model.train()
        total_weight = sum(float(self.weights_K[self.train.targets[i]]) for i in batch)
        total = 0.0
        try:
            for places in token_budget_batches([len(self.train.rows[i]) for i in batch], max_tokens):
                check()
                rows = [batch[place] for place in places]
                logits = self.classifier.forward([self.train.rows[i] for i in rows])
                targets = torch.tensor([self.train.targets[i] for i in rows], device=logits.device)
                loss = self._loss_sum(logits, targets, self.config.label_smoothing) / total_weight
                loss.backward()
                total += loss.item()
        finally:
            self.classifier.model.eval()
        return total

    def _loss_sum(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Sum over the rows of the weight of the label x cross-entropy; smoothed mass has the weight of its row."""
        losses = nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        return (losses * self.weights_K.to(losses.device)[targets]).sum()

    # ---- validation --------------------------------------------------------------------------------------

    def validation_logits(self) -> Tensor:
        """[N, K]."""
        return self.budget.fit(
            lambda max_tokens: self.classifier.logits(self.validation.rows, max_tokens),
            self.validation.lengths,
        )

    def validate(self) -> dict[str, float]:
        """Measure, remember the best step. Returns what is logged."""
        require_finite_parameters(f"step {self.step}", self.parameters.values())
        logits, targets = self.validation_logits(), torch.tensor(self.validation.targets)
        weight = float(self.weights_K[targets].sum())
        figures = {"validation_loss": float(self._loss_sum(logits, targets, 0.0)) / weight}
        require_finite(f"step {self.step}", **figures)
        table = confusion_matrix(targets.numpy(), logits.argmax(1).numpy(), len(self.classifier.labels))
        scores = scores_of(table[None])
        figures |= {
            f"validation_{name}": float(np.asarray(scores[name])[0]) for name in ("accuracy", "macro_f1")
        }
        self.validated = self.step
        if not self.best_figures or self._better(figures):
            self.best_figures, self.best_step, self.stale = dict(figures), self.step, 0
            self.best = self._copies()
        else:
            self.stale += 1
        if self.sums["steps"]:
            figures["train_loss"] = self.sums["loss"] / self.sums["steps"]
            figures["grad_norm"] = self.sums["grad_norm"] / self.sums["steps"]
            figures["lr"] = float(self.optimizer.param_groups[0]["lr"])
        self.sums = dict.fromkeys(self.sums, 0.0)
        return figures

    def _better(self, figures: dict[str, float]) -> bool:
        if self.config.choose_by == "loss":
            return figures["validation_loss"] < self.best_figures["validation_loss"]
        return figures["validation_macro_f1"] > self.best_figures["validation_macro_f1"]

    def restore_best(self) -> None:
        self._load(self.best, "the best step")

    # ---- state -------------------------------------------------------------------------------------------

    def _copies(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor], where: str) -> None:
        if {name: p.shape for name, p in self.parameters.items()} != {
            name: value.shape for name, value in weights.items()
        }:
            raise CheckpointError(f"{where}: does not fit the model")
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs. Raises GuardStop rather than hand out weights that are not finite."""
        require_finite_parameters(f"step {self.step}", self.parameters.values())
        return {
            "step": self.step,
            "stale": self.stale,
            "validated": self.validated,
            "best_step": self.best_step,
            "best_figures": self.best_figures,
            "best": self.best,
            "sums": dict(self.sums),
            "weights": self._copies(),
            # A copy: the optimizer goes on changing its own tensors in place.
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "micro_batch_tokens": self.budget.tokens,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.stale, self.validated = state["step"], state["stale"], state["validated"]
        self.best_step, self.best_figures, self.best = (
            state["best_step"],
            state["best_figures"],
            state["best"],
        )
        self.sums = dict(state["sums"])
        self._load(state["weights"], "checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.budget.tokens = min(state["micro_batch_tokens"], self.config.micro_batch_tokens)
        # Sums over another number of threads round differently: the same bits need the same number.
        torch.set_num_threads(state["threads"])
