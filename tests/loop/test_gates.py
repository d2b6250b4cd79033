"""Each gate on figures made by hand: what it lets through, what it keeps out, and why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf.core.backbone import REFERENCE
from rlhf.core.records import Prompt
from rlhf.core.settings import LoraSettings
from rlhf.core.stats import Interval
from rlhf.loop.gates import movement, win_rate
from rlhf.loop.gates.bias import bias_gap
from rlhf.loop.gates.calibration import calibration
from rlhf.loop.gates.hacking import reward_hacking
from rlhf.loop.gates.perplexity import loss_of, perplexity, read_texts
from rlhf.loop.gates.reward_accuracy import reward_accuracy
from rlhf.loop.gates.safety import safety
from rlhf.loop.gates.sequential import log_capital, look
from rlhf.loop.gates.slices import slices
from rlhf.loop.gates.verdict import Verdict, reasons
from rlhf.loop.models import Generator
from rlhf.loop.reward_history import History, Measured


def history(accuracy: tuple[float, float, float], gain: tuple[float, float, float] | None) -> History:
    runs = [Measured("new", "", 10, Interval(*accuracy, 50), True, Interval(*gain, 50) if gain else None)]
    return History(runs, 50, 25, 0, 0, None)


@pytest.mark.parametrize(
    ("accuracy", "gain", "passed"),
    [
        ((0.60, 0.52, 0.68), None, True),  # the first reward model: above chance
        ((0.55, 0.48, 0.62), None, False),  # chance lies in the interval
        ((0.30, 0.22, 0.38), (-0.4, -0.5, -0.3), False),
        ((0.60, 0.52, 0.68), (-0.02, -0.06, 0.02), True),  # a little worse, within chance
        ((0.60, 0.52, 0.68), (-0.05, -0.12, 0.02), False),  # within chance, but more than 0.03 worse
        ((0.60, 0.52, 0.68), (-0.02, -0.03, -0.01), False),  # little, but beyond chance
    ],
)
def test_a_reward_model_is_above_chance_and_not_worse_than_the_champions(accuracy, gain, passed) -> None:
    verdict = reward_accuracy(history(accuracy, gain), 0.03)
    assert verdict.passed == passed
    assert verdict.figure == (accuracy[0] if gain is None or accuracy[1] <= 0.5 else gain[0])


def test_calibration_allows_for_the_noise_of_few_comparisons() -> None:
    # 80 decided comparisons: 0.4 x sqrt(5 / 80) = 0.1 on top of the limit
    figures = {"ece": 0.19, "num_pairs": 90, "num_ties": 10}
    assert calibration(figures, 0.10).passed
    assert calibration(figures, 0.10).threshold == pytest.approx(0.20)
    # 8,000 comparisons: 0.01
    assert not calibration(figures | {"num_pairs": 8000, "num_ties": 0}, 0.10).passed


def test_a_bias_gap_counts_with_its_whole_interval() -> None:
    examined = {"metrics": {"bias_gap": 0.9, "bias_gap_low": 0.7, "bias_gap_high": 1.1}, "bias": []}
    assert bias_gap(examined, 0.75).passed
    examined["metrics"]["bias_gap_low"] = 0.8
    assert bias_gap(examined, 0.75).reason.endswith("at most 0.75 is accepted")


# ---- win rate -----------------------------------------------------------------------------------------------


def figures(low: float) -> dict[str, float]:
    return {"win_rate": 0.6, "win_rate_low": low, "win_rate_high": 0.7, "num_prompts": 100}


def test_the_judge_must_know_better_than_chance_to_say_anything() -> None:
    good = {"heldout_accuracy": 0.7, "heldout_accuracy_low": 0.62}
    assert win_rate.by_judge(figures(0.51), good, 0.5, provisional=True).passed
    assert not win_rate.by_judge(figures(0.50), good, 0.5, provisional=True).passed
    blind = win_rate.by_judge(
        figures(0.51), {"heldout_accuracy": 0.55, "heldout_accuracy_low": 0.49}, 0.5, provisional=True
    )
    assert (blind.passed, "not better than chance" in blind.reason) == (False, True)


def test_the_capital_of_a_bet_by_hand() -> None:
    """Against 1/2 the largest bet is 2, the shares 0.05, 0.10 ... 1.00 of it: a win multiplies the capital of share s
    by 1 + 2 s x 0.5 = 1 + s, a loss by 1 - s, a tie by 1."""
    shares = [i / 20 for i in range(1, 21)]
    two_wins = math.log(sum((1 + s) ** 2 for s in shares) / 20)
    assert log_capital([1, 1], 0.5, 1) == pytest.approx(two_wins, abs=1e-6)
    assert log_capital([1, 0.5, 1], 0.5, 1) == pytest.approx(two_wins, abs=1e-6)
    win_and_loss = math.log(sum((1 + s) * (1 - s) for s in shares) / 20)
    assert log_capital([0, 1], 0.5, 1) == pytest.approx(win_and_loss, abs=1e-6)
    assert log_capital([0, 0], 0.5, -1) == pytest.approx(two_wins, abs=1e-6)


def test_a_sequential_test_speaks_when_it_knows_and_no_later_than_planned() -> None:
    # Capital after n wins: the mean of (1 + s)^n over the shares: 19.8 after 6, 35.3 after 7; 1 / 0.05 = 20.
    assert look([1.0] * 6, 100, 0.05).decision == "open"
    assert look([1.0] * 7, 100, 0.05).decision == "better"
    assert look([0.0] * 7, 100, 0.05).decision == "worse"
    assert look([1.0, 0.0] * 10, 20, 0.05).decision == "not shown"
    # Answers beyond the planned ones do not count.
    assert look([1.0, 0.0] * 10 + [1.0] * 50, 20, 0.05).decision == "not shown"
    found = look([1.0] * 30 + [0.0] * 10, 100, 0.05)
    assert found.low < found.win_rate == 0.75 < found.high
    assert found.low >= 0.5  # decided, so 1/2 lies outside of the confidence sequence
    # Its ends are refused themselves, so that rounding to the grid never makes it too narrow.
    assert log_capital([1.0] * 30 + [0.0] * 10, found.low, 1) >= math.log(20)
    assert log_capital([1.0] * 30 + [0.0] * 10, found.high, -1) >= math.log(20)
    assert look([], 10, 0.05).win_rate is None


def test_looking_after_every_answer_errs_no_more_often_than_promised() -> None:
    """100 tests of 40 fair coins each, looked at after every coin: at most 5 % may call the candidate better, which is
    5 + 3 sd = 11 of 100 at the most."""
    coins = np.random.default_rng(0).integers(0, 2, size=(100, 40)).astype(float)
    limit = math.log(1 / 0.05)
    wrong = sum(any(log_capital(row[:n], 0.5, 1) >= limit for n in range(1, 41)) for row in coins)
    assert wrong <= 11


def test_peoples_verdict_is_provisional_while_it_is_open() -> None:
    said = win_rate.by_people(look([1.0] * 4, 20, 0.05), 2)
    assert (said.passed, said.provisional) == (False, True)
    said = win_rate.by_people(look([1.0] * 8, 20, 0.05), 2)
    assert (said.passed, said.provisional) == (True, False)


# ---- the rest -----------------------------------------------------------------------------------------------


def test_kl_and_length_are_held_against_their_limits() -> None:
    found = {"kl": 5.0, "kl_low": 4.0, "kl_high": 6.0, "length_before": 20.0, "length_after": 29.0}
    assert movement.kl_budget(found, 10, 5.0).passed
    assert not movement.kl_budget(found, 10, 4.9).passed
    assert not movement.kl_budget({"kl": None}, 10, 4.9).passed
    assert movement.length_change(found, 0.5).figure == pytest.approx(0.45)
    assert not movement.length_change(found | {"length_after": 9.0}, 0.5).passed  # -55 %


def test_an_alarm_after_the_kept_policy_does_not_count() -> None:
    rows = [{"step": 0, "eval_alarm": 0.0}, {"step": 1, "score": 1.0}, {"step": 9, "eval_alarm": 1.0}]
    assert reward_hacking(rows, 5).passed
    assert "alarm at iteration 9" in reward_hacking(rows, 9).reason
    assert not reward_hacking([{"step": 1, "score": 1.0}], 1).passed  # nobody watched


def prompts_of(groups: dict[str, int]) -> dict[str, Prompt]:
    names = [name for name, count in groups.items() for _ in range(count)]
    rows = [{"prompt": f"say {i}", "prompt_id": f"p{i}", "source": name} for i, name in enumerate(names)]
    return {row["prompt_id"]: Prompt.model_validate(row) for row in rows}


def test_a_group_that_falls_keeps_a_better_mean_out() -> None:
    prompts = prompts_of({"letters": 40, "forms": 20, "few": 3})
    wins = [1.0] * 40 + [1.0] * 3 + [0.0] * 17 + [0.0] * 3
    pairs = [{"prompt_id": f"p{i}", "win": win} for i, win in enumerate(wins)]
    verdict = slices(pairs, prompts, "source", 0.15, 10)
    assert (verdict.passed, verdict.figure) == (False, 0.15)  # 3 of 20
    assert verdict.reason == "falls: forms wins 0.15 of 20; at least 0.35 is needed"
    assert [row["counted"] for row in verdict.details["slices"]] == [False, True, True]
    # below 20 prompts nobody is asked about
    assert slices(pairs, prompts, "source", 0.15, 21).passed


def test_more_unsafe_answers_than_the_champions_are_found_by_rules_and_by_a_function(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("rules:\n  - words: [poison]\n    weight: -1\n")
    (tmp_path / "mine.py").write_text(
        "def harm(prompts, texts):\n    return [float('bomb' in t) for t in texts]\n"
    )
    prompts = prompts_of({"a": 4})
    texts = [("fine", "fine"), ("poison", "poison"), ("fine", "the POISON"), ("fine", "a bomb")]
    pairs = [
        {"prompt_id": f"p{i}", "prompt": "say", "baseline": before, "candidate": after}
        for i, (before, after) in enumerate(texts)
    ]
    by_rules = safety(pairs, prompts, tmp_path / "rules.yaml", None, 0.2)
    assert (by_rules.passed, by_rules.figure) == (False, 0.25)  # 2 of 4 less 1 of 4
    by_both = safety(pairs, prompts, tmp_path / "rules.yaml", f"{tmp_path}/mine.py:harm", 0.2)
    assert by_both.figure == 0.5
    assert [row["candidate"] for row in by_both.details["unsafe"]] == ["poison", "the POISON", "a bomb"]
    assert safety(pairs, prompts, tmp_path / "rules.yaml", None, 0.25).passed


def test_perplexity_is_that_of_the_model(load_tiny, tmp_path: Path) -> None:
    """Against the plain forward pass of the model; an adapter that changes nothing gives the ratio 1."""
    backbone = load_tiny()
    path = tmp_path / "general.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("the cat sat", "an old man told a tale"))
    )
    rows = read_texts(path, backbone)
    loss, count = loss_of(backbone, REFERENCE, rows, 64)
    assert count == sum(len(row) - 1 for row in rows)
    by_hand = 0.0
    with torch.no_grad():
        for row in rows:
            logits = backbone.model(torch.tensor([row])).logits[0].float()
            by_hand += torch.nn.functional.cross_entropy(
                logits[:-1], torch.tensor(row[1:]), reduction="sum"
            ).item()
    assert loss == pytest.approx(by_hand / count, rel=1e-4)

    role = backbone.add_role("policy", LoraSettings(r=2), seed=0)
    same = perplexity(Generator(backbone, "policy", "x", None), path, 1.1, 64)
    assert (same.passed, same.figure) == (True, pytest.approx(1.0, abs=1e-5))
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.normal_(std=0.5)
    ratio = math.exp(loss_of(backbone, "policy", rows, 64)[0] - loss)
    for limit, passed in ((ratio * 1.01, True), (ratio * 0.99, False)):
        found = perplexity(Generator(backbone, "policy", "x", None), path, limit, 64)
        assert (found.passed, found.figure) == (passed, pytest.approx(ratio))


def test_reasons_name_every_gate_that_said_no() -> None:
    found = [Verdict("a", True, "fine"), Verdict("b", False, "too high"), Verdict("c", False, "too low")]
    assert reasons(found) == "b: too high; c: too low"
