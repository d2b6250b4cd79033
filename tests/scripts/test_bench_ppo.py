"""The benchmark's parts that need no peer: what it imposes on both sides, how it counts, and when it says no."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessorList

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts" / "prove"))

# The parts of a script: they lie beside it, not in a package that is installed.
import bench_ppo  # noqa: E402
from bench import ours, peer, plan, report, table  # noqa: E402
from bench.cases import END, PAD, SHAPES, Case, Result  # noqa: E402
from bench.imposed import ImposedLengths, TokenShare  # noqa: E402
from bench.measure import PeakMemory  # noqa: E402
from bench.model import write_model  # noqa: E402

from rlhf.core import sampler  # noqa: E402
from rlhf.ppo import rollout  # noqa: E402

TINY = Case(shape="tiny", batch=4, prompt=4, completion=8, micro_rows=2, threads=1, eval_prompts=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("tiny", tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(autouse=True)
def unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ours.measure` has a process of its own in the benchmark; here what it wraps is put back."""
    for owner, name in [
        (sampler, "uniforms"),
        (sampler, "choose"),
        (rollout, "sample"),
        (torch.Tensor, "backward"),
    ]:
        monkeypatch.setattr(owner, name, getattr(owner, name))


# ---- what is measured ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "millions"),
    # Llama: 2 V H + L (4 H^2 + 3 H I + 2 H) + H. Qwen2.5's own model cards say 0.49 and 1.54 billion.
    [("llama-14m", 13.768), ("qwen2.5-0.5b", 494.0), ("qwen2.5-1.5b", 1543.7)],
)
def test_shapes_have_the_parameters_they_claim(shape: str, millions: float) -> None:
    sizes = SHAPES[shape]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(sizes.architecture, **sizes.config(512))
        )
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_mixed_lengths_are_seeded_and_half_of_the_maximum() -> None:
    case = Case(mixed=True, timed=40)
    rows = [length for iteration in case.lengths() for length in iteration]
    assert case.lengths() == Case(mixed=True, timed=40).lengths()
    assert min(rows) >= 1
    assert max(rows) == 64
    assert sum(rows) / len(rows) == pytest.approx(32.5, abs=1.5)
    assert sum(case.lengths()[0]) == case.num_tokens(0)
    assert Case().num_tokens(0) == 32 * 64


def test_the_top_half_names_the_upper_layers_only() -> None:
    case = replace(Case(), share=0.5)
    assert {name.split(".")[2] for name in case.targets} == {"3", "4", "5"}
    assert len(case.targets) == 3 * 7
    assert len(Case().targets) == 6 * 7


# ---- ours and theirs do the same ----------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [True, False])
def test_our_sampler_ends_where_it_is_told_and_nowhere_else(tiny: Path, mixed: bool) -> None:
    case = replace(TINY, mixed=mixed, warmup=0, timed=2, eval_every=2)
    result = ours.measure(case, tiny)
    assert result.lengths_seen == [case.num_tokens(i) / 4 for i in range(3)]
    assert result.steps == 3 * 4
    assert [done for done, *_ in result.curve] == [0, 2]
    assert len(result.seconds) == 2
    assert all(seconds > 0 for seconds in result.phases.values())


