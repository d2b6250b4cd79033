"""A quick pass of scripts/prove/kills.py: SIGKILL at random moments and inside saves, then resume, then compare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prove" / "kills.py"


@pytest.mark.slow
def test_four_kills_lose_nothing() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "4", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills at a random moment\n2 kills inside a save\n" in done.stdout
    assert ", 0 failures, " in done.stdout
