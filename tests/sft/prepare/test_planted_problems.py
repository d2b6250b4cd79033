"""The planted problems and the fuzzing of scripts/prove/prepare_fuzz.py, in a small size."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts" / "prove"))

from preparing.fuzz import Fuzzed, fuzz
from preparing.judge import judge
from preparing.problems import plant


def test_planted_problems_are_found_and_good_rows_kept(tmp_path: Path) -> None:
    figures, complaints = judge(plant(tmp_path, seed=3, long_line=9 << 20, bomb=24 << 20))
    assert complaints == []
    assert figures["good rows kept"] == "30 of 30"


def test_the_judge_sees_what_it_must_see(tmp_path: Path) -> None:
    found = plant(tmp_path, seed=3, long_line=9 << 20, bomb=24 << 20)
    found.good["more"] = ["a row that was never written"]
    found.faults.append(("table.csv", "a reason that nobody gave"))
    found.leaked.append("marker0brokenjsonl")
    found.copies.append("duplicates.jsonl:near duplicate")
    assert len(judge(found)[1]) == 4


def test_broken_files_end_in_reasons() -> None:
    result = Fuzzed(seed=5)
    fuzz(150, result, batch=150)
    assert result.faults == []
    assert result.kept > 20
    assert result.rows > 300