def test_the_marks_do_not_change_the_log_probabilities(tiny: Path) -> None:
    """An imposed end token has the policy's own log-probability, so the engine's checks hold."""
    case = replace(TINY, mixed=True)
    ours.impose_lengths(case)
    logits_BV = torch.randn(2, 64)
    marked_B = torch.tensor([0.3 + ours.IMPOSED, 0.3], dtype=torch.float64)
    next_B, logprobs_B, *_ = sampler.choose(logits_BV, marked_B, ours.settings(case).sampling)
    assert next_B[0] == END
    assert next_B[1] not in (PAD, END)
    expected_B = torch.log_softmax(logits_BV, -1).gather(1, next_B[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs_B, expected_B)


def test_the_peers_generation_ends_at_the_same_lengths(tiny: Path) -> None:
    case = replace(TINY, mixed=True)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    generate = ImposedLengths(case).generating(model.generate)
    prompts = torch.tensor(case.prompts()[:4])
    for iteration in range(2):
        rows = generate(input_ids=prompts, max_new_tokens=8, do_sample=True, top_k=0, pad_token_id=PAD)
        for row, length in zip(rows[:, 4:].tolist(), case.lengths()[iteration], strict=True):
            assert row.index(END) == length - 1
            assert PAD not in row[:length]
            assert set(row[length:]) <= {PAD}


def test_fixed_lengths_draw_no_end_token(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    processor = ImposedLengths(TINY)
    processor.iteration = 0
    rows = model.generate(
        input_ids=torch.tensor(TINY.prompts()[:4]),
        max_new_tokens=8,
        do_sample=True,
        logits_processor=LogitsProcessorList([processor]),
    )
    assert rows.shape == (4, 12)
    assert not torch.isin(rows, torch.tensor([PAD, END])).any()


def test_both_rewards_are_the_same_number() -> None:
    """tiny has 64 tokens, so 32..63 are wanted: the completion 40, 5, 63, 2 holds 2 of 4."""
    tokens = [9, 9, 50, 9, 40, 5, 63, END, PAD, PAD]
    module = TokenShare(TINY)
    shares = module.score(module.counter(torch.tensor([tokens])).hidden_states[-1])
    assert shares[0, 7, 0].item() == ours.share_of_wanted(TINY, tokens[4:8]) == 0.5


# ---- figures ------------------------------------------------------------------------------------------------


def test_the_exponent_of_a_known_power_is_found() -> None:
    tokens = [100.0, 200.0, 800.0, 6400.0]
    assert table.fitted_exponent(tokens, [3 * t**1.25 for t in tokens]) == pytest.approx(1.25)


def test_seconds_to_a_reward_are_interpolated() -> None:
    curve = [(0, 0.0, 0.5, 0.0), (2, 10.0, 0.6, 0.0), (4, 20.0, 0.8, 0.0)]
    assert table.seconds_to(curve, 0.7) == pytest.approx(15.0)  # halfway from 0.6 to 0.8
    assert table.seconds_to(curve, 0.4) == 0.0
    assert math.isinf(table.seconds_to(curve, 0.9))


def test_the_interval_over_seeds_is_students() -> None:
    """Values 1, 2, 3: deviation 1, standard error 1 / sqrt 3, t with 2 degrees of freedom 4.303."""
    mean, half = table.interval([1.0, 2.0, 3.0], [0.1, 0.1, 0.1])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert table.interval([0.5], [0.1]) == (0.5, 0.1)


def test_peak_memory_is_above_what_was_there() -> None:
    kept = torch.ones(4_000_000)
    memory = PeakMemory("cpu")
    del kept
    before = memory.peak_mb()
    passing = torch.ones(20_000_000)  # 80 MB
    del passing
    assert before < 40
    assert memory.peak_mb() > 60


def _measured(label: str, side: str, seconds: float, memory_mb: float, **changes: Any) -> Any:
    case = Case(share=1.0 if label == "all" else 0.5, mixed=label == "mixed")
    result = Result(
        seconds=[seconds] * case.timed,
        tokens=[case.num_tokens(i) for i in range(case.timed)],
        memory_mb=memory_mb,
        phases=dict.fromkeys(("generation", "scoring", "forward", "backward", "optimizer"), seconds / 5),
        steps=case.iterations * 4,
        adapter_parameters=7,
        trained_parameters=8,
        lengths_seen=[case.num_tokens(i) / 32 for i in range(case.iterations)],
    )
    return plan.Measurement("speed", label, side, case), replace(result, **changes)


def test_floors_goals_and_memory_decide() -> None:
    results = [
        _measured("all", "ours", 4.0, 100.0),
        _measured("all", "theirs", 10.0, 300.0),  # 2.5x is the goal, 0.33x is below 0.4x
        _measured("top", "ours", 3.0, 100.0),
        _measured("top", "theirs", 10.0, 400.0),  # 3.33x is above the floor, below the goal
        _measured("mixed", "ours", 1.0, 100.0),
        _measured("mixed", "theirs", 10.0, 300.0),  # fast enough, but 0.33x is above 0.3x
    ]
    rows = table.rows_of(results)
    assert rows["all", "ours"].episodes_per_s == 8.0
    assert rows["all", "ours"].tokens_per_s == 512.0
    comparisons = table.compare(rows, table.targets_for(Case()))
    verdicts = {(c.label, c.theirs): c.meets for c in comparisons}
    assert verdicts[("all", "all")]
    assert verdicts[("top", "top")]
    assert not verdicts[("mixed", "mixed")]
    assert ("top", "all") in verdicts
    told = report.verdict_table(comparisons)
    assert [line.rsplit("|", 2)[1].strip() for line in told[2:]] == ["goal", "floor", "", "**no**"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 15}, "15 optimizer steps; expected 16"),
        ({"adapter_parameters": 6}, "6 adapter parameters; ours has 7"),
        ({"lengths_seen": [64.0, 64.0, 63.0, 64.0]}, "imposed were"),
    ],
)
def test_a_side_that_did_other_work_is_refused(changes: dict[str, Any], message: str) -> None:
    results = [_measured("all", "ours", 4.0, 100.0), _measured("all", "theirs", 10.0, 300.0, **changes)]
    with pytest.raises(ValueError, match=message):
        table.rows_of(results)


