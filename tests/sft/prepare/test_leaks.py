"""Leaks by 13 words in a row, and by prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.errors import DataError
from sft.prepare.leaks import NgramIndex

KNOWN = " ".join(f"word{i}" for i in range(20))


def test_thirteen_words_leak_and_twelve_do_not() -> None:
    index = NgramIndex([KNOWN])
    index.look(0, "before " + " ".join(f"word{i}" for i in range(3, 16)) + " after")
    index.look(1, "before " + " ".join(f"word{i}" for i in range(3, 15)) + " after")
    index.look(
        2, "before " + ", ".join(f"WORD{i}" for i in range(3, 16)) + "!"
    )  # case and punctuation do not count
    index.look(3, "")
    assert index.leaking() == {0, 2}


def test_a_run_that_many_rows_hold_is_a_template() -> None:
    index = NgramIndex([KNOWN])
    for row in range(11):
        index.look(row, KNOWN)
    assert index.leaking() == set()
    assert index.num_templates() == 8  # 20 words hold 8 runs of 13
    few = NgramIndex([KNOWN])
    for row in range(10):
        few.look(row, KNOWN)
    assert few.leaking() == set(range(10))


def test_short_evaluation_texts_have_no_runs() -> None:
    index = NgramIndex(["too short to hold any run"])
    index.look(0, "too short to hold any run")
    assert index.leaking() == set()


def test_rows_that_leak_an_evaluation_file_are_taken_out(prepare: Callable[..., Any], tmp_path: Path) -> None:
    asked = "how do the tides of the northern sea change from one month to the next"
    evaluation = [{"prompt": asked, "completion": KNOWN}, {"prompt": "Short?", "completion": "Yes."}]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluation))
    rows = [
        {"prompt": "Short?", "completion": "Yes."},
        {"prompt": "SHORT? ", "completion": "no"},  # the same prompt, as texts are compared
        {"prompt": f"{asked}?", "completion": "by the moon"},
        {"prompt": "other", "completion": f"so {KNOWN} it is"},
        {"prompt": "clean", "completion": "kept"},
    ]
    check = str(tmp_path / "eval.jsonl")
    found = prepare(rows, check=(check,), near_duplicates=0.8)
    assert found.answers == ["kept"]
    assert found.report["leaks"] == {
        check: {"same row": 1, "same prompt": 1, "nearly the same prompt": 1, "13 words in a row": 1}
    }
    assert [row["line"] for row in found.quarantine] == [1, 2, 3, 4]
    assert found.quarantine[2]["reason"] == f"leaks an evaluation file ({check}, nearly the same prompt)"
    assert "Leaks of evaluation files" in (found.out / "report.html").read_text()


def test_a_broken_evaluation_file_is_an_error(prepare: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"prompt": 1}\n')
    with pytest.raises(DataError, match=r"eval\.jsonl:1: 'prompt' is 1"):
        prepare([{"prompt": "q", "completion": "a"}], check=(str(tmp_path / "eval.jsonl"),))
    assert not (tmp_path / "out").exists()
