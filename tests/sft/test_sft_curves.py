"""What learning curves show, on curves made by hand, and the report that says it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.metrics import read_metrics
from rlhf.core.run import Launch
from sft.config import SFTConfig
from sft.curves import Reading, judge, read_curves
from sft.report import histogram
from sft.train import run

STEPS = [10, 20, 30, 40]


def kinds(training: list[float], validation: list[float], base: float = 3.0) -> list[str]:
    return [
        verdict.kind for verdict in judge(Reading(base, STEPS[: len(training)], training, validation), base)
    ]


def test_the_curves_of_a_run() -> None:
    rows = [
        {"step": 0, "validation_loss": 3.0},
        {"step": 1, "loss": 2.8},
        {"step": 2, "loss": 2.6},
        {"step": 2, "validation_loss": 2.5},
        {"step": 3, "loss": 2.0},
        {"step": 3, "validation_loss": 2.4},
    ]
    # mean of 2.8 and 2.6 before the validation of step 2, 2.0 alone before that of step 3
    assert read_curves(rows) == Reading(3.0, [2, 3], [pytest.approx(2.7), 2.0], [2.5, 2.4])


def test_steps_without_a_loss_leave_a_gap() -> None:
    """A private step may draw no demonstration; between two validations there may be no other."""
    rows = [
        {"step": 0, "validation_loss": 3.0},
        {"step": 1, "batch": 0.0},
        {"step": 1, "validation_loss": 3.1},
        {"step": 2, "loss": 2.0},
        {"step": 2, "validation_loss": 3.2},
    ]
    found = read_curves(rows)
    assert math.isnan(found.training[0])
    assert found.training[1:] == [2.0]
    assert [verdict.kind for verdict in judge(found, 3.0)] == ["nothing gained"]
    alone = read_curves(rows[:3])
    assert [verdict.kind for verdict in judge(alone, 3.0)] == ["nothing gained"]
    assert [verdict.kind for verdict in judge(alone, 4.0)] == ["too few validations"]


@pytest.mark.parametrize(
    ("training", "validation", "expected"),
    [
        # gain 1.0; after step 20 validation rises by 0.2 (more than 0.05) while training falls
        ([2.6, 2.1, 1.9, 1.7], [2.4, 2.0, 2.1, 2.2], ["overfitting"]),
        # it rises by 0.02 only: less than 5 % of the gain
        ([2.6, 2.1, 2.0, 1.95], [2.4, 2.0, 2.01, 2.02], ["levelled off"]),
        # it rises, but so does training: no overfitting, the run got worse
        ([2.6, 2.1, 2.3, 2.5], [2.4, 2.0, 2.2, 2.4], ["levelled off"]),
        # at step 30 (three quarters) 2.3, at the end 2.1: 0.2 of 0.9 came late
        ([2.9, 2.7, 2.5, 2.3], [2.7, 2.5, 2.3, 2.1], ["underfitting"]),
        # at step 30 2.05, at the end 2.0: 0.05 of 1.0
        ([2.6, 2.2, 2.1, 2.05], [2.4, 2.1, 2.05, 2.0], ["levelled off"]),
        # still falling, and yet 0.6 above training, more than a quarter of 2.1
        ([2.5, 2.1, 1.8, 1.5], [2.7, 2.5, 2.3, 2.1], ["overfitting", "underfitting"]),
        ([2.0, 1.5, 1.0, 0.5], [3.1, 3.2, 3.3, 3.4], ["nothing gained"]),
        ([2.6, 2.4], [2.6, 2.5], ["too few validations"]),
        ([], [], ["too few validations"]),
    ],
)
def test_verdicts(training: list[float], validation: list[float], expected: list[str]) -> None:
    assert kinds(training, validation) == expected


def test_a_verdict_names_the_numbers() -> None:
    (verdict,) = judge(Reading(3.0, STEPS, [2.6, 2.1, 1.9, 1.7], [2.4, 2.0, 2.1, 2.2]), 3.0)
    assert "after step 20 validation loss rose from 2.000 to 2.200" in verdict.text
    assert "training loss fell from 2.100 to 1.700" in verdict.text
    (lost,) = judge(Reading(3.0, STEPS, [2.0, 1.5, 1.0, 0.5], [3.1, 3.2, 3.3, 3.4]), 3.0)
    assert "while the training loss fell" in lost.text
    # virtual tokens begin above the base: what counts is the base, not the first validation
    (lost,) = judge(Reading(9.0, STEPS, [8.0, 7.0, 6.0, 5.0], [8.0, 7.0, 6.0, 5.0]), 3.0)
    assert lost.kind == "nothing gained"


def test_histogram() -> None:
    # the longest, 23, in 12 bins: 2 wide
    assert histogram([1, 2, 3, 23]) == {"0-1": 1, "2-3": 2} | {
        f"{i}-{i + 1}": int(i == 22) for i in range(4, 24, 2)
    }


def test_the_report_of_a_run(
    tmp_path: Path,
    sft_options: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    pictures: None,
) -> None:
    """Counts, lengths, blocks, answers, and what the curves of this run show."""
    options = sft_options(num_epochs=4, num_samples=2, packing=True, batch_size=1, micro_batch_size=1)
    config = SFTConfig(**options, sample_tokens=8)
    out = tmp_path / "runs" / "one"
    run(config, Launch(workspace=tmp_path, db="sqlite://", out=out))
    report = json.loads((out / "report.json").read_text())
    (task,) = report["tasks"]
    assert (task["training"] + task["validation"], task["weight"]) == (24, None)
    assert sum(task["histogram"].values()) == task["training"]
    assert 0.5 < report["packing"]["filled"] <= 1.0
    assert len(report["samples"]) == 2
    assert all(row["prompt"] and set(row["wanted"]) <= set("abcdefghijkl") for row in report["samples"])
    assert any(row["before"] != row["after"] for row in report["samples"])
    page = (out / "report.html").read_text()
    for verdict in report["verdicts"]:
        assert verdict["text"] in page
    curves = read_curves(read_metrics(out / "metrics.jsonl"))
    expected = judge(curves, report["metrics"]["validation_loss_before"])
    assert report["verdicts"] == [asdict(verdict) for verdict in expected]
    assert "Answers before and after" in page
    assert (out / "sft.png").read_bytes().startswith(b"\x89PNG")
    assert "could not be drawn" not in capsys.readouterr().out
