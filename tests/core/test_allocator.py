"""Freed memory is kept for the next tensor, and given back where that is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from rlhf.core.allocator import keep_freed_memory, release_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

def tensors():
    for _ in range(10):
        alive = [torch.ones(1 << 20) for _ in range(10)]  # 4 MiB each
        del alive

if sys.argv[1] == "keep":
    assert keep_freed_memory()
tensors()
before = faults()
tensors()
print(faults() - before)
large = [torch.ones(1 << 20) for _ in range(20)]
small = [torch.ones(1) for _ in range(20)]
before = resident_kib()
del large
release_freed_memory(torch.device("cpu"))
print(before - resident_kib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's thresholds")
def test_kept_memory_costs_no_page_faults_and_can_be_given_back() -> None:
    found = {}
    for mode in ("plain", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
        )
        found[mode] = [int(line) for line in done.stdout.split()]
    faults, given_back_kib = found["keep"]
    # 100 tensors of 1 024 pages each; a handful of faults is the interpreter's own
    assert faults < 1000
    assert found["plain"][0] > 10 * faults
    assert given_back_kib > 70 * 1024  # of 80 MiB
