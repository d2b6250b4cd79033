"""OUT/reward.png: how a reward run went, drawn from its metrics at the end."""

from __future__ import annotations

from pathlib import Path

from rlhf.core.files import atomic_file
from rlhf.core.metrics import read_metrics
from rlhf.core.plots import PALETTE, Curve, Panel, panel_grid
from rlhf.core.run import METRICS

PICTURE = "reward.png"


def draw(folder: Path, best_epoch: int) -> None:
    """Write the picture. One that cannot be drawn costs a line, never the run."""
    try:
        picture = run_picture(folder, best_epoch)
        with atomic_file(folder / PICTURE) as file:
            file.write(picture)
    except Exception as error:  # hours of training must not end over a font
        print(f"reward: {PICTURE} could not be drawn ({type(error).__name__}: {error})")


def run_picture(folder: Path, best_epoch: int) -> bytes:
    """A PNG of losses, held-out accuracy and gradient norm over epochs."""
    rows = read_metrics(folder / METRICS)
    epochs = [int(row["step"]) for row in rows]

    def curve(key: str, label: str, color: str) -> Curve:
        return Curve(label, epochs, [row.get(key) for row in rows], color, dots=True)

    panels = [
        Panel(
            "Loss",
            "nats per example",
            [curve("train_loss", "training", PALETTE[0]), curve("validation_loss", "validation", PALETTE[1])],
        ),
        Panel(
            "Validation accuracy",
            "share of comparisons",
            [curve("validation_accuracy", "accuracy", PALETTE[2])],
            levels=[("chance", 0.5, PALETTE[4])],
        ),
        Panel("Gradient norm", "before clipping", [curve("grad_norm", "norm", PALETTE[3])]),
    ]
    subtitle = f"{len(rows)} epochs; the best one, epoch {best_epoch}, was kept (dashed line)"
    return panel_grid(panels, f"Reward run {folder.name}", subtitle, "epoch", mark=best_epoch)
