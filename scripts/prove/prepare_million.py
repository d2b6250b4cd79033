"""How long `rlhf prepare` takes for a million rows, and how much memory it holds at most.

    python scripts/prove/prepare_million.py [--rows 1000000] [--max-mib 2000] [--seed 0]

Rows are made up: sentences of a vocabulary with Zipf's frequencies, 60 to 600 characters; 10 % are exact and 5 %
near-copies of earlier ones (a word or two changed), 2 % hold an email address or a phone number. Prints rows, seconds
and peak memory; of several --rows the line through the peaks, and where it is at a million. Ends with 1 where more
than --max-mib MiB were held (or would be), or copies were left.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np


def write_rows(path: Path, number: int, seed: int) -> tuple[int, int]:
    """Write the rows; returns how many of them are exact and near-copies."""
    rng = random.Random(seed)
    vocabulary = [
        "".join(rng.choice("etaoinshrdlucmfwypvbgk") for _ in range(rng.randint(2, 10)))
        for _ in range(30_000)
    ]
    weights = [1 / (rank + 10) for rank in range(len(vocabulary))]
    pool = rng.choices(vocabulary, weights, k=2_000_000)  # drawing once is faster than weighing each word
    recent: list[tuple[list[str], list[str]]] = []
    exact = near = 0

    def words(low: int, high: int) -> list[str]:
        start = rng.randrange(len(pool) - high)
        found = pool[start : start + rng.randint(low, high)]
        rng.shuffle(found)
        return found

    with open(path, "w", encoding="utf-8") as file:
        for _ in range(number):
            draw = rng.random()
            if draw < 0.15 and recent:
                prompt, answer = rng.choice(recent)
                if draw < 0.05:
                    answer = list(answer)
                    answer[rng.randrange(len(answer))] = rng.choice(vocabulary)
                    near += 1
                else:
                    exact += 1
            else:
                prompt, answer = words(5, 15), words(20, 80)
                if draw > 0.98:
                    answer = [
                        *answer,
                        f"write to {rng.choice(vocabulary)}@example.com or call +1 202-555-01{rng.randint(10, 99)}",
                    ]
                if len(recent) < 50_000:
                    recent.append((prompt, answer))
                else:
                    recent[rng.randrange(50_000)] = (prompt, answer)
            file.write(json.dumps({"prompt": " ".join(prompt), "completion": " ".join(answer)}) + "\n")
    return exact, near


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--max-mib", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = [prepare(rows, options.seed) for rows in options.rows]
    if None in found:
        return 1
    measured = [one for one in found if one is not None]
    if len(measured) > 1:
        # a straight line through the curve: what a run holds whatever comes, and what a row adds
        each, fixed = np.polyfit(options.rows, [one.peak_mib for one in measured], 1)
        million = fixed + 1e6 * each
        print(
            f"memory: {fixed:.0f} MiB and {each * 2**20:.0f} bytes a row; a million rows would hold {million:.0f} MiB"
        )
        good = million <= options.max_mib
    else:
        good = True
    good = good and all(one.peak_mib <= options.max_mib and one.share_found >= 0.97 for one in measured)
    print("good" if good else "short of what is asked")
    return 0 if good else 1


class Measured(NamedTuple):
    """Of one run: peak memory, and the share of the planted copies that was taken out."""

    peak_mib: float
    share_found: float


def prepare(number: int, seed: int) -> Measured | None:
    """Write so many rows and put them through the command; prints the figures. None where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "rows.jsonl", Path(folder) / "out"
        exact, near = write_rows(data, number, seed)
        size = data.stat().st_size / 2**20
        print(f"{number} rows, {size:.0f} MiB, {exact} exact and {near} near-copies among them", flush=True)
        command = [sys.executable, "-m", "rlhf.cli", "prepare", "--data", str(data), "--out", str(out)]
        began = time.perf_counter()
        done = subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            print(f"prepare ended with {done.returncode}")
            return None
        report = json.loads((out / "report.json").read_text())
        peak = json.loads((out / "manifest.json").read_text())["extra"]["peak_memory_mib"]
    reasons = report["rows"]["reasons"]
    found = reasons.get("exact duplicate", 0) + reasons.get("near duplicate", 0)
    each = 1e6 * seconds / number
    print(
        f"{seconds:.0f} s, {each:.0f} us a row, peak {peak} MiB; {found} copies found: {reasons}", flush=True
    )
    return Measured(peak, found / (exact + near))


if __name__ == "__main__":
    sys.exit(main())
