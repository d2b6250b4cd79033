"""What the learning curves of a run say: over- and underfitting named, and OUT/sft.png. Torch-free.

Training loss is the mean over the steps between two validations, with dropout and noise, of weights that still
change; so it lies a little above what the same rows would give afterwards, and a validation loss far above it means
something.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.core.files import atomic_file
from rlhf.core.metrics import read_metrics
from rlhf.core.plots import PALETTE, Curve, Panel, panel_grid
from rlhf.core.run import METRICS
from sft.config import TASK_LOSS

PICTURE = "sft.png"
Kind = Literal["overfitting", "underfitting", "nothing gained", "levelled off", "too few validations"]
# Of the whole gain in validation loss: what must be lost again after the best step to be called overfitting, and what
# the last quarter of the steps must still have brought to be called underfitting.
LOST_AGAIN = 0.05
STILL_GAINED = 0.10
# Validation loss above training loss at the best step, as a share of it, from which the gap is worth a sentence.
WIDE_GAP = 0.25


@dataclass(frozen=True)
class Reading:
    """One row for each validation after the first: its step, the mean training loss before it (NaN where no step had
    one, which private steps with an empty batch have not), its own loss."""

    first: float
    steps: list[int]
    training: list[float]
    validation: list[float]


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    text: str


def read_curves(rows: Sequence[Mapping[str, Any]]) -> Reading:
    """The curves in the rows of a metrics.jsonl."""
    looks = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    losses = {row["step"]: row["loss"] for row in rows if row.get("loss") is not None}
    training = []
    for (before, _), (step, _) in itertools.pairwise(looks):
        between = [loss for at, loss in losses.items() if before < at <= step]
        training.append(sum(between) / len(between) if between else math.nan)
    return Reading(looks[0][1], [step for step, _ in looks[1:]], training, [loss for _, loss in looks[1:]])


def judge(curves: Reading, base_loss: float) -> list[Verdict]:
    """What the curves show, the gravest first; never empty. base_loss: validation loss of the untouched base."""
    if not curves.steps:
        return [Verdict("too few validations", "The run ended before its first validation.")]
    best = min(range(len(curves.steps)), key=lambda i: curves.validation[i])
    best_loss, gain = curves.validation[best], base_loss - curves.validation[best]
    if gain <= 0:
        return [_nothing_gained(curves, base_loss, best)]
    found = [_overfitting(curves, best, gain), _underfitting(curves, gain)]
    verdicts = [verdict for verdict in found if verdict is not None]
    if not verdicts and len(curves.steps) < 3:
        verdicts = [
            Verdict(
                "too few validations",
                f"{len(curves.steps)} validations after the first do not show whether more training would help; a "
                "smaller eval_steps would.",
            )
        ]
    if not verdicts:
        verdicts = [
            Verdict(
                "levelled off",
                f"Validation loss fell from {base_loss:.3f} to {best_loss:.3f} nats per token and levelled off: "
                "neither over- nor underfitting shows.",
            )
        ]
    return verdicts


def _nothing_gained(curves: Reading, base_loss: float, best: int) -> Verdict:
    known = [loss for loss in curves.training if not math.isnan(loss)]
    fell = bool(known) and known[-1] < known[0]
    why = (
        "while the training loss fell: what was learned does not carry over to other prompts (more or more varied "
        "data, a smaller rate)"
        if fell
        else "and the training loss did not fall either: the rate is too large or too small, or the data cannot be "
        "learned"
    )
    return Verdict(
        "nothing gained",
        f"No validation was below that of the base ({base_loss:.3f} nats per token; the best was "
        f"{curves.validation[best]:.3f}), {why}.",
    )


def _overfitting(curves: Reading, best: int, gain: float) -> Verdict | None:
    lost = curves.validation[-1] - curves.validation[best]
    rises = lost > LOST_AGAIN * gain and curves.training[-1] < curves.training[best]
    gap = curves.validation[best] - curves.training[best]
    wide = gap > WIDE_GAP * curves.validation[best]
    remedies = "fewer epochs, a smaller rate or rank, more dropout, NEFTune, or more data would help"
    if rises:
        return Verdict(
            "overfitting",
            f"Overfitting: after step {curves.steps[best]} validation loss rose from {curves.validation[best]:.3f} to "
            f"{curves.validation[-1]:.3f} while training loss fell from {curves.training[best]:.3f} to "
            f"{curves.training[-1]:.3f}. The best step was kept; {remedies}.",
        )
    if wide:
        return Verdict(
            "overfitting",
            f"Overfitting: at the best step validation loss ({curves.validation[best]:.3f}) is {gap:.3f} nats above "
            f"training loss: the training rows are learned by heart rather than what they share; {remedies}.",
        )
    return None


def _underfitting(curves: Reading, gain: float) -> Verdict | None:
    """Still falling at the end. The loss at three quarters of the steps is read off between validations."""
    if len(curves.steps) < 3 or curves.validation[-1] > min(curves.validation):
        return None
    late = _at(0.75 * curves.steps[-1], [0, *curves.steps], [curves.first, *curves.validation])
    brought = late - curves.validation[-1]
    if brought <= STILL_GAINED * gain:
        return None
    return Verdict(
        "underfitting",
        f"Underfitting: validation loss was still falling when the run ended; the last quarter of the steps brought "
        f"{brought:.3f} of {gain:.3f} nats. More epochs, a larger rate or a larger rank would gain more.",
    )


def _at(step: float, steps: Sequence[int], values: Sequence[float]) -> float:
    """The value at a step, on the line between its neighbours."""
    for (x, y), (next_x, next_y) in itertools.pairwise(zip(steps, values, strict=True)):
        if x <= step <= next_x:
            return y + (next_y - y) * (step - x) / (next_x - x)
    return values[-1]


# ---- the picture -----------------------------------------------------------------------------------------------


def draw(folder: Path, best_step: int) -> None:
    """Write OUT/sft.png. One that cannot be drawn costs a line, never the run."""
    try:
        picture = run_picture(folder, best_step)
        with atomic_file(folder / PICTURE) as file:
            file.write(picture)
    except Exception as error:  # hours of training must not end over a font
        print(f"sft: {PICTURE} could not be drawn ({type(error).__name__}: {error})")


def run_picture(folder: Path, best_step: int) -> bytes:
    """A PNG of losses, the tasks' losses where there are several, token accuracy, gradient norm and rate over steps."""
    rows = read_metrics(folder / METRICS)

    def curve(key: str, label: str, color: str, **look: bool) -> Curve:
        seen = [row for row in rows if row.get(key) is not None]
        return Curve(label, [row["step"] for row in seen], [row[key] for row in seen], color, **look)

    names = list(
        dict.fromkeys(k.removeprefix(TASK_LOSS) for row in rows for k in row if k.startswith(TASK_LOSS))
    )
    panels = [
        Panel(
            "Loss",
            "nats per token",
            [
                curve("loss", "training", PALETTE[0], smooth=True),
                curve("validation_loss", "validation", PALETTE[1], dots=True),
            ],
        )
    ]
    if names:
        of_tasks = [
            curve(f"{TASK_LOSS}{name}", name, PALETTE[i % len(PALETTE)], dots=True)
            for i, name in enumerate(names)
        ]
        panels.append(Panel("Validation loss of each task", "nats per token", of_tasks))
    panels += [
        Panel(
            "Token accuracy",
            "share, in training",
            [curve("token_accuracy", "accuracy", PALETTE[2], smooth=True)],
        ),
        Panel(
            "Gradient norm and rate",
            "norm before clipping",
            [
                curve("grad_norm", "norm", PALETTE[3], smooth=True),
                curve("lr", "learning rate", PALETTE[5], right=True),
            ],
            right_label="learning rate",
        ),
    ]
    subtitle = f"the best step, {best_step}, was kept (dashed line)"
    return panel_grid(
        panels, f"Supervised run {folder.name}", subtitle, "step", mark=best_step, columns=len(panels)
    )
