"""The rules of tests/conftest.py, tried on a folder of their own: what CI must not let pass in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

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
    [
        ("true", {"failed": 1, "errors": 1, "passed": 1, "xfailed": 1}),
        ("", {"skipped": 2, "passed": 1, "xfailed": 1}),
    ],
)
def test_a_skip_and_missing_real_data_fail_in_ci_only(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: dict[str, int]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("RLHF_SHARED_DATA", str(pytester.path / "nowhere"))
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(TESTS)
    done = pytester.runpytest_inprocess("-rs")
    assert done.parseoutcomes() == outcome
    for reason in ("no such machine", "real data is not present at"):
        assert reason in done.stdout.str()
