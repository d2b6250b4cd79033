"""Memory that this process may use, from the system's own files: a container's limit counts, not the host's."""

from __future__ import annotations

from pathlib import Path


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> tuple[int, int] | None:
    """(available, total) bytes: the machine's, or the container's where that is less. None where unknown."""
    try:
        fields = {
            name: int(rest.split()[0]) * 1024
            for name, _, rest in (line.partition(":") for line in meminfo.read_text().splitlines())
            if rest.strip().endswith("kB")
        }
        available, total = fields["MemAvailable"], fields["MemTotal"]
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return available, total
    # What is only cached of files is given back when it is needed.
    used -= int(statistics.get("inactive_file", 0))
    return min(available, max(0, limit - used)), min(total, limit)
