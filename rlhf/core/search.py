"""Searching settings by their validation loss with optuna (extra `tune`): what the stages have in common.

Imported only where a search was asked for. Finished trials are rows of a JSONL: a run that was stopped goes on with the
next one. Each proposal depends on the trials before it and the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from rlhf.core.config import Settings
from rlhf.core.errors import GuardStop
from rlhf.core.files import read_rows, write_jsonl
from rlhf.core.metrics import progress
from rlhf.core.randomness import derived_seed

TRIALS = "tune.jsonl"
LOSS = "validation_loss"
# Where a stage's settings hold what is searched.
PLACES: dict[str, tuple[str, ...]] = {
    "lr": ("optim", "lr"),
    "dropout": ("lora", "dropout"),
    "weight_decay": ("optim", "weight_decay"),
    "num_epochs": ("num_epochs",),
}
DROPOUTS = (0.0, 0.05, 0.1, 0.2)
Proposal = dict[str, Any]
Space = Mapping[str, BaseDistribution]
Config = TypeVar("Config", bound=Settings)


def search_space(config: Any, *, dropout: bool = True) -> dict[str, BaseDistribution]:
    """What is searched around a stage's settings: the learning rate (0.1 to 10 times the one given), weight decay, the
    number of epochs (up to the one given; it shapes the schedule) and, unless there is none, the adapters' dropout."""
    rate, decay = config.optim.lr, config.optim.weight_decay
    space: dict[str, BaseDistribution] = {
        "lr": FloatDistribution(rate / 10, rate * 10, log=True),
        "dropout": CategoricalDistribution(sorted({*DROPOUTS, config.lora.dropout})),
        "weight_decay": FloatDistribution(min(decay, 0.0), max(decay, 0.3)),
        "num_epochs": IntDistribution(1, config.num_epochs),
    }
    if not dropout:
        del space["dropout"]
    return space


def given(config: Any, space: Space) -> Proposal:
    """The settings as they are, in the form of a proposal."""
    return {name: reduce(getattr, PLACES[name], config) for name in space}


def with_proposal(config: Config, proposal: Proposal) -> Config:
    """The settings with a trial's values in their places."""
    changes: dict[str, Any] = {}
    for name, value in proposal.items():
        *inside, last = PLACES[name]
        if inside:
            changes.setdefault(inside[0], {})[last] = value
        else:
            changes[last] = value
    nested = {
        key: getattr(config, key).model_copy(update=value)
        for key, value in changes.items()
        if isinstance(value, dict)
    }
    return config.model_copy(update=changes | nested)


def search(
    path: Path,
    num_trials: int,
    space: Space,
    given: Proposal,
    attempt: Callable[[int, Proposal], dict[str, Any]],
    *,
    seed: int,
    stage: str,
) -> Proposal:
    """The proposal of the trial with the lowest loss.

    path: the JSONL of finished trials. given: the settings as they were given, the first trial, which the others have
    to beat. attempt: runs one trial by its number and returns its figures, `validation_loss` among them. A trial that a
    guard ends (a rate so large that the loss is not finite) has the loss None and is not proposed again; what else
    `attempt` raises ends the search, and the trial is done again (or gone on with) when the run is resumed. Raises
    GuardStop where no trial has a loss.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = [row for _, row in read_rows(path)] if path.exists() else []
    with progress("trials", num_trials, stage=stage) as tracker:
        tracker.advance(len(rows))
        while len(rows) < num_trials:
            proposal = _propose(rows, space, seed) if rows else given
            try:
                figures = attempt(len(rows), proposal)
            except GuardStop as stop:
                figures = {LOSS: None, "stopped": str(stop)}
            rows.append({"trial": len(rows), **proposal, **figures})
            write_jsonl(path, rows)
            tracker.advance(**{"best": min(row[LOSS] for row in measured(rows))} if measured(rows) else {})
    if not measured(rows):
        raise GuardStop(f"none of {len(rows)} trials came to an end; the last: {rows[-1]['stopped']}")
    best = min(measured(rows), key=lambda row: row[LOSS])
    told = ", ".join(f"{name} {best[name]:.3g}" for name in space)
    print(f"{stage}: best of {len(rows)} trials: {told} (validation loss {best[LOSS]:.4f})")
    return {name: best[name] for name in space}


def measured(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials that no guard ended."""
    return [row for row in rows if row[LOSS] is not None]


def _propose(rows: list[dict[str, Any]], space: Space, seed: int) -> Proposal:
    """The next trial's values: a few random ones, then by TPE (Bergstra et al., NeurIPS 2011)."""
    sampler = optuna.samplers.TPESampler(
        seed=derived_seed(seed, "tune", len(rows)) % 2**32, n_startup_trials=4
    )
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for row in rows:
        params = {name: row[name] for name in space}
        ended = optuna.trial.TrialState.COMPLETE if row[LOSS] is not None else optuna.trial.TrialState.FAIL
        study.add_trial(
            optuna.trial.create_trial(state=ended, params=params, distributions=dict(space), value=row[LOSS])
        )
    return dict(study.ask(dict(space)).params)
