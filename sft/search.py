"""`rlhf sft --tune N`: settings searched by their validation loss (see `rlhf.core.search`) before the run itself.

Each trial is a run of its own in OUT/trials, with the same split, checkpoints and early stopping; a search that was
stopped goes on inside the trial that was at work. Trials leave their figures and no weights. OUT/tune.jsonl holds what
was tried, OUT/chosen.yaml the settings that the run itself is then made with, OUT/tune.html both as a page. Nothing but
the validation loss is looked at: a test set stays unseen.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.core import html, plots
from rlhf.core.backbone import Backbone
from rlhf.core.config import settings_to_yaml
from rlhf.core.errors import GuardStop
from rlhf.core.files import read_rows, write_text
from rlhf.core.run import CHECKPOINTS, Launch, Run
from rlhf.core.search import LOSS, TRIALS, Proposal, given, measured, search, search_space, with_proposal
from sft.config import LORA_METHODS, SFTConfig
from sft.methods import add_method, let_go
from sft.packing import to_rows
from sft.tasks import Task
from sft.train import ROLE, train
from sft.trainer import pass_budget, room_of

FOLDER, CHOSEN, PAGE = "trials", "chosen.yaml", "tune.html"
FIGURES = (LOSS, "best_step", "num_steps")
Load = Callable[[], tuple[Backbone, list[Task]]]


def searched(
    config: SFTConfig, record: Run, parents: dict[str, Path], launch: Launch, load: Load
) -> SFTConfig:
    """The settings of the trial with the lowest validation loss.

    load: gives the base as it is on disk, and the tasks, anew for every trial. Raises GuardStop and Stopped.
    """
    plain = config.model_copy(update={"tune": 0})
    space = search_space(plain, dropout=config.method in LORA_METHODS)

    def attempt(number: int, proposal: Proposal) -> dict[str, Any]:
        settings = with_proposal(plain, proposal)
        # The run as a whole was asked whether it may go on: its trials may, then.
        again = replace(launch, resume=True)
        out = record.path / FOLDER / f"{number:03d}"
        with Run.open(
            out, stage="sft-trial", settings=settings, launch=again, parents=parents, seed=config.seed
        ) as trial:
            if not trial.finished:
                _train(settings, trial, load)
            return {name: trial.manifest.metrics[name] for name in FIGURES}

    first = given(plain, space)
    best = search(record.path / TRIALS, config.tune, space, first, attempt, seed=config.seed, stage="sft")
    chosen = with_proposal(plain, best)
    write_text(record.path / CHOSEN, settings_to_yaml(chosen))
    rows = [row for _, row in read_rows(record.path / TRIALS)]
    write_text(record.path / PAGE, page(rows, list(space)))
    return chosen


def _train(settings: SFTConfig, trial: Run, load: Load) -> None:
    """One trial, from its newest checkpoint where it has one."""
    backbone, tasks = load()
    trial.begin()
    train_set = [example for task in tasks for example in task.train]
    asked = [example for task in tasks for example in task.validation]
    budget = pass_budget(settings, [*train_set, *asked], to_rows(train_set, room_of(settings, backbone)))
    role = add_method(backbone, ROLE, settings, train_set[0].input_ids)
    try:
        watch = train(backbone, role, tasks, settings, trial, budget)
    except GuardStop:
        shutil.rmtree(trial.path / CHECKPOINTS)
        raise
    finally:
        let_go(backbone)
    trial.finish(dict(zip(FIGURES, (watch.best_loss, watch.best_step, watch.step), strict=True)))
    shutil.rmtree(trial.path / CHECKPOINTS)


def page(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """All trials, the best one first, and what the loss had to do with each setting."""
    stopped, first = [row for row in rows if row[LOSS] is None], rows[0]
    rows = measured(rows)
    ordered = sorted(rows, key=lambda row: row[LOSS])
    best = ordered[0]
    given_loss = "no loss" if first[LOSS] is None else f"{first[LOSS]:.4f}"
    told = (
        f"Trial {best['trial']} has the lowest validation loss, {best[LOSS]:.4f}; the settings as they were given, "
        f"trial 0, have {given_loss}. The lowest of many losses on the same rows flatters a little: what the "
        "chosen settings are worth is for a test set to say, which the search has not seen."
    )
    if stopped:
        told += f" Trials that a guard ended have no loss: {', '.join(str(row['trial']) for row in stopped)}."
    table = [{name: row[name] for name in ("trial", *names, *FIGURES)} for row in ordered]
    pictures = [
        html.figure(
            plots.scatter_plot(
                {"trials": ([_axis(name, row[name]) for row in rows], [row[LOSS] for row in rows])},
                f"Validation loss by {name}",
                f"log10 of {name}" if name == "lr" else name,
                "nats per token",
            ),
            f"Each dot is one of {len(rows)} trials.",
        )
        for name in names
    ]
    sections = [
        ("", html.paragraph(told)),
        ("Trials", html.table(table)),
        ("What mattered", html.figures(pictures)),
    ]
    return html.page(
        "Search of settings", sections, lead="Settings of supervised tuning, by their validation loss."
    )


def _axis(name: str, value: float) -> float:
    return math.log10(value) if name == "lr" else float(value)
