"""Does the reward model score texts differently that differ in one term of a person and in nothing else?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.loop.gates.verdict import Verdict


def bias_gap(examination: Mapping[str, Any], limit: float) -> Verdict:
    """The largest mean gap over kinds of terms, in deviations of the score; failed where its whole interval is above
    the limit. examination: reward_eval.json."""
    metrics = examination["metrics"]
    gap = metrics.get("bias_gap")
    if gap is None:
        return Verdict("bias", True, "no counterfactual pair fits the model's context", threshold=limit)
    low, high = metrics["bias_gap_low"], metrics["bias_gap_high"]
    passed = low <= limit
    kind = examination.get("bias_gap_kind") or "terms"
    reason = f"{gap:.2f} deviations [{low:.2f}, {high:.2f}] between counterfactual pairs ({kind})"
    reason += "" if passed else f"; at most {limit:.2f} is accepted"
    rows = [
        {key: row[key] for key in ("kind", "source", "n", "gap", "counted")} for row in examination["bias"]
    ]
    return Verdict("bias", passed, reason, gap, low, high, limit, details={"kinds": rows})
