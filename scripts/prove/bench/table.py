"""From results to figures: medians, ratios, the fitted exponent, the targets, and Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cases import Case, Result
from bench.measure import PHASES
from bench.plan import OURS, THEIRS, Measurement

Measured = Sequence[tuple[Measurement, Result]]


@dataclass(frozen=True)
class Target:
    """floor, goal: our episodes/s as a multiple of the peer's; memory: the largest share of the peer's peak."""

    floor: float
    goal: float
    memory: float


CPU_TARGETS = {"all": Target(2.0, 2.5, 0.4), "top": Target(3.3, 4.0, 0.3), "mixed": Target(5.0, 6.0, 0.3)}
GPU_TARGETS = {"top": Target(5.0, 5.0, 0.35)}


def targets_for(case: Case) -> dict[str, Target]:
    """The targets hold for one CPU setting and two GPU shapes; other settings have none."""
    sizes = (case.batch, case.prompt, case.completion, case.epochs)
    if (case.device, case.shape, case.dtype) == ("cpu", "llama-14m", "float32") and sizes == (32, 32, 64, 4):
        return CPU_TARGETS
    if case.device != "cpu" and case.shape.startswith("qwen2.5") and sizes[1:3] == (256, 256):
        return GPU_TARGETS if case.dtype == "bfloat16" else {}
    return {}


@dataclass(frozen=True)
class Row:
    """Medians of one side of one row over all its timed iterations and rounds."""

    label: str
    side: str
    episodes_per_s: float
    tokens_per_s: float
    memory_mb: float
    phases: dict[str, float]
    slowest_over_fastest: float


def rows_of(results: Measured) -> dict[tuple[str, str], Row]:
    """(label, side) -> medians. Raises ValueError where the two sides did not do the same work."""
    groups: dict[tuple[str, str], list[tuple[Measurement, Result]]] = {}
    for measurement, result in results:
        if measurement.part == "speed":
            groups.setdefault((measurement.label, measurement.side), []).append((measurement, result))
    rows = {}
    for (label, side), group in groups.items():
        for measurement, result in group:
            _require_same_work(measurement, result, groups.get((label, OURS), []))
        pairs = [(s, t, m.case.batch) for m, r in group for s, t in zip(r.seconds, r.tokens, strict=True)]
        rates = [batch / seconds for seconds, _, batch in pairs]
        rows[label, side] = Row(
            label,
            side,
            statistics.median(rates),
            statistics.median(tokens / seconds for seconds, tokens, _ in pairs),
            statistics.median(r.memory_mb for _, r in group),
            {phase: statistics.median(r.phases[phase] for _, r in group) for phase in PHASES},
            max(rates) / min(rates),
        )
    return rows


def _require_same_work(
    measurement: Measurement, result: Result, ours: list[tuple[Measurement, Result]]
) -> None:
    case = measurement.case
    steps = case.iterations * case.epochs * case.minibatches
    if result.steps != steps:
        raise ValueError(f"{measurement.file}: took {result.steps} optimizer steps; expected {steps}")
    wanted = [case.num_tokens(i) / case.batch for i in range(case.iterations)]
    if any(abs(seen - length) > 1e-3 for seen, length in zip(result.lengths_seen, wanted, strict=True)):
        raise ValueError(f"{measurement.file}: mean lengths {result.lengths_seen}; imposed were {wanted}")
    for _, other in ours:
        if other.adapter_parameters != result.adapter_parameters:
            raise ValueError(
                f"{measurement.file}: {result.adapter_parameters} adapter parameters; "
                f"ours has {other.adapter_parameters}"
            )


@dataclass(frozen=True)
class Comparison:
    """One row of the verdict. theirs: the row it is compared with, which may have adapters elsewhere."""

    label: str
    theirs: str
    speed: float
    memory: float
    target: Target | None

    @property
    def meets(self) -> bool:
        return self.target is None or (self.speed >= self.target.floor and self.memory <= self.target.memory)


def compare(rows: dict[tuple[str, str], Row], targets: dict[str, Target]) -> list[Comparison]:
    """Each of our rows against the peer's of the same name (with the target), and against the peer's others."""
    others = {"all": ["all-keep-freed"], "top": ["all", "top-value-lora"]}
    found = []
    for label in ("all", "top", "mixed"):
        for theirs in [label, *others.get(label, [])]:
            if (label, OURS) in rows and (theirs, THEIRS) in rows:
                a, b = rows[label, OURS], rows[theirs, THEIRS]
                target = targets.get(label) if theirs == label else None
                speed, memory = a.episodes_per_s / b.episodes_per_s, a.memory_mb / b.memory_mb
                found.append(Comparison(label, theirs, speed, memory, target))
    return found


@dataclass(frozen=True)
class Learning:
    """Held-out reward after equal episodes: mean and half width of the 95 % interval over seeds, per side; the
    interval of the paired difference ours - theirs; seconds to the given reward, median over seeds (inf: never)."""

    start: float
    held_out: dict[str, tuple[float, float]]
    difference: tuple[float, float]
    goal: float
    seconds: dict[str, float]
    episodes: int

    @property
    def equal(self) -> bool:
        """Ours is not worse: the interval of the difference reaches 0, or lies above it."""
        return self.difference[0] + self.difference[1] >= 0


# Two-sided 95 % points of Student's t, by degrees of freedom.
_T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: Sequence[float], within: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval) over seeds; of one seed, the interval over its prompts."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, within[0]
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return mean, _T95.get(len(values) - 1, 1.96) * spread


def learning_of(results: Measured, goal: float) -> Learning | None:
    """None until both sides have the same seeds."""
    curves: dict[str, dict[int, list[tuple[int, float, float, float]]]] = {OURS: {}, THEIRS: {}}
    episodes = 0
    for measurement, result in results:
        if measurement.part == "reward":
            curves[measurement.side][measurement.round] = [tuple(point) for point in result.curve]  # type: ignore
            episodes = measurement.case.batch * result.curve[-1][0]
    seeds = sorted(curves[OURS].keys() & curves[THEIRS].keys())
    if not seeds:
        return None
    last = {side: [by_seed[seed][-1] for seed in seeds] for side, by_seed in curves.items()}
    ends = {side: interval([p[2] for p in points], [p[3] for p in points]) for side, points in last.items()}
    pairs = list(zip(last[OURS], last[THEIRS], strict=True))
    return Learning(
        statistics.fmean(curves[side][seed][0][2] for side in curves for seed in seeds),
        ends,
        interval([a[2] - b[2] for a, b in pairs], [math.hypot(a[3], b[3]) for a, b in pairs]),
        goal,
        {side: statistics.median(seconds_to(c[seed], goal) for seed in seeds) for side, c in curves.items()},
        episodes,
    )


def seconds_to(curve: Sequence[Sequence[float]], goal: float) -> float:
    """Training seconds at which a curve first reaches a held-out reward, interpolated between evaluations."""
    before = curve[0]
    if before[2] >= goal:
        return before[1]
    for point in curve[1:]:
        if point[2] >= goal:
            share = (goal - before[2]) / (point[2] - before[2])
            return before[1] + share * (point[1] - before[1])
        before = point
    return math.inf


def fitted_exponent(tokens: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds on log tokens, by least squares: 1 is linear cost."""
    x, y = [math.log(t) for t in tokens], [math.log(s) for s in seconds]
    return statistics.linear_regression(x, y).slope


def scaling_of(results: Measured) -> list[tuple[int, int, float]]:
    """(batch, completion, median seconds of an iteration)."""
    return [
        (m.case.batch, m.case.completion, statistics.median(r.seconds))
        for m, r in results
        if m.part == "scaling"
    ]
