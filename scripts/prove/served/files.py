"""The doors for files, as commands: seconds with the start of the process, and the process's peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from feedback_app.store.engine import Store
from served.client import PROJECT
from served.figures import Verdicts
from served.size import fill

SMALL = 5_000
EXPORTED, EXPORT_S = 50_000, 3.0
IMPORTED, IMPORT_S = 100_000, 30.0
FLAT_MB = 60.0


def measure(urls: tuple[str, str, str], verdicts: Verdicts, database: str, folder: Path) -> None:
    """Export a small and a large store, import a large file into the third."""
    print(f"files, {database}", flush=True)
    peaks = []
    for url, count in ((urls[0], SMALL), (urls[1], EXPORTED)):
        with Store.open(url) as store:
            fill(store, count)
        out = folder / f"{database}-{count}"
        seconds, peak = _command("export", "--project", PROJECT, "--db", url, "--out", str(out))
        peaks.append(peak)
        verdicts.note(f"export of {count} ratings: {seconds:.1f} s, peak {peak:.0f} MB")
    verdicts.at_most(f"{database}: export of {EXPORTED} ratings", seconds, EXPORT_S, "s")
    verdicts.at_most(f"{database}: memory of ten times the ratings", peaks[1] - peaks[0], FLAT_MB, "MB more")
    file = folder / f"{database}.jsonl"
    with file.open("w", encoding="utf-8") as rows:
        for i in range(IMPORTED):
            row = {
                "prompt": f"Question {i}?",
                "chosen": f"a good answer {i}",
                "rejected": f"a poor answer {i}",
            }
            rows.write(json.dumps(row) + "\n")
    seconds, peak = _command("import", str(file), "--project", "imported", "--db", urls[2])
    verdicts.at_most(f"{database}: import of {IMPORTED} rows", seconds, IMPORT_S, "s")
    verdicts.note(f"peak {peak:.0f} MB")


def _command(*words: str) -> tuple[float, float]:
    """(seconds, peak MB) of `rlhf WORDS`."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "rlhf.cli", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"rlhf {words[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - started, usage.ru_maxrss / 1024
