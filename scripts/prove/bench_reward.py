"""How fast and how lean is the training of a reward model here, beside trl's RewardTrainer?

    python scripts/prove/bench_reward.py [--rounds 3] [--markdown FILE]

Both sides run in turn, each measurement in a process of its own, on the same random weights and token ids, with the
same rank, targets, learning rate, pairs per step, epochs and precision, and validate after each epoch; loading the
model and reading the pairs is off the clock, our trunk states are on it. A side that took another number of steps or
trained another number of adapter parameters is refused. The peer is the trl that this project is installed with.
Results are kept in --results, by the commit of the code, as those of `bench_ppo.py` are.

    speed      adapters on all layers, and on the top half with the trunk's states kept over the epochs
    accuracy   held-out accuracy on a planted preference after equal epochs, several seeds

Ends with 1 when a floor is missed or our accuracy is surely lower. Run it on an idle machine: minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import bench_ppo
from bench import peer, plan, report, table
from bench.cases import SHAPES, Case, Result
from bench.model import write_model
from bench.pairs import num_steps

OURS, THEIRS = "reward_ours", "reward_theirs"
FLOORS = {"all": 1.0, "top": 1.6}
NAMES = {"all": "all layers", "top": "top half"}
PARTS = ("speed", "accuracy")
Measured = list[tuple[plan.Measurement, Result]]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-14m")
    parser.add_argument("--pairs", type=int, default=128, help="comparisons of the speed part")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every measurement")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--results", type=Path, default=bench_ppo.REPOSITORY / "build" / "bench-reward")
    parser.add_argument("--budget-s", type=float, help="start no measurement after so many seconds")
    parser.add_argument("--markdown", type=Path, help="put the tables into this file, as a section")
    parser.add_argument("--quick", action="store_true", help="the tiny shape, one round: seconds, no floors")
    options = parser.parse_args(argv)
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    return options


def base_case(options: argparse.Namespace) -> Case:
    """32 tokens of prompt and completions of 16 to 96, 16 pairs a step; 64 pairs are validated on."""
    if options.quick:
        return Case(
            shape="tiny",
            pairs=12,
            batch=4,
            prompt=4,
            shortest=2,
            completion=8,
            epochs=2,
            threads=1,
            eval_prompts=8,
        )
    return Case(
        shape=options.shape,
        pairs=options.pairs,
        batch=16,
        prompt=32,
        shortest=16,
        completion=96,
        epochs=options.epochs,
        threads=options.threads,
        eval_prompts=64,
    )


def make_plan(base: Case, parts: list[str], rounds: int) -> Iterator[plan.Measurement]:
    """Ours and theirs in turn; every round has another seed, of the pairs as well."""
    for number in range(rounds):
        case = replace(base, seed=number)
        if "speed" in parts:
            for label, share in (("all", 1.0), ("top", 0.5)):
                for side in (OURS, THEIRS):
                    yield plan.Measurement("speed", label, side, replace(case, share=share), number)
        if "accuracy" in parts:
            case = replace(
                case,
                share=0.5,
                pairs=64 * base.batch if base.shape != "tiny" else base.pairs,
                prompt=min(base.prompt, 4),
                shortest=min(base.shortest, 8),
                completion=min(base.completion, 16),
                lr=1e-3,
                eval_prompts=32 * base.batch,
            )
            for side in (OURS, THEIRS):
                yield plan.Measurement("accuracy", "top", side, case, number)


# ---- figures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Medians of one side of one row over the rounds."""

    label: str
    side: str
    pairs_per_s: float
    memory_mb: float
    slowest_over_fastest: float


@dataclass(frozen=True)
class Ratio:
    """Ours on `label` against theirs on `theirs`. speed: median of the rounds' ratios; memory: ratio of the medians."""

    label: str
    theirs: str
    speed: float
    memory: float
    floor: float | None

    @property
    def meets(self) -> bool:
        return self.floor is None or self.speed >= self.floor


@dataclass(frozen=True)
class Accuracy:
    """Held-out accuracy per side, mean and half width of the 95 % interval over seeds, and that of the difference."""

    held_out: dict[str, tuple[float, float]]
    difference: tuple[float, float]

    @property
    def equal(self) -> bool:
        """Ours is not worse: the interval of the difference reaches 0, or lies above it."""
        return self.difference[0] + self.difference[1] >= 0


def require_same_work(results: Measured) -> None:
    """Raises ValueError for a side that took other steps or trained other adapters than were asked for."""
    adapters: dict[tuple[str, str], int] = {}
    for measurement, result in results:
        expected = num_steps(measurement.case)
        if result.steps != expected:
            raise ValueError(f"{measurement.file}: took {result.steps} optimizer steps; expected {expected}")
        known = adapters.setdefault((measurement.part, measurement.label), result.adapter_parameters)
        if known != result.adapter_parameters:
            raise ValueError(
                f"{measurement.file}: {result.adapter_parameters} adapter parameters; the other side has {known}"
            )


def _rates(results: Measured, label: str, side: str) -> dict[int, float]:
    """round -> comparisons trained on per second."""
    return {
        m.round: m.case.pairs * m.case.epochs / r.seconds[0]
        for m, r in results
        if (m.part, m.label, m.side) == ("speed", label, side)
    }


def rows_of(results: Measured) -> list[Row]:
    rows = []
    for label in FLOORS:
        for side in (OURS, THEIRS):
            if rates := _rates(results, label, side):
                memory = [
                    r.memory_mb for m, r in results if (m.part, m.label, m.side) == ("speed", label, side)
                ]
                found = list(rates.values())
                rows.append(
                    Row(
                        label,
                        side,
                        statistics.median(found),
                        statistics.median(memory),
                        max(found) / min(found),
                    )
                )
    return rows


