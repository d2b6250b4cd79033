"""Did the reward rise while the one that training never sees fell?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.loop.gates.verdict import Verdict


def reward_hacking(rows: Sequence[Mapping[str, Any]], best_iteration: int) -> Verdict:
    """PPO's alarm (`rlhf.ppo.watch`) up to the iteration whose policy was kept; what came after it is not shipped.

    rows: metrics.jsonl of the run.
    """
    watched = [row for row in rows if "eval_alarm" in row]
    if not watched:
        return Verdict("reward hacking", False, "was not watched: the run has no held-out reward")
    alarms = [int(row["step"]) for row in watched if row["eval_alarm"] and row["step"] <= best_iteration]
    reason = "the held-out reward did not fall while the reward rose"
    if alarms:
        reason = (
            f"the reward rose while the held-out one fell: alarm at iteration {', '.join(map(str, alarms))}, and the "
            f"policy is of iteration {best_iteration}"
        )
    return Verdict("reward hacking", not alarms, reason, float(len(alarms)), threshold=0.0)
