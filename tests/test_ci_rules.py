"""The rules of tests/conftest.py, tried on a folder of their own: what CI must not let pass in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_skips(): pytest.skip("no such machine")

def test_uses_real_data(shared_data): assert shared_data.is_dir()

@pytest.mark.xfail(reason="known")
def test_known_failure(): assert False

def test_passes(): pass
"""


@pytest.mark.parametrize(
    ("ci", "outcome"),
    [("true", "1 failed, 1 passed, 1 xfailed, 1 error"), ("", "1 passed, 2 skipped, 1 xfailed")],
)
def test_a_skip_and_missing_real_data_fail_in_ci_only(tmp_path: Path, ci: str, outcome: str) -> None:
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = {**os.environ, "CI": ci, "RLHF_SHARED_DATA": str(tmp_path / "nowhere")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert outcome in done.stdout.splitlines()[-1], done.stdout
    assert done.returncode == (1 if ci else 0)
    assert "no such machine" in done.stdout
    assert "real data is not present at" in done.stdout
