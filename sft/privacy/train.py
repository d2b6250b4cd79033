"""Private training of a LoRA adapter, in the place of trl's trainer: `rlhf sft` with `privacy.epsilon` or
`privacy.noise_multiplier`.

What is promised: with or without any one training demonstration, every outcome of the training steps is about as
likely (at most e^epsilon times, but for the chance delta). Not promised: anything about the validation demonstrations,
which choose the best step without noise; about somebody who wrote several demonstrations (k of them spend about k times
as much); and about metrics.jsonl and the report, which tell losses as they were.

Logged per step: `loss` (mean over the batch of the mean nats per token of each demonstration), `grad_norm` (mean of
the demonstrations' norms before clipping), `clipped` (share of them that were), `batch` (how many there were), `lr`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.core.backbone import Backbone, Role
from rlhf.core.checkpoint import StateCheckpoints
from rlhf.core.errors import ConfigError, Stopped
from rlhf.core.extras import extra_module
from rlhf.core.files import clear_folders
from rlhf.core.guards import SignalGuard, TokenBudget
from rlhf.core.metrics import progress
from rlhf.core.run import CHECKPOINTS, Run
from sft.config import TASK_LOSS, SFTConfig
from sft.data import Example
from sft.privacy.gradients import recorded
from sft.privacy.trainer import PrivateTrainer, planned_steps
from sft.watch import Validation

STAGE = "sft"


@dataclass(frozen=True)
class Spent:
    """The noise that is added, and what it makes the steps cost."""

    noise_multiplier: float
    delta: float
    sample_rate: float
    max_grad_norm: float

    def after(self, num_steps: int) -> dict[str, Any]:
        """What the manifest says about the privacy of a run of so many steps."""
        return {
            "epsilon": accountant().spent_epsilon(
                self.noise_multiplier, self.sample_rate, num_steps, self.delta
            ),
            "delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": self.max_grad_norm,
            "sample_rate": self.sample_rate,
            "num_steps": num_steps,
            "accountant": "PRV (arXiv:2106.02848)",
            "unit": "one training row (of a text that was cut into parts: one part)",
            "not_covered": "validation demonstrations; metrics.jsonl, the report and its pictures",
        }


def accountant() -> Any:
    """`sft.privacy.accountant`. Raises ConfigError where the extra `privacy` is not installed."""
    return extra_module("sft.privacy.accountant", "privacy", "privacy")


def price(config: SFTConfig, num_examples: int) -> Spent:
    """The noise for a wanted epsilon, or the given one. Raises ConfigError for what cannot be kept."""
    privacy = config.privacy
    delta = privacy.delta if privacy.delta is not None else 1 / (10 * num_examples)
    if delta * num_examples >= 1:
        raise ConfigError(
            f"privacy.delta {delta:g} allows to publish one of {num_examples} demonstrations; expected much less than "
            f"1 / {num_examples}"
        )
    rate = min(1.0, config.batch_size / num_examples)
    num_steps, _ = planned_steps(num_examples, config.batch_size, config.num_epochs, config.eval_steps)
    noise = privacy.noise_multiplier
    if noise is None:
        assert privacy.epsilon is not None
        noise = accountant().noise_for(privacy.epsilon, rate, num_steps, delta)
    return Spent(noise, delta, rate, privacy.max_grad_norm)


def train_privately(
    backbone: Backbone,
    role: Role,
    train: Sequence[Example],
    config: SFTConfig,
    record: Run,
    budget: TokenBudget,
    validate: Callable[[], Validation],
) -> tuple[PrivateTrainer, dict[str, Any]]:
    """Train the role's adapter and leave it at its best step. Returns the trainer and what was spent.

    Raises ConfigError, GuardStop and Stopped.
    """
    spent = price(config, len(train))
    spent.after(1)  # what the accountant lacks is said before anything is trained
    print(
        f"sft: private: noise multiplier {spent.noise_multiplier:.3f}, clipping at {spent.max_grad_norm:g}, each of "
        f"{len(train)} demonstrations in a step with probability {spent.sample_rate:.4g}"
    )
    with recorded(role.model) as collector:
        trainer = PrivateTrainer(
            backbone,
            role,
            train,
            config.optim,
            collector,
            validate=validate,
            batch_size=config.batch_size,
            num_epochs=config.num_epochs,
            eval_steps=config.eval_steps,
            patience=config.patience,
            max_grad_norm=spent.max_grad_norm,
            noise_multiplier=spent.noise_multiplier,
            budget=budget,
        )
        _steps(trainer, record)
    trainer.restore_best()
    role.model.eval()
    # When to stop early is chosen by what the steps gave, so the bound is that of all which could have been made: the
    # cost of the steps taken holds only where their number was fixed beforehand (Rogers et al., arXiv:1605.08294).
    privacy = spent.after(max(trainer.num_steps, trainer.step)) | {"steps_taken": trainer.step}
    print(
        f"sft: private: epsilon {privacy['epsilon']:.3f} at delta {privacy['delta']:.1g} was spent "
        f"({trainer.step} of {privacy['num_steps']} steps)"
    )
    return trainer, privacy


def _steps(trainer: PrivateTrainer, record: Run) -> None:
    """Steps, validations and checkpoints until done."""
    checkpoints = StateCheckpoints(record.path / CHECKPOINTS, STAGE)
    state = checkpoints.newest() if record.resuming else None
    if state is not None:
        trainer.load_state_dict(state)
    # What a state has not been validated yet is logged (again).
    steps_logged = trainer.step if state is not None else -1
    record.metrics.truncate_after(steps_logged)
    with SignalGuard() as guard, progress("private training", trainer.num_steps, stage=STAGE) as tracker:
        tracker.advance(trainer.step)
        try:
            while not trainer.done:
                guard.check()
                if trainer.due:
                    found = trainer.validate()
                    parts = {f"{TASK_LOSS}{name}": loss for name, loss in found.parts.items()}
                    record.metrics.log(trainer.step, validation_loss=found.loss, **parts)
                    checkpoints.save(trainer.step, trainer.state_dict())
                    continue
                figures = trainer.train_step(guard.check)
                record.metrics.log(trainer.step, **figures)
                tracker.advance(1, **{name: figures[name] for name in ("loss",) if name in figures})
        except Stopped:
            if not trainer.due:  # a resume goes back to the state before, and makes the same step again
                checkpoints.save(trainer.step, trainer.state_dict())
            raise


def forget_key(out: Path) -> None:
    """Remove the checkpoints of a run that is done: they hold the key of its noise."""
    clear_folders(out, CHECKPOINTS)
