"""Is the candidate better than the champion? By people, or until they have answered by a second reward model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.core.stats import Interval
from rlhf.loop.gates.sequential import Look
from rlhf.loop.gates.verdict import Verdict

NAME = "win rate"
CHANCE = 0.5


def by_judge(
    figures: Mapping[str, Any], judge: Mapping[str, Any], min_win_rate: float, *, provisional: bool
) -> Verdict:
    """figures: evaluation.json. judge: metrics of the reward run that PPO never saw; one that does not order its own
    held-out comparisons better than chance cannot say anything. provisional: people will be asked too."""
    win = Interval(
        figures["win_rate"], figures["win_rate_low"], figures["win_rate_high"], figures["num_prompts"]
    )
    accuracy, low = judge.get("heldout_accuracy"), judge.get("heldout_accuracy_low")
    details = {"judge_accuracy": accuracy, "judge_accuracy_low": low}
    if low is None or low <= CHANCE:
        shown = "not measured" if accuracy is None else f"{accuracy:.3f}"
        reason = f"the judging reward model is not better than chance (accuracy {shown}): it cannot say"
        return Verdict.of(NAME, False, reason, win, min_win_rate, details=details)
    passed = win.low > min_win_rate
    who = f"a second reward model (accuracy {accuracy:.2f})"
    reason = f"{win.mean:.3f} [{win.low:.3f}, {win.high:.3f}] over {win.n} prompts, judged by {who}"
    reason += "" if passed else f"; the lower end must be above {min_win_rate:.2f}"
    return Verdict.of(NAME, passed, reason, win, min_win_rate, provisional=provisional, details=details)


def by_people(found: Look, num_judges: int) -> Verdict:
    """People's verdict; provisional while their test is open."""
    said = f"{found.num_answered} of {found.planned} pairs, judged by {num_judges} people"
    if found.win_rate is None:
        return Verdict(
            NAME,
            False,
            f"no pair has its answers yet (0 of {found.planned})",
            threshold=CHANCE,
            provisional=True,
        )
    win = Interval(found.win_rate, found.low, found.high, found.num_answered)
    shown = f"{win.mean:.3f} [{win.low:.3f}, {win.high:.3f}] over {said}"
    ending = {
        "better": "",
        "worse": "; people prefer the champion",
        "open": "; not decided yet",
        "not shown": "; the planned number of pairs did not show it to be better",
    }[found.decision]
    passed = found.decision == "better"
    return Verdict.of(
        NAME,
        passed,
        shown + ending,
        win,
        CHANCE,
        provisional=found.decision == "open",
        details={"by": "people"},
    )
