"""Five seeds of the embedded world, judged by the true rubric: does the loop work, or did one seed get lucky?

    python scripts/prove/demo_seeds.py [--seeds 0 1 2 3 4] [--workspace DIR]

Each seed is a whole `rlhf demo` (pretraining, supervised tuning, ratings, reward, PPO, evaluation) in a
workspace of its own. Prints a table and ends with 1 unless at least four of five seeds meet every target.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rlhf.cli import main as rlhf

TARGETS = {
    "gold before in 0.40-0.60": lambda r: 0.40 <= r["evaluate"]["gold_before"] <= 0.60,
    "win rate >= 0.70": lambda r: r["evaluate"]["win_rate"] >= 0.70,
    "its lower bound > 0.60": lambda r: r["evaluate"]["win_rate_low"] > 0.60,
    "at least 300 prompts": lambda r: r["evaluate"]["num_prompts"] >= 300,
    "KL <= 15 nats": lambda r: r["evaluate"]["kl"] <= 15,
    "distinct-2 >= 70 %": lambda r: r["evaluate"]["distinct_2_ratio"] >= 0.70,
    "reward within 5 points of raters": lambda r: (
        r["reward"]["accuracy_against_truth"] >= r["raters"]["accuracy_against_truth"] - 0.05
    ),
}


def table(reports: dict[int, dict[str, Any]]) -> str:
    """One line a seed, and one a target with the seeds that miss it."""
    lines = [
        "seed  gold before -> after  win rate [95 %]          KL    distinct-2  reward / raters  seconds"
    ]
    for seed, report in reports.items():
        e, reward, raters = report["evaluate"], report["reward"], report["raters"]
        lines.append(
            f"{seed:4d}  {e['gold_before']:.3f} -> {e['gold_after']:.3f}"
            f"        {e['win_rate']:.3f} [{e['win_rate_low']:.3f}, {e['win_rate_high']:.3f}]"
            f"  {e['kl']:5.2f}  {e['distinct_2_ratio']:.2f}"
            f"        {reward['accuracy_against_truth']:.3f} / {raters['accuracy_against_truth']:.3f}"
            f"    {sum(report['seconds'].values()):.0f}"
        )
    for name, met in TARGETS.items():
        missing = [seed for seed, report in reports.items() if not met(report)]
        lines.append(f"{name}: {'all' if not missing else f'missed by seeds {missing}'}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--workspace", type=Path, default=None, help="kept; default a temporary folder")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.workspace or Path(temporary)
        reports = {}
        for seed in options.seeds:
            workspace = root / f"seed-{seed}"
            code = rlhf(["demo", "--workspace", str(workspace), "--seed", str(seed)])
            if code:
                print(f"seed {seed}: rlhf demo ended with {code}")
                return 1
            reports[seed] = json.loads((workspace / "report.json").read_text(encoding="utf-8"))
    print(table(reports))
    passed = sum(all(met(report) for met in TARGETS.values()) for report in reports.values())
    needed = -(-4 * len(reports) // 5)
    print(f"{passed} of {len(reports)} seeds meet every target; {needed} are needed")
    return 0 if passed >= needed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
