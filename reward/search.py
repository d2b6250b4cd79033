"""`rlhf reward --tune N`: settings searched by their validation loss, with optuna (extra `tune`).

Searched are the learning rate (0.1 to 10 times the one given), dropout, weight decay and the number of epochs (up to
the one given; it shapes the schedule). The trunk states are computed once for all trials, and the test split is not
looked at. Finished trials are in OUT/tune.jsonl: a run that was stopped goes on with the next one. Each proposal
depends on the trials before it and the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from reward.config import RewardConfig
from reward.trainer import RewardTrainer, set_dropout
from rlhf.core.files import read_rows, write_jsonl
from rlhf.core.metrics import progress
from rlhf.core.randomness import derived_seed

TRIALS = "tune.jsonl"
DROPOUTS = (0.0, 0.05, 0.1, 0.2)


def searched(
    make_trainer: Callable[[RewardConfig], RewardTrainer],
    config: RewardConfig,
    out: Path,
    check: Callable[[], None],
) -> RewardConfig:
    """The settings of the trial with the lowest validation loss. Leaves the trained roles at their start.

    Raises Stopped; the trial that was at work is done again when the run is resumed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = search_space(config)
    path = out / TRIALS
    rows = [row for _, row in read_rows(path)] if path.exists() else []
    start = make_trainer(config).weights()
    with progress("trials", config.tune, stage="reward") as tracker:
        tracker.advance(len(rows))
        while len(rows) < config.tune:
            proposal = _propose(rows, space, config.seed) if rows else given(config)
            settings = with_proposal(config, proposal)
            trainer = make_trainer(settings)
            trainer.load_weights(start, "the start")
            set_dropout(trainer.roles, settings.lora.dropout)
            while not trainer.done:
                if trainer.step < trainer.steps_per_epoch:
                    trainer.train_step(check)
                else:
                    trainer.finish_epoch()
            rows.append(
                {
                    "trial": len(rows),
                    **proposal,
                    "validation_loss": trainer.best_loss,
                    "best_epoch": trainer.best_epoch,
                }
            )
            write_jsonl(path, rows)
            tracker.advance(best=min(row["validation_loss"] for row in rows))
    best = min(rows, key=lambda row: row["validation_loss"])
    chosen = with_proposal(config, {name: best[name] for name in space})
    trainer = make_trainer(chosen)
    trainer.load_weights(start, "the start")
    set_dropout(trainer.roles, chosen.lora.dropout)
    told = ", ".join(f"{name} {best[name]:.3g}" for name in space)
    print(f"reward: best of {len(rows)} trials: {told} (validation loss {best['validation_loss']:.4f})")
    return chosen


def search_space(config: RewardConfig) -> dict[str, BaseDistribution]:
    """What is searched, by name."""
    decay = config.optim.weight_decay
    return {
        "lr": FloatDistribution(config.optim.lr / 10, config.optim.lr * 10, log=True),
        "dropout": CategoricalDistribution(sorted({*DROPOUTS, config.lora.dropout})),
        "weight_decay": FloatDistribution(min(decay, 0.0), max(decay, 0.3)),
        "num_epochs": IntDistribution(1, config.num_epochs),
    }


def given(config: RewardConfig) -> dict[str, Any]:
    """The settings as they were given: the first trial, which the others have to beat."""
    return {
        "lr": config.optim.lr,
        "dropout": config.lora.dropout,
        "weight_decay": config.optim.weight_decay,
        "num_epochs": config.num_epochs,
    }


def with_proposal(config: RewardConfig, proposal: dict[str, Any]) -> RewardConfig:
    """The settings with a trial's values in their places."""
    optim = {"lr": proposal["lr"], "weight_decay": proposal["weight_decay"]}
    return config.model_copy(
        update={
            "optim": config.optim.model_copy(update=optim),
            "lora": config.lora.model_copy(update={"dropout": proposal["dropout"]}),
            "num_epochs": proposal["num_epochs"],
        }
    )


def _propose(rows: list[dict[str, Any]], space: dict[str, BaseDistribution], seed: int) -> dict[str, Any]:
    """The next trial's values: a few random ones, then by TPE (Bergstra et al., NeurIPS 2011)."""
    sampler = optuna.samplers.TPESampler(
        seed=derived_seed(seed, "tune", len(rows)) % 2**32, n_startup_trials=4
    )
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for row in rows:
        params = {name: row[name] for name in space}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=space, value=row["validation_loss"])
        )
    return dict(study.ask(space).params)
