"""The peer's environment: a venv of its own with trl 1.12.0 and the versions of everything else that we pin."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

PEER = "trl==1.12.0"
# What decides speed has to be the same build on both sides; the rest of the peer's needs pip resolves itself.
SAME = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "tokenizers", "safetensors")


def pinned(lock: Path) -> list[str]:
    """The lines of the lock file that the peer shares. Raises ValueError where one is missing."""
    lines = dict(line.split("==") for line in lock.read_text(encoding="utf-8").split() if "==" in line)
    missing = [name for name in SAME if name not in lines]
    if missing:
        raise ValueError(f"{lock} pins no {', '.join(missing)}")
    return [f"{name}=={lines[name]}" for name in SAME]


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rlhf-loop" / "bench-peer"


def make_environment(folder: Path, lock: Path) -> Path:
    """The environment's Python; the environment is made or brought to the pinned versions first."""
    python = folder / "bin" / "python"
    wanted = [PEER, *pinned(lock)]
    if python.exists() and _has(python, wanted):
        return python
    print(f"making the peer's environment in {folder}", flush=True)
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    # torch first and alone: whichever build the machine offers for the version is kept by what follows.
    subprocess.run([*pip, wanted[1]], check=True)
    subprocess.run([*pip, *wanted], check=True)
    return python


def _has(python: Path, wanted: list[str]) -> bool:
    program = (
        "import sys, importlib.metadata as m\n"
        "for w in sys.argv[1:]:\n"
        "    name, version = w.split('==')\n"
        "    assert m.version(name).split('+')[0] == version\n"
    )
    done = subprocess.run([str(python), "-c", program, *wanted], capture_output=True)
    return done.returncode == 0


def versions(python: Path | str) -> dict[str, str]:
    """What is really installed beside a Python."""
    program = "import sys, importlib.metadata as m\nfor n in sys.argv[1:]: print(n, m.version(n))"
    names = ["torch", "transformers", "peft", "accelerate", "trl"]
    done = subprocess.run([str(python), "-c", program, *names], capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())
