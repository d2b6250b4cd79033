"""How fast and how lean is PPO here, beside TRL's PPOTrainer (the last release that had one, 1.12.0)?

    python scripts/prove/bench_ppo.py [--rounds 3] [--markdown FILE]
    python scripts/prove/bench_ppo.py --parts speed --device cuda --dtype bfloat16 --shape qwen2.5-0.5b \
        --prompt 256 --completion 256

The first run makes an environment for the peer (--peer-env) with trl 1.12.0 and our versions of torch, transformers,
peft and accelerate. Both sides then run in turn, each measurement in a process of its own, on the same random
weights, prompts, lengths, batch, micro-batch rows, epochs, optimizer steps, precision and adapters; a measurement
whose steps, lengths or adapter parameters differ from what was asked is refused. Results are kept in --results, by
the commit of the code: a run that was ended (also by --budget-s) goes on where it stopped.

    speed     adapters on all layers, on the top half, and on the top half with imposed mixed lengths
    reward    held-out reward after equal episodes, and the seconds to --goal, several seeds
    scaling   ours at three batch sizes and three lengths, with the fitted exponent

Ends with 1 when a floor, a memory target or the equal reward is missed, 0 otherwise (other settings than those of
the targets have none). Run it on an idle machine: about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from bench import peer, plan, report, table
from bench.cases import SHAPES, Case
from bench.model import write_model

REPOSITORY = Path(__file__).resolve().parents[2]
MEASURED = ("rlhf", "reward", "scripts/prove/bench")
PARTS = ("speed", "reward", "scaling")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Case()
    parser.add_argument("--shape", choices=SHAPES, default=default.shape)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=default.dtype)
    numbers = "threads batch prompt completion micro-rows epochs minibatches warmup timed phased"
    for name in numbers.split():
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name.replace("-", "_")))
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of the speed and reward parts")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--rows", default=",".join(plan.ROWS), help="of the speed part, comma-separated")
    parser.add_argument("--iterations", type=int, default=24, help="of the reward part")
    parser.add_argument("--goal", type=float, default=0.75, help="held-out reward whose seconds are told")
    parser.add_argument("--peer-env", type=Path, default=peer.default_folder())
    parser.add_argument(
        "--peer-python", type=Path, help="an interpreter that has the peer already; no environment is made"
    )
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--no-kinder", action="store_true", help="leave out the rows that help the peer")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "build" / "bench")
    parser.add_argument("--budget-s", type=float, help="start no measurement after so many seconds")
    parser.add_argument("--markdown", type=Path, help="put the tables into this file, as a section")
    parser.add_argument("--quick", action="store_true", help="the tiny shape, one round: seconds, no targets")
    options = parser.parse_args(argv)
    for name, known in (("parts", PARTS), ("rows", plan.ROWS)):
        chosen = getattr(options, name).split(",")
        setattr(options, name, chosen)
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    if options.batch % options.micro_rows:
        parser.error(f"--batch ({options.batch}) must be a multiple of --micro-rows ({options.micro_rows})")
    return options


def base_case(options: argparse.Namespace) -> Case:
    if options.quick:
        return Case(shape="tiny", batch=4, prompt=4, completion=8, micro_rows=2, threads=1, eval_prompts=8)
    return Case(
        shape=options.shape,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        batch=options.batch,
        prompt=options.prompt,
        completion=options.completion,
        micro_rows=options.micro_rows,
        epochs=options.epochs,
        minibatches=options.minibatches,
        warmup=options.warmup,
        timed=options.timed,
        phased=options.phased,
    )


def make_plan(options: argparse.Namespace, base: Case) -> list[plan.Measurement]:
    measurements: list[plan.Measurement] = []
    rounds = 1 if options.quick else options.rounds
    if "speed" in options.parts:
        measurements += plan.speed_plan(base, rounds, options.rows, kinder=not options.no_kinder)
    if "reward" in options.parts:
        measurements += plan.reward_plan(base, rounds, 4 if options.quick else options.iterations)
    if "scaling" in options.parts:
        batches, completions = plan.SCALING_BATCHES, plan.SCALING_COMPLETIONS
        if options.quick:
            batches, completions = (2,), (4, 8)
        measurements += plan.scaling_plan(base, batches, completions)
    return [m for m in measurements if m.side == plan.OURS or not options.no_peer]


def code_version() -> str:
    """The last commit of what is measured, marked where files differ from it; `unknown` outside of a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
        return done.stdout.strip()

    commit = git("log", "-1", "--format=%h", "--", *MEASURED) or "unknown"
    return commit + ("-changed" if git("status", "--porcelain", "--", *MEASURED) else "")


def main(argv: list[str]) -> int:
    options = parse(argv)
    base, version = base_case(options), code_version()
    results_folder = options.results / version
    measurements = make_plan(options, base)
    pythons = {plan.OURS: sys.executable}
    if not options.no_peer:
        lock = REPOSITORY / "requirements.lock"
        pythons[plan.THEIRS] = str(options.peer_python or peer.make_environment(options.peer_env, lock))
    models = options.results / "models"
    write_model(base.shape, models / base.shape, dtype=base.dtype)
    complete = plan.run_all(measurements, pythons, models, results_folder, budget_s=options.budget_s)

    results = plan.measured(measurements, results_folder)
    rows = table.rows_of(results)
    comparisons = table.compare(rows, table.targets_for(base))
    learning = table.learning_of(results, options.goal)
    text = report.markdown(
        base,
        peer.versions(sys.executable),
        version,
        1 if options.quick else options.rounds,
        rows,
        comparisons,
        learning,
        table.scaling_of(results),
    )
    print(text)
    if options.markdown:
        report.into_file(text, options.markdown)
    if not complete:
        print(f"bench: the budget of {options.budget_s:g} s is spent; run again to go on", file=sys.stderr)
        return 1
    missed = [c.label for c in comparisons if not c.meets]
    if learning is not None and not learning.equal and not options.quick:
        missed.append("equal held-out reward")
    if missed:
        print(f"bench: fell short: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
