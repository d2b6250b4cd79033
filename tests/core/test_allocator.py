"""Freed memory is kept for the next tensor, and given back where that is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from rlhf.core.allocator import keep_freed_memory, release_freed_memory

def resident_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

if sys.argv[1] == "keep":
    assert keep_freed_memory()
large = [torch.ones(1 << 20) for _ in range(20)]  # 4 MiB each
small = [torch.ones(1) for _ in range(20)]
full = resident_kib()
del large
print(full - resident_kib())
release_freed_memory(torch.device("cpu"))
print(full - resident_kib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's thresholds")
def test_freed_memory_is_kept_and_given_back_when_asked() -> None:
    gone_kib = {}
    for mode in ("plain", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
        )
        gone_kib[mode] = [int(line) for line in done.stdout.split()]
    # Resident memory says it on every kernel; page faults are not counted on all of them.
    assert gone_kib["plain"][0] > 70 * 1024  # of 80 MiB
    assert gone_kib["keep"][0] < 8 * 1024
    assert gone_kib["keep"][1] > 70 * 1024
