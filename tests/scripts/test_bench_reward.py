"""The benchmark of reward training: both sides on the tiny shape, and what its figures and verdicts say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts" / "prove"))

# The parts of a script: they lie beside it, not in a package that is installed.
import bench_reward  # noqa: E402
from bench import plan, reward_ours, reward_theirs  # noqa: E402
from bench.cases import Case, Result  # noqa: E402
from bench.model import write_model  # noqa: E402
from bench.pairs import accuracy, is_wanted, num_steps, pairs_of  # noqa: E402
from bench_reward import OURS, THEIRS  # noqa: E402

TINY = bench_reward.base_case(bench_reward.parse(["--quick"]))


def test_pairs_are_seeded_of_mixed_length_and_mostly_prefer_wanted_words() -> None:
    case = Case(pairs=400, prompt=32, shortest=16, completion=96)
    pairs = pairs_of(case, "train")
    assert pairs == pairs_of(case, "train")
    assert pairs != pairs_of(replace(case, seed=1), "train")
    assert not {str(pair) for pair in pairs} & {str(pair) for pair in pairs_of(case, "held-out")}
    lengths = [len(row) - case.prompt for pair in pairs for row in pair]
    assert min(lengths) >= 16
    assert max(lengths) <= 96
    assert sum(lengths) / len(lengths) == pytest.approx(56, abs=2)  # uniform from 16 to 96
    shares = [
        [sum(is_wanted(case, token) for token in row[32:-1]) / (len(row) - 33) for row in pair]
        for pair in pairs
    ]
    right = sum(chosen > rejected for chosen, rejected in shares) / len(pairs)
    assert 0.8 < right < 0.95  # raters who are careful and not always of one mind


def test_accuracy_and_steps_by_hand() -> None:
    # 3 of 4 pairs are right (a tie is not): 1.96 sqrt(0.75 * 0.25 / 4) = 0.4244
    assert accuracy([1.0, 2.0, 3.0, 0.0], [0.0, 1.0, 2.0, 0.0]) == (0.75, pytest.approx(0.4244, abs=1e-4))
    assert num_steps(Case(pairs=33, batch=16, epochs=3)) == 9  # 2 full batches and a last one of 1


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_both_sides_do_the_same_work_on_the_same_rows(tmp_path: Path, share: float) -> None:
    case = replace(TINY, share=share)
    model = write_model("tiny", tmp_path / "tiny")
    threads = torch.get_num_threads()
    try:
        ours, theirs = reward_ours.measure(case, model), reward_theirs.measure(case, model)
    finally:
        torch.set_num_threads(threads)
    assert ours.steps == theirs.steps == 6
    assert ours.tokens == theirs.tokens
    # rank 16 on q, k, v, o (32 x 32) and gate, up, down (32 x 64): 16 (4 x 64 + 3 x 96) = 8704 a layer; the head has 32
    assert ours.adapter_parameters == theirs.adapter_parameters == 8704 * (2 if share == 1.0 else 1)
    assert ours.trained_parameters == theirs.trained_parameters == ours.adapter_parameters + 32


def _measured(
    part: str, label: str, side: str, seconds: float, number: int = 0, right: float = 0.8, **changes: Any
) -> tuple[plan.Measurement, Result]:
    case = replace(TINY, share=1.0 if label == "all" else 0.5, seed=number)
    result = Result([seconds], [1], 100.0, {}, 6, 7, 8, curve=[(2, seconds, right, 0.03)])
    return plan.Measurement(part, label, side, case, number), replace(result, **changes)


def test_floors_decide_on_the_same_layers() -> None:
    results = [
        *(_measured("speed", "all", OURS, seconds, n) for n, seconds in enumerate((1.0, 2.0, 4.0))),
        *(_measured("speed", "all", THEIRS, seconds, n) for n, seconds in enumerate((2.0, 2.0, 2.0))),
        *(_measured("speed", "top", OURS, seconds, n) for n, seconds in enumerate((1.0, 1.0, 1.0))),
        *(_measured("speed", "top", THEIRS, seconds, n) for n, seconds in enumerate((1.5, 1.5, 1.5))),
    ]
    ratios = bench_reward.ratios_of(results, floors=True)
    # of the rounds' ratios 2, 1, 0.5 the median is 1; against their whole model ours on the top half is 2x
    assert [(r.label, r.theirs, r.speed) for r in ratios] == [
        ("all", "all", 1.0),
        ("top", "top", 1.5),
        ("top", "all", 2.0),
    ]
    assert [r.meets for r in ratios] == [True, False, True]
    rows = {(row.label, row.side): row for row in bench_reward.rows_of(results)}
    assert rows["top", OURS].pairs_per_s == 24.0  # 12 pairs, 2 epochs, 1 s
    assert rows["all", OURS].slowest_over_fastest == 4.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"steps": 5}, "5 optimizer steps; expected 6"), ({"adapter_parameters": 6}, "the other side has 7")],
)
def test_a_side_that_did_other_work_is_refused(changes: dict[str, Any], message: str) -> None:
    results = [_measured("speed", "all", OURS, 1.0), _measured("speed", "all", THEIRS, 1.0, **changes)]
    with pytest.raises(ValueError, match=message):
        bench_reward.require_same_work(results)


def test_accuracy_fails_only_where_ours_is_surely_lower() -> None:
    def found(ours: tuple[float, ...]) -> bench_reward.Accuracy | None:
        sides = ((OURS, ours), (THEIRS, (0.80, 0.82, 0.81)))
        return bench_reward.accuracy_of(
            [
                _measured("accuracy", "top", side, 1.0, n, right)
                for side, v in sides
                for n, right in enumerate(v)
            ]
        )

    equal, worse = found((0.79, 0.83, 0.80)), found((0.70, 0.72, 0.71))
    assert equal is not None
    assert worse is not None
    assert equal.equal
    assert not worse.equal
    assert worse.difference == (pytest.approx(-0.1), pytest.approx(0.0, abs=1e-9))


def test_it_runs_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process for each side is started, alternating; a budget that is spent is said."""
    arguments = ["--quick", "--parts", "accuracy", "--results", str(tmp_path / "results")]
    assert bench_reward.main([*arguments, "--budget-s", "0"]) == 1
    assert "run again" in capsys.readouterr().err
    sides = [m.side for m in bench_reward.make_plan(TINY, ["speed", "accuracy"], 1)]
    assert sides == [OURS, THEIRS] * 3


def test_a_quick_run_writes_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in this process: a process for each measurement costs its imports and nothing else."""

    def here(measurement: plan.Measurement, python: str, model: Path, results: Path) -> None:
        assert python == sys.executable
        side = {OURS: reward_ours, THEIRS: reward_theirs}[measurement.side]
        plan.save(measurement.case, results / f"case-{measurement.file}")
        plan.save(side.measure(measurement.case, model), results / measurement.file)

    monkeypatch.setattr(plan, "run_one", here)
    threads, markdown = torch.get_num_threads(), tmp_path / "benchmarks.md"
    arguments = ["--quick", "--results", str(tmp_path / "results"), "--markdown", str(markdown)]
    try:
        assert bench_reward.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    text = markdown.read_text()
    assert text.startswith("# Benchmarks\n\n## The reward model: tiny on a CPU\n")
    assert "| top half | top half |" in text
    assert "Held-out accuracy on a planted preference (12 pairs" in text
