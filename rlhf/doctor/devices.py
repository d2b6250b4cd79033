"""torch and the devices that it sees, asked in a process of its own: a broken library cannot take doctor with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlhf.doctor.check import Check

GROUP = "torch and devices"
PROGRAM = """
import json, torch
gpus = []
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        gpus.append({"name": torch.cuda.get_device_name(i), "free": free, "total": total,
                     "capability": list(torch.cuda.get_device_capability(i)),
                     "archs": torch.cuda.get_arch_list()})
sum_ = float(torch.ones(2, 2).matmul(torch.ones(2, 2)).sum())
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(),
                  "gpus": gpus, "works": sum_ == 8.0, "capability": torch.backends.cpu.get_cpu_capability()}))
"""
GB = 1e9


def device_checks(timeout_s: float, program: str = PROGRAM) -> list[Check]:
    """One line for torch, one for each GPU, and one for a GPU that torch does not see."""
    found, problem = _ask(program, timeout_s)
    if found is None:
        advice = "pip install --force-reinstall torch, of the build that pytorch.org/get-started names for this machine"
        return [Check(GROUP, "torch", "broken", problem, advice)]
    build = f"CUDA {found['cuda']}" if found["cuda"] else "CPU"
    text = f"{found['version']} ({build} build), {found['threads']} threads, {found['capability']}"
    if not found["works"]:
        return [Check(GROUP, "torch", "broken", f"{text}: multiplies wrongly", "reinstall torch")]
    checks = [Check(GROUP, "torch", "ok", text)]
    checks += [_gpu(i, gpu) for i, gpu in enumerate(found["gpus"])]
    if not found["gpus"]:
        checks.append(_no_gpu(found))
    return checks


def _ask(program: str, timeout_s: float) -> tuple[dict[str, Any] | None, str]:
    """(what the program printed, "") or (None, what is wrong in one line)."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"did not load within {timeout_s:g} s"
    if done.returncode < 0:
        return None, f"ends the process by signal {-done.returncode} when it is loaded"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return None, f"cannot be loaded: {lines[-1].strip()[:300] if lines else 'no message'}"
    return json.loads(done.stdout.splitlines()[-1]), ""


def _gpu(number: int, gpu: dict[str, Any]) -> Check:
    major, minor = gpu["capability"]
    memory = f"{gpu['free'] / GB:.1f} GB free of {gpu['total'] / GB:.1f} GB"
    text = f"{gpu['name']}, {memory}, compute capability {major}.{minor}"
    oldest = min((int(arch[3:].rstrip("af")) for arch in gpu["archs"] if arch.startswith("sm_")), default=0)
    if oldest > 10 * major + minor:
        advice = "use --model.device cpu, or a build of torch that still knows this GPU"
        return Check(
            GROUP, f"cuda:{number}", "note", f"{text}, older than this build of torch supports", advice
        )
    return Check(GROUP, f"cuda:{number}", "ok", text)


def _no_gpu(found: dict[str, Any]) -> Check:
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        if found["cuda"] is None:
            advice = "install a CUDA build of torch (see 'CPU or CUDA' in the README)"
            return Check(
                GROUP, "GPU", "note", "the machine has one, but this is a CPU build of torch", advice
            )
        advice = f"see that nvidia-smi works and that its driver is new enough for CUDA {found['cuda']}"
        return Check(GROUP, "GPU", "note", "the machine has one, but torch does not see it", advice)
    return Check(GROUP, "GPU", "absent", "none: all stages run on the CPU")
