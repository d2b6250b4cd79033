"""Processor, memory and disk, from the system's own files; what a container may use counts, not what the host has."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path

from rlhf.core.machine import available_memory
from rlhf.doctor.check import Check
from rlhf.doctor.config import DoctorConfig

GROUP = "Machine"
GB = 1e9
TINY_DISK_GB = 0.2  # a checkpoint of the smallest model, or a store with its write-ahead log


def machine_checks(config: DoctorConfig, workspace: Path) -> list[Check]:
    """Processor, memory, and the disks of the workspace and of temporary files."""
    return [
        _processor(),
        _memory(config.min_memory_gb),
        _disk("workspace", workspace, config.min_disk_gb),
        _disk("temporary files", Path(tempfile.gettempdir()), config.min_disk_gb),
    ]


def _processor() -> Check:
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    cores = f"{usable} of {present} cores" if usable < present else f"{present} cores"
    found = f"{platform.machine()}, {cores}"
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    found += f", OMP_NUM_THREADS={threads}" if threads else ""
    allowed = _cgroup_cpus()
    if allowed is None or allowed >= usable:
        return Check(GROUP, "processor", "ok", found)
    found += f", limited to the time of {allowed:g}"
    if threads.isdigit() and int(threads) <= max(1, allowed):
        return Check(GROUP, "processor", "ok", found)
    advice = f"torch would start {usable} threads and be slowed down: OMP_NUM_THREADS={max(1, int(allowed))}"
    return Check(GROUP, "processor", "note", found, advice)


def _cgroup_cpus(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """How many cores' time a container may use; None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory(least_gb: float) -> Check:
    found = available_memory()
    if found is None:
        return Check(GROUP, "memory", "note", "unknown", "no /proc/meminfo here; see that there is enough")
    available, total = found
    text = f"{available / GB:.1f} GB available of {total / GB:.1f} GB"
    if available < least_gb * GB:
        advice = "end other programs, or see with `rlhf plan` what still fits"
        return Check(GROUP, "memory", "note", text, advice)
    return Check(GROUP, "memory", "ok", text)


def _disk(name: str, folder: Path, least_gb: float) -> Check:
    """Free space, and whether one may write, in the folder or in the nearest one above it that is there."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    there = str(folder) if place == folder else f"{folder} (is made when it is needed)"
    if not place.is_dir():
        return Check(
            GROUP, name, "broken", f"{place} is a file; expected a folder", "choose another --workspace"
        )
    free = shutil.disk_usage(place).free
    found = f"{there}: {free / GB:.1f} GB free"
    if not os.access(place, os.W_OK | os.X_OK):
        return Check(
            GROUP, name, "broken", f"{place} may not be written to", "choose another, or change its rights"
        )
    if free < TINY_DISK_GB * GB:
        return Check(GROUP, name, "broken", found, "make room: runs and checkpoints have to be written")
    if free < least_gb * GB:
        return Check(GROUP, name, "note", found, "little room for checkpoints and models")
    return Check(GROUP, name, "ok", found)
