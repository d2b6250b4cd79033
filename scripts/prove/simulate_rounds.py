"""Five rounds of retraining in the embedded world, unattended, and four rounds that must not be promoted.

    python scripts/prove/simulate_rounds.py --workspace DIR [--from DEMO] [--rounds 5] [--seconds 150] [--seed 0]

Before each round the champion answers new prompts in pairs, the five simulated raters judge them, and `rlhf retrain
--once` does the rest. The true rubric, which no step of a round sees, then measures each champion on prompts that
nothing else uses. After the last round, copies of the workspace get a round with one thing wrong each: one rater's
labels turned round, too little data, a reward model that came out upside down, and a PPO without a leash.

--from takes world, base model and supervised model from the workspace of a finished `rlhf demo` of the same seed.
--seconds ends the script before a further step when so much time is gone; the same command goes on.

Targets: at least 4 of 5 clean rounds promoted; no champion truly worse than the one before it by more than the
interval of the difference; the last champion beats the first one with a win rate of at least 0.65; none of the four
injected rounds promoted, each with its own reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from retraining.simulation import INJECTED, Simulation, verdict_lines

STATE = "simulation.json"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, required=True, help="kept, so that the script can go on")
    parser.add_argument(
        "--from", dest="demo", type=Path, help="workspace of a finished demo of the same seed"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    started = time.monotonic()
    simulation = Simulation(options.workspace.resolve(), options.seed, options.demo)
    path = options.workspace / STATE
    done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, work in _steps(simulation, options.rounds):
        if name in done:
            continue
        if time.monotonic() - started > options.seconds:
            print(f"simulate: not done yet; next is {name}; the same command goes on")
            return 3
        begun = time.monotonic()
        found = work()
        done[name] = found | {"seconds": round(time.monotonic() - begun, 1)}
        path.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
        print(f"simulate: {name} took {done[name]['seconds']:.0f} s: {found}", flush=True)
    lines, failures = verdict_lines(done, options.rounds)
    print("\n".join([*lines, *(f"FAILED: {failure}" for failure in failures)]))
    return 1 if failures else 0


def _steps(simulation: Simulation, rounds: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    steps: list[tuple[str, Callable[[], dict[str, Any]]]] = [("setup", simulation.setup)]
    for number in range(1, rounds + 1):
        steps.append((f"ratings {number}", lambda n=number: simulation.ratings(n)))  # type: ignore[misc]
        steps.append((f"round {number}", lambda: simulation.retrain()))
        steps.append((f"truth {number}", lambda n=number: simulation.truth(n)))  # type: ignore[misc]
    steps.append(("last against first", simulation.last_against_first))
    steps += [(f"injected {name}", lambda n=name: simulation.injected(n)) for name in INJECTED]  # type: ignore[misc]
    return steps


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
