"""OUT/prefer.png: an offline run at a glance, drawn from its metrics at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.core.files import atomic_file
from rlhf.core.metrics import read_metrics
from rlhf.core.plots import PALETTE, Curve, Panel, panel_grid
from rlhf.core.run import METRICS

PICTURE = "prefer.png"
BLUE, ORANGE, GREEN, PURPLE, *_ = PALETTE

Rows = Sequence[Mapping[str, Any]]


def draw_offline(folder: Path, method: str) -> None:
    """Draw what was logged. A picture that cannot be drawn costs a line, never the run."""
    try:
        picture = offline_picture(read_metrics(folder / METRICS), method, folder.name)
        with atomic_file(folder / PICTURE) as file:
            file.write(picture)
    except Exception as error:  # a finished run must not be lost over a font
        print(f"prefer: {PICTURE} could not be drawn ({type(error).__name__}: {error})")


def offline_picture(rows: Rows, method: str, name: str) -> bytes:
    """A PNG from the rows of metrics.jsonl."""
    size = [
        _curve(rows, "grad_norm", "gradient norm", BLUE),
        _curve(rows, "lr", "learning rate", PURPLE, right=True),
    ]
    panels = [
        Panel("Loss", "per example", _both(rows, "loss")),
        Panel("Implicit reward agrees with raters", "share of decided examples", _both(rows, "accuracy")),
        Panel("Log-probability against the reference", "nats per completion", _both(rows, "log_ratio")),
        Panel("Gradients", "norm before clipping", size, right_label="learning rate"),
    ]
    last = max((row["step"] for row in rows), default=0)
    return panel_grid(panels, f"{method}: {name}", f"{last} optimizer steps", "optimizer step", columns=2)


def _both(rows: Rows, key: str) -> list[Curve]:
    return [
        _curve(rows, key, "training", BLUE),
        _curve(rows, f"validation_{key}", "validation", GREEN, dots=True),
    ]


def _curve(rows: Rows, key: str, label: str, color: str, *, dots: bool = False, right: bool = False) -> Curve:
    """The rows that have the figure."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    xs, ys = [x for x, _ in found], [y for _, y in found]
    return Curve(label, xs, ys, color, dots=dots, right=right, smooth=not dots)