def test_equal_reward_fails_only_where_ours_is_surely_worse() -> None:
    def curves(side: str, ends: list[float]) -> list[Any]:
        return [
            (
                plan.Measurement("reward", "top", side, Case(), number),
                Result([1.0], [1], 0.0, {}, 0, 0, 0, curve=[(0, 0.0, 0.5, 0.01), (8, 4.0, end, 0.01)]),
            )
            for number, end in enumerate(ends)
        ]

    theirs = curves("theirs", [0.8, 0.81, 0.79])
    equal = table.learning_of(curves("ours", [0.79, 0.82, 0.78]) + theirs, 0.7)
    worse = table.learning_of(curves("ours", [0.7, 0.71, 0.69]) + theirs, 0.7)
    assert equal is not None
    assert worse is not None
    assert equal.equal
    assert not worse.equal
    assert equal.episodes == 8 * 32
    assert worse.difference == (pytest.approx(-0.1), pytest.approx(0.0, abs=1e-9))


# ---- the run ------------------------------------------------------------------------------------------------


def test_sides_alternate_and_a_result_is_kept_for_its_settings(tmp_path: Path) -> None:
    measurements = list(plan.speed_plan(TINY, 2, ["all", "top", "mixed"], kinder=False))
    assert [m.side for m in measurements] == ["ours", "theirs"] * 6
    assert len({m.file for m in measurements}) == 12
    first = measurements[0]
    result = Result([1.0], [1], 0.0, {}, 0, 0, 0)
    plan.save(first.case, tmp_path / f"case-{first.file}")
    plan.save(result, tmp_path / first.file)
    assert plan.measured(measurements, tmp_path) == [(first, result)]
    other = list(plan.speed_plan(replace(TINY, lr=1.0), 2, ["all", "top", "mixed"], kinder=False))
    assert plan.measured(other, tmp_path) == []


def test_the_peer_gets_our_versions() -> None:
    pins = peer.pinned(REPOSITORY / "requirements.lock")
    assert {pin.split("==")[0] for pin in pins} == set(peer.SAME)
    assert all(pin.split("==")[1] for pin in pins)


def test_a_section_replaces_its_own_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    report.into_file("## a on a CPU\n\nold\n", path)
    report.into_file("## b on a GPU\n\nkept\n", path)
    report.into_file("## a on a CPU\n\nnew\n", path)
    assert path.read_text() == "# Benchmarks\n\n## a on a CPU\n\nnew\n\n## b on a GPU\n\nkept\n"


@pytest.mark.long
def test_ours_alone_runs_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--no-peer", "--parts", "scaling", "--results", str(tmp_path)]
    assert bench_ppo.main([*arguments, "--budget-s", "0"]) == 1
    assert "run again" in capsys.readouterr().err
    markdown = tmp_path / "benchmarks.md"
    assert bench_ppo.main([*arguments, "--markdown", str(markdown)]) == 0
    assert "Seconds grow as completion tokens to the power" in markdown.read_text()
