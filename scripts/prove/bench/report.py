"""The figures as Markdown, for the terminal and for docs/benchmarks.md."""

from __future__ import annotations

import math
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.cases import SHAPES, Case
from bench.measure import PHASES
from bench.plan import OURS, THEIRS
from bench.table import (
    Comparison,
    Learning,
    Row,
    fitted_exponent,
)

NAMES = {
    "all": "all layers",
    "top": "top half",
    "mixed": "top half, mixed lengths",
    "top-value-lora": "top half, its value model on adapters too",
    "all-keep-freed": "all layers, freed memory kept by glibc",
}
SIDES = {OURS: "ours", THEIRS: "TRL 1.12.0"}


def machine(device: str) -> str:
    """The machine in words, without its name."""
    cpu = platform.processor() or "CPU"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = models[0] if models else cpu
    gpu = f", {torch.cuda.get_device_name()}" if device != "cpu" else ""
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores{gpu}"


def _heading(case: Case, versions: dict[str, str], version: str, rounds: int) -> list[str]:
    shape = SHAPES[case.shape]
    packages = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "trl")
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, code {version}, {machine(case.device)}, {case.threads} threads; {packages}.",
        f"Shape {case.shape} ({shape.architecture}, hidden {shape.hidden}, {shape.layers} layers, vocabulary "
        f"{shape.vocabulary}, random weights), {case.dtype}, batch {case.batch}, prompt {case.prompt}, completion "
        f"{case.completion}, micro-batches of {case.micro_rows} rows, {case.epochs} epochs x {case.minibatches} "
        f"optimizer steps, LoRA rank {case.rank} on every linear layer. Medians over {rounds} alternating rounds "
        f"of {case.timed} iterations, each round in processes of its own.",
    ]


def speed_table(rows: dict[tuple[str, str], Row]) -> list[str]:
    shown = PHASES if any(any(row.phases.values()) for row in rows.values()) else ()
    heads = ["adapters", "side", "episodes/s", "tokens/s", "peak memory, MB", *(f"{p}, s" for p in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows.values():
        cells = [NAMES[row.label], SIDES[row.side], f"{row.episodes_per_s:.2f}", f"{row.tokens_per_s:.0f}"]
        cells += [f"{row.memory_mb:.0f}", *(f"{row.phases[phase]:.2f}" for phase in shown)]
        lines.append("| " + " | ".join(cells) + " |")
    spread = max((row.slowest_over_fastest for row in rows.values()), default=1.0)
    return [*lines, "", f"Fastest over slowest iteration of one row: at most {spread:.2f}."]


def verdict_table(comparisons: list[Comparison]) -> list[str]:
    lines = [
        "| ours | against TRL's | speed | memory | floor / goal / memory at most | met |",
        "|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        target, met = "", ""
        if c.target is not None:
            target = f"{c.target.floor:g}x / {c.target.goal:g}x / {c.target.memory:g}x"
            met = "goal" if c.meets and c.speed >= c.target.goal else "floor" if c.meets else "**no**"
        lines.append(
            f"| {NAMES[c.label]} | {NAMES[c.theirs]} | {c.speed:.2f}x | {c.memory:.2f}x | {target} | {met} |"
        )
    return lines


def learning_lines(learning: Learning) -> list[str]:
    ends = ", ".join(
        f"{SIDES[side]} {mean:.3f} +- {half:.3f}" for side, (mean, half) in learning.held_out.items()
    )
    difference, half = learning.difference
    ratio = learning.seconds[THEIRS] / learning.seconds[OURS] if learning.seconds[OURS] else math.nan
    seconds = ", ".join(
        f"{SIDES[side]} {value:.0f} s" if math.isfinite(value) else f"{SIDES[side]} never"
        for side, value in learning.seconds.items()
    )
    return [
        f"Held-out reward (share of wanted tokens; {learning.start:.3f} before training) after {learning.episodes} "
        f"episodes each: {ends}; difference {difference:+.3f} +- {half:.3f}: "
        + ("not worse." if learning.equal else "**worse**."),
        f"Seconds of training to a held-out reward of {learning.goal:g}: {seconds}"
        + (f", {ratio:.1f}x." if math.isfinite(ratio) else "."),
    ]


def scaling_table(cells: list[tuple[int, int, float]]) -> list[str]:
    completions = sorted({completion for _, completion, _ in cells})
    lines = [
        "| batch | " + " | ".join(f"completion {c}" for c in completions) + " |",
        "|---|" + "---|" * len(completions),
    ]
    found = {(batch, completion): seconds for batch, completion, seconds in cells}
    for batch in sorted({batch for batch, _, _ in cells}):
        rates = [f"{batch / found[batch, c]:.2f}" if (batch, c) in found else "" for c in completions]
        lines.append(f"| {batch} | " + " | ".join(rates) + " |")
    if len(cells) > 1:
        exponent = fitted_exponent([b * c for b, c, _ in cells], [s for _, _, s in cells])
        lines += ["", f"Seconds grow as completion tokens to the power {exponent:.2f} (1 is linear)."]
    return lines


def into_file(text: str, path: Path) -> None:
    """Put a section into a Markdown file: it replaces the one with the same heading, or comes last."""
    heading = text.splitlines()[0]
    old = path.read_text(encoding="utf-8") if path.is_file() else "# Benchmarks\n"
    parts = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    same = [i for i, part in enumerate(parts) if part.startswith(heading + "\n")]
    if same:
        last = same[0] == len(parts) - 1
        parts[same[0]] = text if last else text + "\n"
    else:
        parts = ["".join(parts).rstrip() + "\n\n", text]
    path.write_text("".join(parts), encoding="utf-8")


def markdown(
    case: Case,
    versions: dict[str, str],
    version: str,
    rounds: int,
    rows: dict[tuple[str, str], Row],
    comparisons: list[Comparison],
    learning: Learning | None,
    cells: list[tuple[int, int, float]],
) -> str:
    """One run's section of docs/benchmarks.md, its second-level heading first."""
    lines = [f"## {case.shape} on {'a CPU' if case.device == 'cpu' else 'a GPU'}", ""]
    lines += _heading(case, versions, version, rounds)
    if rows:
        lines += ["", "### Speed and memory", "", *speed_table(rows)]
    if comparisons:
        lines += ["", "### Against TRL", "", *verdict_table(comparisons)]
    if learning is not None:
        lines += ["", "### Learning", "", *learning_lines(learning)]
    if cells:
        lines += [
            "",
            "### Growth",
            "",
            "Ours, top half, one PPO epoch, episodes/s:",
            "",
            *scaling_table(cells),
        ]
    return "\n".join(lines) + "\n"
