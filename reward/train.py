"""Training the reward model: Bradley-Terry on comparisons, an adapter and a score head on the frozen backbone.

    load -> trunk states once -> epochs of (pairs, loss, step), validation after each -> best epoch
         -> temperature on validation -> figures on test -> adapter directory

Logged per epoch: `train_loss`; `validation_loss` (no dropout, no centring); `validation_accuracy` on decided
comparisons; `grad_norm` before clipping; `lr`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from reward.calibrate import fit_temperature
from reward.config import RewardConfig
from reward.data import Example, PairData, load_pairs, merge_ratings, without_ties
from reward.evaluate import accuracy, differences, report
from reward.loss import pairwise_loss
from reward.score import RewardScale, RewardScorer
from rlhf.core.adapters import load_role_weights, role_weights, save_reward
from rlhf.core.backbone import Backbone, Role
from rlhf.core.batching import token_budget_batches
from rlhf.core.checkpoint import StateCheckpoints
from rlhf.core.errors import DataError, Stopped
from rlhf.core.guards import SignalGuard, require_finite, require_finite_parameters
from rlhf.core.inputs import find_model, find_path, model_name, require_one_process, required
from rlhf.core.metrics import progress
from rlhf.core.optim import clip_gradients, make_optimizer, make_schedule
from rlhf.core.randomness import derived_seed
from rlhf.core.run import CHECKPOINTS, Launch, Run, Workspace
from rlhf.core.sequences import Sequences

ROLE = "reward"


def run(config: RewardConfig, launch: Launch) -> None:
    """`rlhf reward`. Writes OUT/adapter, metrics and manifest; see `rlhf.core.run` for what OUT may be."""
    require_one_process("reward")
    backbone_path = find_model(required(config.backbone, "backbone", "the supervised model"), launch)
    snapshot = find_path(
        required(config.snapshot, "snapshot", "a directory written by `rlhf export`"), launch
    )
    out = launch.out or Workspace(launch.workspace).runs / "reward"
    if launch.dry_run:
        backbone, data = _load(backbone_path, snapshot, config, launch)
        counts = ", ".join(f"{len(pairs)} {split}" for split, pairs in data.pairs.items())
        print(f"reward: would train on {backbone.name} with {counts} comparisons into {out}")
        return
    parents = {"snapshot": snapshot} | (
        {"backbone": Path(backbone_path)} if Path(backbone_path).exists() else {}
    )
    # Opened before the model is loaded: a second launcher and a finished run are answered at once.
    with Run.open(
        out, stage="reward", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"reward: {out} is already finished")
            return
        backbone, data = _load(backbone_path, snapshot, config, launch)
        record.begin()
        train(backbone, data, config, record)


def _load(
    backbone_path: str, snapshot: Path, config: RewardConfig, launch: Launch
) -> tuple[Backbone, PairData]:
    """The backbone and the comparisons in its tokens. Raises ModelError and DataError."""
    backbone = Backbone.load(backbone_path, config.model, name=model_name(backbone_path, launch))
    max_tokens = min(config.max_tokens or backbone.codec.max_tokens, backbone.codec.max_tokens)
    data = load_pairs(
        snapshot,
        backbone.codec,
        max_tokens=max_tokens,
        drop_too_long=config.on_too_long == "drop",
        seed=config.seed,
    )
    if data.num_too_long:
        print(f"reward: left out {data.num_too_long} comparisons longer than {max_tokens} tokens")
    if config.ties == "ignore" and not without_ties(data.pairs["train"]):
        count = len(data.pairs["train"])
        raise DataError(
            f"{snapshot}: all {count} training comparisons are ties, which --ties ignore leaves out"
        )
    return backbone, data


def train(backbone: Backbone, data: PairData, config: RewardConfig, record: Run) -> None:
    """Train, keep the best epoch, calibrate, measure on test, save."""
    role = backbone.add_role(ROLE, config.lora, seed=config.seed, scalar_head=True)
    if config.trunk_cache:
        print(f"reward: {backbone.enable_trunk(max(map(len, data.rows)))}")
    with progress("trunk states", len(data.rows), stage="reward") as tracker:
        sequences = Sequences(
            backbone,
            data.rows,
            max_tokens=config.micro_batch_tokens,
            max_bytes=int(config.trunk_cache_gib * 2**30),
            on_batch=tracker.advance,
        )
    trainer = RewardTrainer(role, sequences, data, config)
    checkpoints = StateCheckpoints(record.path / CHECKPOINTS, "reward")
    if record.resuming and (state := checkpoints.newest()):
        trainer.load_state_dict(state)
    record.metrics.truncate_after(trainer.epoch)
    total = config.num_epochs * trainer.steps_per_epoch
    with SignalGuard() as guard, progress("steps", total, stage="reward") as tracker:
        tracker.advance(trainer.epoch * trainer.steps_per_epoch)
        while trainer.epoch < config.num_epochs and trainer.stale < config.patience:
            before = trainer.state_dict()
            try:
                figures = trainer.train_epoch(guard.check, tracker.advance)
            except Stopped:
                checkpoints.save(before["epoch"], before)
                raise
            record.metrics.log(trainer.epoch, **figures)
            checkpoints.save(trainer.epoch, trainer.state_dict())
    trainer.restore_best()
    finish(trainer, data, config, record)


def finish(trainer: RewardTrainer, data: PairData, config: RewardConfig, record: Run) -> None:
    """Calibrate on validation, measure on test, save the adapter directory, close the run."""
    scores = trainer.scorer.score_all(trainer.sequences).numpy()
    validation = data.pairs["validation"]
    wins = np.array([0.5 if pair.preference.tie else 1.0 for pair in validation])
    temperature = fit_temperature(differences(scores, validation), wins)
    trained_on = sorted({i for pair in data.pairs["train"] for i in (pair.chosen, pair.rejected)})
    std = float(scores[trained_on].std())
    scale = RewardScale(float(scores[trained_on].mean()), std if std > 0 else 1.0, temperature)
    folder = record.path / "adapter"
    save_reward(trainer.role, folder, trainer.sequences.backbone)
    scale.save(folder)
    splits = {split: report(scores, pairs, temperature, config.seed) for split, pairs in data.pairs.items()}
    test = splits["test"]
    metrics: dict[str, Any] = {
        "heldout_accuracy": test.get("accuracy"),
        "heldout_accuracy_low": test.get("accuracy_low"),
        "heldout_accuracy_high": test.get("accuracy_high"),
        "agreement": test.get("agreement"),
        "calibration_error": test.get("calibration_error"),
        "temperature": temperature,
        "score_mean": scale.mean,
        "score_std": scale.std,
        "best_epoch": trainer.best_epoch,
        "num_too_long": data.num_too_long,
    }
    record.finish(metrics, extra={"splits": splits})
    print(f"reward: {summary(test)}; saved in {folder}")


def summary(test: dict[str, Any]) -> str:
    """One line: accuracy with its interval, and the raters' own agreement where two raters met."""
    if "accuracy" not in test:
        return f"no decided comparison among {test['num_pairs']} held-out ones"
    text = (
        f"held-out accuracy {test['accuracy']:.3f} [{test['accuracy_low']:.3f}, {test['accuracy_high']:.3f}]"
    )
    if "agreement" in test:
        text += f", raters agree with each other on {test['agreement']:.3f}"
    return text


