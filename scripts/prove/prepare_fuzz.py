"""Does `rlhf prepare` find what is planted, and survive whatever a file holds?

    python scripts/prove/prepare_fuzz.py [--files 100000] [--seed 0]

First the planted problems: duplicates, near-duplicates and near prompts, rows that leak an evaluation file, 200
personal items, NaN, broken UTF-8, a byte-order mark, a line of 30 MB, JSON 2,000 deep, duplicate ids, a gzip bomb,
a torn archive, lone surrogates, NUL; in JSONL, JSON, CSV and Parquet. Every good row has to be kept and every fault
has to be in quarantine with its reason. Then recall and precision on the planted items and 2,000 look-alike lines.
Then files of every format with bytes and values changed: none may end in a traceback. Ends with 1 where it falls
short.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from preparing.fuzz import fuzz
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
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        figures, complaints = judge(plant(Path(folder), options.seed))
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    for complaint in complaints:
        print(f"  SHORT: {complaint}")
        good = False
    found = measure(PatternFinder("US"), planted(options.seed), look_alikes(options.seed))
    kinds = ", ".join(f"{kind} {hit} of {number}" for kind, (hit, number) in found.per_kind.items())
    print(f"personal data: recall {found.recall:.3f}, precision {found.precision:.3f} ({kinds})")
    good = good and found.recall >= MIN_RECALL and found.precision >= MIN_PRECISION
    began = time.perf_counter()
    result = fuzz(options.files, options.seed)
    print(
        f"fuzz: {result.files} files, {result.rows} rows, {result.kept} kept, {len(result.faults)} tracebacks, "
        f"{time.perf_counter() - began:.0f} s"
    )
    for fault in result.faults[:5]:
        print(fault)
    good = good and not result.faults
    print("good" if good else "short of what is asked")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
