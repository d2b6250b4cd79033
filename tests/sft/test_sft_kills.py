"""A quick pass of scripts/prove/kills_sft.py: SIGKILL at random moments and inside saves, resume, compare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prove" / "kills_sft.py"


@pytest.mark.long
def test_a_killed_supervised_run_loses_nothing() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--stops", "0", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kills at a random moment\n1 kills inside a save\n" in done.stdout
    assert ", 0 failures, " in done.stdout
