"""`rlhf reward --tune N`: settings searched by their validation loss (see `rlhf.core.search`).

The trunk states are computed once for all trials, and the test split is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reward.config import RewardConfig
from reward.trainer import RewardTrainer, set_dropout
from rlhf.core.search import LOSS, TRIALS, Proposal, given, search, search_space, with_proposal

__all__ = ["TRIALS", "searched"]


def searched(
    make_trainer: Callable[[RewardConfig], RewardTrainer],
    config: RewardConfig,
    out: Path,
    check: Callable[[], None],
) -> RewardConfig:
    """The settings of the trial with the lowest validation loss. Leaves the trained roles at their start.

    Raises Stopped; the trial that was at work is done again when the run is resumed.
    """
    start = make_trainer(config).weights()

    def fresh(settings: RewardConfig) -> RewardTrainer:
        trainer = make_trainer(settings)
        trainer.load_weights(start, "the start")
        set_dropout(trainer.roles, settings.lora.dropout)
        return trainer

    def attempt(number: int, proposal: Proposal) -> dict[str, Any]:
        trainer = fresh(with_proposal(config, proposal))
        while not trainer.done:
            if trainer.step < trainer.steps_per_epoch:
                trainer.train_step(check)
            else:
                trainer.finish_epoch()
        return {LOSS: trainer.best_loss, "best_epoch": trainer.best_epoch}

    space = search_space(config)
    best = search(
        out / TRIALS, config.tune, space, given(config, space), attempt, seed=config.seed, stage="reward"
    )
    chosen = with_proposal(config, best)
    fresh(chosen)
    return chosen
