"""OUT/ppo.png (or of another stage on the same engine): a run at a glance.

It is drawn from the metrics after evaluations and at the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.core.files import atomic_file
from rlhf.core.metrics import read_metrics
from rlhf.core.plots import PALETTE, Curve, Panel, panel_grid
from rlhf.core.run import METRICS
from rlhf.ppo.config import PPOConfig

BLUE, ORANGE, GREEN, PURPLE, RED, OLIVE = PALETTE
# Drawing takes about a second: where evaluations come faster than this, some are left out.
EVERY_S = 20.0

Rows = Sequence[Mapping[str, Any]]


class RunPicture:
    """The picture of one run directory."""

    def __init__(self, folder: Path, config: PPOConfig, stage: str = "ppo") -> None:
        self._folder, self._config, self._stage = folder, config, stage
        self._drawn_at = time.monotonic()

    def draw(self, best_iteration: int, *, final: bool = False) -> None:
        """Draw what has been logged so far. A picture that cannot be drawn costs a line, never the run."""
        if not final and time.monotonic() - self._drawn_at < EVERY_S:
            return
        try:
            picture = run_picture(
                read_metrics(self._folder / METRICS), self._config, self._folder.name, best_iteration
            )
            with atomic_file(self._folder / f"{self._stage}.png") as file:
                file.write(picture)
        except Exception as error:  # a week of training must not end over a font
            print(f"{self._stage}: {self._stage}.png could not be drawn ({type(error).__name__}: {error})")
        self._drawn_at = time.monotonic()


def run_picture(rows: Rows, config: PPOConfig, name: str, best_iteration: int) -> bytes:
    """A PNG from the rows of metrics.jsonl."""
    has_critic = any("explained_variance" in row for row in rows)
    panels = [
        _reward(rows),
        _kl(rows, config),
        _length(rows),
        Panel("Entropy of the policy", "nats per token", [_curve(rows, "entropy", "", BLUE, smooth=True)]),
        Panel(
            "Size of the updates",
            "share of tokens clipped",
            [
                _curve(rows, "clip_share", "clipped", BLUE, smooth=True),
                _curve(rows, "kl_old_new", "KL new to old", ORANGE, smooth=True, right=True),
            ],
            right_label="nats per token",
        ),
    ]
    if has_critic:
        explained = _curve(rows, "explained_variance", "explained variance", BLUE, smooth=True)
        panels.append(Panel("Value head", "explained variance", [explained]))
    if config.rewards:
        panels.insert(1, _terms(rows, config))
    if config.rewards or not has_critic:
        panels.append(
            Panel(
                "Gradients",
                "norm before clipping",
                [
                    _curve(rows, "grad_norm", "gradient norm", BLUE, smooth=True),
                    _curve(rows, "lr", "learning rate", PURPLE, right=True),
                ],
                right_label="learning rate",
            )
        )
    done = max((row["step"] for row in rows), default=0)
    batch = config.num_prompts * config.samples_per_prompt
    subtitle = f"iteration {done} of {config.num_iterations}, {batch} completions each"
    measured = any("eval_score" in row for row in rows)
    mark = best_iteration if measured else None
    if measured:
        subtitle += f"; best policy at iteration {best_iteration} by {config.best_metric}"
    title = f"PPO: {name}" if has_critic else name
    return panel_grid(panels, title, subtitle, "iteration", mark=mark, columns=4 if config.rewards else 3)


def _curve(rows: Rows, key: str, label: str, color: str, **look: bool) -> Curve:
    """The rows that have the figure; most figures are not measured in every row."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return Curve(label or key, [x for x, _ in found], [y for _, y in found], color, **look)


def _reward(rows: Rows) -> Panel:
    curves = [_curve(rows, "score", "training", BLUE, smooth=True)]
    if any("eval_score" in row for row in rows):
        curves.append(_curve(rows, "eval_score", "held-out", GREEN, dots=True))
    heldout = any("eval_heldout_score" in row for row in rows)
    if heldout:
        curves.append(_curve(rows, "eval_heldout_score", "held-out reward", ORANGE, dots=True, right=True))
    alarms = [row["step"] for row in rows if row.get("eval_alarm")]
    right_label = "held-out reward" if heldout else ""
    return Panel("Reward", "score", curves, right_label=right_label, crosses=alarms)


def _terms(rows: Rows, config: PPOConfig) -> Panel:
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(config.rewards))]
    curves = [
        _curve(rows, f"score/{term.label}", f"{term.label} x {term.weight:g}", color, smooth=True)
        for term, color in zip(config.rewards, colors, strict=True)
    ]
    return Panel("Terms of the reward", "raw score", curves)


def _kl(rows: Rows, config: PPOConfig) -> Panel:
    curves = [_curve(rows, "kl", "training", BLUE, smooth=True)]
    if any("eval_kl" in row for row in rows):
        curves.append(_curve(rows, "eval_kl", "held-out", GREEN, dots=True))
    if config.kl_target is None:
        title = f"KL to the reference (weight {config.kl_coef:g})"
        return Panel(title, "nats per completion", curves)
    curves.append(_curve(rows, "kl_coef", "KL weight", PURPLE, right=True))
    levels = [("target", config.kl_target, RED)]
    return Panel("KL to the reference", "nats per completion", curves, "KL weight", levels)


def _length(rows: Rows) -> Panel:
    return Panel(
        "Length",
        "tokens per completion",
        [
            _curve(rows, "length", "tokens", BLUE, smooth=True),
            _curve(rows, "finished", "ended in time", ORANGE, smooth=True, right=True),
        ],
        right_label="share that ended",
    )