def ratios_of(results: Measured, *, floors: bool) -> list[Ratio]:
    """Ours against theirs with adapters on the same layers, and our top half against their whole model."""
    memory = {(row.label, row.side): row.memory_mb for row in rows_of(results)}
    ratios = []
    for label, theirs in (("all", "all"), ("top", "top"), ("top", "all")):
        ours, others = _rates(results, label, OURS), _rates(results, theirs, THEIRS)
        if both := sorted(ours.keys() & others.keys()):
            ratios.append(
                Ratio(
                    label,
                    theirs,
                    statistics.median(ours[number] / others[number] for number in both),
                    # The tiny shape needs no more than the imports did.
                    memory[label, OURS] / (memory[theirs, THEIRS] or math.nan),
                    FLOORS[label] if floors and label == theirs else None,
                )
            )
    return ratios


def accuracy_of(results: Measured) -> Accuracy | None:
    """None until both sides have the same seeds."""
    ends: dict[str, dict[int, list[float]]] = {OURS: {}, THEIRS: {}}
    for measurement, result in results:
        if measurement.part == "accuracy":
            ends[measurement.side][measurement.round] = list(result.curve[-1][2:])
    seeds = sorted(ends[OURS].keys() & ends[THEIRS].keys())
    if not seeds:
        return None
    pairs = [(ends[OURS][seed], ends[THEIRS][seed]) for seed in seeds]
    return Accuracy(
        {
            side: table.interval([ends[side][s][0] for s in seeds], [ends[side][s][1] for s in seeds])
            for side in (OURS, THEIRS)
        },
        table.interval([a[0] - b[0] for a, b in pairs], [(a[1] ** 2 + b[1] ** 2) ** 0.5 for a, b in pairs]),
    )


# ---- Markdown -----------------------------------------------------------------------------------------------


def markdown(base: Case, version: str, rounds: int, results: Measured, ratios: list[Ratio]) -> str:
    """One section for docs/benchmarks.md."""
    packages = peer.versions(sys.executable)
    sides = {OURS: "ours", THEIRS: f"TRL {packages['trl']}"}
    rows = rows_of(results)
    shape = SHAPES[base.shape]
    lines = [
        f"## The reward model: {base.shape} on a CPU",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, code {version}, {report.machine(base.device)}, {base.threads} threads; "
        f"{', '.join(f'{name} {number}' for name, number in packages.items())}.",
        f"Shape {base.shape} ({shape.architecture}, hidden {shape.hidden}, {shape.layers} layers, vocabulary "
        f"{shape.vocabulary}, random weights), {base.dtype}, {base.pairs} pairs, prompts of {base.prompt} tokens, "
        f"completions of {base.shortest} to {base.completion}, {base.batch} pairs a step, {base.epochs} epochs with a "
        f"validation on {base.eval_prompts} pairs after each, LoRA rank {base.rank} on every linear layer. Medians "
        f"over {rounds} alternating rounds, each measurement in a process of its own.",
    ]
    if rows:
        lines += [
            "",
            "| adapters | side | pairs/s | peak memory, MB | fastest over slowest round |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {NAMES[r.label]} | {sides[r.side]} | {r.pairs_per_s:.1f} | {r.memory_mb:.0f} | "
            f"{r.slowest_over_fastest:.2f} |"
            for r in rows
        ]
        lines += ["", "| ours | against TRL's | speed | memory | floor | met |", "|---|---|---|---|---|---|"]
        for ratio in ratios:
            floor = f"{ratio.floor:g}x" if ratio.floor else ""
            met = "" if ratio.floor is None else "yes" if ratio.meets else "**no**"
            lines.append(
                f"| {NAMES[ratio.label]} | {NAMES[ratio.theirs]} | {ratio.speed:.2f}x | {ratio.memory:.2f}x | "
                f"{floor} | {met} |"
            )
    if found := accuracy_of(results):
        case = next(m.case for m, _ in results if m.part == "accuracy")
        ends = ", ".join(
            f"{sides[side]} {mean:.3f} +- {half:.3f}" for side, (mean, half) in found.held_out.items()
        )
        difference, half = found.difference
        lines += [
            "",
            f"Held-out accuracy on a planted preference ({case.pairs} pairs of completions of {case.shortest} to "
            f"{case.completion} tokens, top half, learning rate {case.lr:g}, {case.eval_prompts} held-out pairs, "
            f"{rounds} seeds): {ends}; difference {difference:+.3f} +- {half:.3f}: "
            + ("not worse." if found.equal else "**worse**."),
        ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    options = parse(argv)
    base, version = base_case(options), bench_ppo.code_version()
    rounds = 1 if options.quick else options.rounds
    measurements = list(make_plan(base, options.parts, rounds))
    models, folder = options.results / "models", options.results / version
    write_model(base.shape, models / base.shape, dtype=base.dtype)
    pythons = {OURS: sys.executable, THEIRS: sys.executable}
    complete = plan.run_all(measurements, pythons, models, folder, budget_s=options.budget_s)
    results = plan.measured(measurements, folder)
    require_same_work(results)
    ratios = ratios_of(results, floors=not options.quick)
    text = markdown(base, version, rounds, results, ratios)
    print(text)
    if options.markdown:
        report.into_file(text, options.markdown)
    if not complete:
        print(f"bench: the budget of {options.budget_s:g} s is spent; run again to go on", file=sys.stderr)
        return 1
    missed = [f"{NAMES[ratio.label]} ({ratio.speed:.2f}x)" for ratio in ratios if not ratio.meets]
    found = accuracy_of(results)
    if found is not None and not found.equal and not options.quick:
        missed.append("equal held-out accuracy")
    if missed:
        print(f"bench: fell short: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
