"""Which measurements a run of the benchmark takes, in which order, and where their results lie."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cases import Case, Result, load_case, load_result, save
from rlhf.core.metrics import progress

OURS, THEIRS = "ours", "theirs"
# What the engine asks of glibc for itself, as the environment of a process that cannot ask.
KEEP_FREED = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
ROWS = ("all", "top", "mixed")
SCALING_BATCHES, SCALING_COMPLETIONS = (16, 64, 256), (64, 128, 256)


@dataclass(frozen=True)
class Measurement:
    """One process: `label` is the row of the table, `round` counts the repetitions from 0."""

    part: str
    label: str
    side: str
    case: Case
    round: int = 0

    @property
    def file(self) -> str:
        return f"{self.part}-{self.label}-{self.side}-{self.round}.json"


def speed_plan(base: Case, rounds: int, labels: Sequence[str], *, kinder: bool) -> Iterator[Measurement]:
    """Ours and theirs in turn on every row. kinder: also rows in which the peer is helped beyond its documentation."""
    rows = {
        "all": replace(base, share=1.0),
        "top": replace(base, share=0.5),
        "mixed": replace(base, share=0.5, mixed=True),
    }
    helped = {
        "top-value-lora": replace(rows["top"], value="lora"),
        "all-keep-freed": replace(rows["all"], keep_freed=True),
    }
    for number in range(rounds):
        for label in labels:
            case = rows[label]
            for side in (OURS, THEIRS):
                yield Measurement("speed", label, side, case, number)
        if kinder:
            for label, case in helped.items():
                yield Measurement("speed", label, THEIRS, case, number)


def reward_plan(base: Case, rounds: int, iterations: int) -> Iterator[Measurement]:
    """Learning curves over equal episodes, one seed a round, on short completions so that many updates fit."""
    for number in range(rounds):
        case = replace(
            base,
            share=0.5,
            prompt=min(base.prompt, 16),
            completion=min(base.completion, 16),
            lr=1e-3,
            # Our head reads hidden states of norm sqrt(H): at 1e-3 a step of Adam moves its values by about 0.3. The
            # peer's value model has an optimizer state of its own, so the weight of its loss changes nothing there.
            value_coef=2.0,
            value_lr=3e-4,
            kl_coef=0.01,
            seed=base.seed + number,
            warmup=0,
            timed=iterations,
            phased=0,
            eval_every=max(1, iterations // 8),
        )
        for side in (OURS, THEIRS):
            yield Measurement("reward", "top", side, case, number)


def scaling_plan(base: Case, batches: tuple[int, ...], completions: tuple[int, ...]) -> Iterator[Measurement]:
    """Ours alone, one PPO epoch, from small to large."""
    for batch in batches:
        for completion in completions:
            small = batch * completion < 10_000
            case = replace(
                base,
                share=0.5,
                batch=batch,
                completion=completion,
                micro_rows=min(batch, base.micro_rows),
                epochs=1,
                warmup=int(small),
                timed=3 if small else 1,
                phased=0,
            )
            yield Measurement("scaling", f"{batch}x{completion}", OURS, case)


def run_all(
    plan: list[Measurement],
    pythons: dict[str, str],
    models: Path,
    results: Path,
    *,
    budget_s: float | None,
) -> bool:
    """Take what has no result in `results` yet, one process at a time. False when the budget ended it early.

    A result belongs to its settings: one that was measured with others is measured again.
    """
    results.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    left = [m for m in plan if not _is_measured(m, results)]
    with progress("measurements", len(plan), stage="bench") as tracker:
        tracker.advance(len(plan) - len(left))
        for measurement in left:
            if budget_s is not None and time.perf_counter() - started > budget_s:
                return False
            run_one(measurement, pythons[measurement.side], models / measurement.case.shape, results)
            tracker.advance()
    return True


def run_one(measurement: Measurement, python: str, model: Path, results: Path) -> None:
    """Measure in a process of its own. Raises RuntimeError with the last lines of what it said."""
    case = measurement.case
    case_file, result_file = results / f"case-{measurement.file}", results / measurement.file
    save(case, case_file)
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": str(case.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    command = [python, "-m", f"bench.{measurement.side}", str(case_file), str(model), str(result_file)]
    keep = KEEP_FREED if case.keep_freed else {}
    done = subprocess.run(command, env=environment | keep, capture_output=True, text=True)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise RuntimeError(f"{measurement.file} ended with {done.returncode}:\n{said}")


def _is_measured(measurement: Measurement, results: Path) -> bool:
    case_file = results / f"case-{measurement.file}"
    return (
        (results / measurement.file).is_file()
        and case_file.is_file()
        and load_case(case_file) == measurement.case
    )


def measured(plan: list[Measurement], results: Path) -> list[tuple[Measurement, Result]]:
    """The results that are there, in the plan's order."""
    return [(m, load_result(results / m.file)) for m in plan if _is_measured(m, results)]
