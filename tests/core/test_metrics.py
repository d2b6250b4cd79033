"""metrics.jsonl survives crashes; progress is readable in a log file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rlhf.core.metrics as metrics_module
from rlhf.core.errors import DataError
from rlhf.core.metrics import MetricsLog, progress, read_metrics


def test_rows_come_back_with_numbers_of_any_kind(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(1, loss=np.float32(0.5), tokens=12, bad=float("nan"))
    log.log(2, loss=0.25)
    assert read_metrics(log.path) == [
        {"step": 1, "loss": 0.5, "tokens": 12, "bad": None},
        {"step": 2, "loss": 0.25},
    ]


def test_a_row_cut_off_by_a_crash_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1]
    MetricsLog(path).log(2, loss=0.5)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_resuming_truncates_and_never_repeats_a_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.truncate_after(3)  # nothing there yet
    for step in range(1, 6):
        log.log(step, loss=step)
    log.truncate_after(3)
    log.log(4, loss=40)
    assert [(row["step"], row["loss"]) for row in read_metrics(log.path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


@pytest.mark.parametrize("line", ["{\n", "[1]\n", '{"loss": 1}\n', '{"step": "x"}\n'])
def test_a_broken_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line)
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: "):
        read_metrics(path)
    with pytest.raises(DataError, match="no such file"):
        read_metrics(tmp_path / "none.jsonl")


def test_plain_progress_says_stage_steps_time_left_and_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 6.0, 7.0, 10.0])  # start, three advances, end
    monkeypatch.setattr(metrics_module.time, "monotonic", lambda: next(clock))
    with progress("training", 6, stage="sft") as tracker:
        tracker.advance(loss=3.0)
        tracker.advance(2, loss=1.23456)
        tracker.advance(3)
    # after 6 s 3 of 6 steps are done: 6 s are left; the steps at 1 s and 7 s are too soon for a line
    assert capsys.readouterr().err.splitlines() == [
        "sft: training  3/6  0:06 left  loss 1.235",
        "sft: training  6 done in 0:10  loss 1.235",
    ]


def test_plain_progress_tells_when_it_was_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    def train() -> None:
        with progress("training", 4) as tracker:
            tracker.advance()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train()
    assert capsys.readouterr().err == "training  1/4 stopped in 0:00\n"


def test_bars_nest_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(metrics_module.sys.stderr, "isatty", lambda: True, raising=False)
    with progress("outer", 2, stage="demo") as outer:
        with progress("inner", None) as inner:
            inner.advance(5, loss=0.5)
        outer.advance()
    assert "demo: outer" in capsys.readouterr().err
    assert metrics_module._live is None