class RewardTrainer:
    """The state of a training run: adapter, head, optimizer, schedule, epoch, and the best epoch so far."""

    def __init__(self, role: Role, sequences: Sequences, data: PairData, config: RewardConfig) -> None:
        self.role, self.sequences, self.config = role, sequences, config
        self.scorer = RewardScorer(sequences.backbone, role, RewardScale(0.0, 1.0, 1.0))
        decided_or_all = data.pairs["train"] if config.ties == "half" else without_ties(data.pairs["train"])
        self.examples = merge_ratings(
            decided_or_all,
            use_weights=config.use_weights,
            label_smoothing=config.label_smoothing,
            margin_scale=config.margin_scale,
        )
        self.validation = data.pairs["validation"]
        self.steps_per_epoch = math.ceil(len(self.examples) / config.batch_pairs)
        assert role.head is not None
        self.parameters = role.parameters()
        heads = list(role.head.parameters())
        adapter = self.parameters[: -len(heads)]
        self.optimizer: AdamW = make_optimizer(adapter, heads, config.optim, config.head_lr)
        num_steps = config.num_epochs * self.steps_per_epoch
        self.schedule: LambdaLR = make_schedule(self.optimizer, config.optim, num_steps)
        self.epoch = 0
        self.stale = 0
        self.best_epoch = 0
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = role_weights(self.role)

    # ---- one epoch ---------------------------------------------------------------------------------------

    def train_epoch(self, check: Callable[[], None], advance: Callable[..., None]) -> dict[str, float]:
        """One pass over the training pairs and one over validation; returns what is logged."""
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "epoch", self.epoch))
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        # Dropout draws from the global generator: seeded here, an epoch depends on its number alone.
        torch.manual_seed(derived_seed(self.config.seed, "dropout", self.epoch))
        self._adapter_dropout(True)
        loss_sum, norm_sum = 0.0, 0.0
        for step in range(self.steps_per_epoch):
            batch = order[step * self.config.batch_pairs : (step + 1) * self.config.batch_pairs]
            loss, norm = self._step([self.examples[i] for i in batch], check)
            require_finite(f"epoch {self.epoch + 1}, step {step + 1}", loss=loss, grad_norm=norm)
            loss_sum, norm_sum = loss_sum + loss, norm_sum + norm
            advance(loss=loss)
        self._adapter_dropout(False)
        require_finite_parameters(f"epoch {self.epoch + 1}", self.parameters)
        self.epoch += 1
        validation_loss, interval_mean = self._validate()
        if validation_loss < self.best_loss:
            self.best_loss, self.best_epoch, self.stale = validation_loss, self.epoch, 0
            self.best = role_weights(self.role)
        else:
            self.stale += 1
        return {
            "train_loss": loss_sum / self.steps_per_epoch,
            "validation_loss": validation_loss,
            "validation_accuracy": interval_mean,
            "grad_norm": norm_sum / self.steps_per_epoch,
            "lr": float(self.schedule.get_last_lr()[0]),
        }

    def _step(self, examples: Sequence[Example], check: Callable[[], None]) -> tuple[float, float]:
        """One optimizer step on a batch, in micro-batches of whole pairs. Returns (loss, gradient norm)."""
        all_lengths = self.sequences.lengths
        lengths = [2 * max(all_lengths[e.first], all_lengths[e.second]) for e in examples]
        total_weight = sum(example.weight for example in examples)
        total = 0.0
        for indices in token_budget_batches(lengths, self.config.micro_batch_tokens):
            check()
            loss = self._loss_sum([examples[i] for i in indices]) / total_weight
            loss.backward()
            total += loss.item()
        norm = clip_gradients(self.parameters, self.config.optim.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm

    def _loss_sum(self, examples: Sequence[Example]) -> Tensor:
        """Weighted sum of the examples' losses; each distinct completion goes through the model once."""
        rows = sorted({i for example in examples for i in (example.first, example.second)})
        place = {row: k for k, row in enumerate(rows)}
        assert self.role.head is not None
        hidden_BH = self.sequences.last_hidden(self.role.name, self.sequences.batch(rows))
        scores_B = self.role.head(hidden_BH.float()).squeeze(1)

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=scores_B.device, dtype=scores_B.dtype)

        loss_P = pairwise_loss(
            scores_B[[place[example.first] for example in examples]],
            scores_B[[place[example.second] for example in examples]],
            column([example.target for example in examples]),
            column([example.margin for example in examples]),
            self.config.center_coef,
        )
        return (loss_P * column([example.weight for example in examples])).sum()

    def _validate(self) -> tuple[float, float]:
        """(mean loss without centring, margin or smoothing; accuracy on decided comparisons, else 0.5)."""
        used = sorted({i for pair in self.validation for i in (pair.chosen, pair.rejected)})
        scores = self.scorer.score_all(self.sequences, used).numpy()
        delta = differences(scores, self.validation)
        wins = np.array([0.5 if pair.preference.tie else 1.0 for pair in self.validation])
        loss = np.mean(np.logaddexp(0, -delta) * wins + np.logaddexp(0, delta) * (1 - wins))
        interval = accuracy(scores, self.validation, self.config.seed)
        return float(loss), interval.mean if interval else 0.5

    def _adapter_dropout(self, on: bool) -> None:
        """Only the adapters' dropout: the model's own would also act below the trunk."""
        for name, module in self.role.model.named_modules():
            if "lora_dropout" in name:
                module.train(on)

    # ---- state -------------------------------------------------------------------------------------------

    def restore_best(self) -> None:
        load_role_weights(self.role, self.best, "best epoch")

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "stale": self.stale,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "best": self.best,
            "weights": role_weights(self.role),
            # A copy: the optimizer goes on changing its own tensors in place.
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": {"last_epoch": self.schedule.last_epoch},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.stale = state["epoch"], state["stale"]
        self.best_epoch, self.best_loss, self.best = state["best_epoch"], state["best_loss"], state["best"]
        load_role_weights(self.role, state["weights"], "checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
