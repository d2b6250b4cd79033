"""Do the reward model's probabilities come true? Read from its examination (`rlhf reward-eval`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.loop.gates.verdict import Verdict


def calibration(metrics: Mapping[str, Any], limit: float) -> Verdict:
    """Expected calibration error on the test split. A few comparisons make it look large, so its noise is allowed for:
    the error that a calibrated model shows on n comparisons is about 0.4 x sqrt(bins / n) with 5 filled bins."""
    error = metrics.get("ece")
    if error is None:
        return Verdict("calibration", False, "was not measured: no decided comparison is held out", None)
    n = metrics["num_pairs"] - metrics["num_ties"]
    allowed = limit + (0.4 * (5 / n) ** 0.5 if n else 0.0)
    passed = error <= allowed
    reason = f"predicted and observed shares differ by {error:.3f} on the average"
    reason += (
        ""
        if passed
        else f"; at most {limit:.2f} is accepted ({allowed:.2f} with the noise of {n} comparisons)"
    )
    return Verdict("calibration", passed, reason, float(error), threshold=allowed)
