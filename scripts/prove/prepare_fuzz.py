"""Does `rlhf prepare` find what is planted, and survive whatever a file holds?

    python scripts/prove/prepare_fuzz.py [--files 100000] [--seed 0] [--minutes 15] [--state FILE.json]

First the planted problems: duplicates, near-duplicates and near prompts, rows that leak an evaluation file, 200
personal items, NaN, broken UTF-8, a byte-order mark, a line of 30 MB, JSON 2,000 deep, duplicate ids, a gzip bomb,
a torn archive, lone surrogates, NUL; in JSONL, JSON, CSV and Parquet. Every good row has to be kept and every fault
has to be in quarantine with its reason. Then recall and precision on the planted items and 2,000 look-alike lines.
Then files of every format with bytes and values changed: none may end in a traceback. After --minutes it stops
between two batches; with --state it goes on from where it stopped and counts all that were tried. Ends with 1 where
it falls short, with 3 where files are left to be tried.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from preparing.fuzz import Fuzzed, fuzz
from preparing.judge import judge
from preparing.pii_fixture import look_alikes, planted
from preparing.pii_measure import measure
from preparing.problems import plant

from sft.prepare.pii import PatternFinder

MIN_RECALL, MIN_PRECISION = 0.95, 0.9


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--state", type=Path)
    options = parser.parse_args()
    good = planted_problems(options.seed)
    state = Fuzzed.load(options.state, options.seed)
    fuzz(options.files, state, max_seconds=60 * options.minutes, save=options.state)
    print(
        f"fuzz: {state.files} files, {state.rows} rows, {state.kept} kept, {len(state.faults)} tracebacks, "
        f"{state.seconds:.0f} s; refused as a whole: {dict(state.refused)}"
    )
    for fault in state.faults[:5]:
        print(fault)
    if not good or state.faults:
        print("short of what is asked")
        return 1
    if state.files < options.files:
        print(f"good so far; {options.files - state.files} files are left")
        return 3
    print("good")
    return 0


def planted_problems(seed: int) -> bool:
    """Whether everything planted is found and the personal data by the patterns well enough; prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures, complaints = judge(plant(Path(folder), seed))
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    for complaint in complaints:
        print(f"  SHORT: {complaint}")
    found = measure(PatternFinder("US"), planted(seed), look_alikes(seed))
    kinds = ", ".join(f"{kind} {hit} of {number}" for kind, (hit, number) in found.per_kind.items())
    print(
        f"personal data: recall {found.recall:.3f}, precision {found.precision:.3f} ({kinds})",
        flush=True,
    )
    return not complaints and found.recall >= MIN_RECALL and found.precision >= MIN_PRECISION


if __name__ == "__main__":
    sys.exit(main())
