"""How far the candidate has gone: KL from the backbone, and the length of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.core.stats import Interval
from rlhf.loop.gates.verdict import Verdict


def kl_budget(figures: Mapping[str, Any], num_prompts: int, limit: float) -> Verdict:
    """KL of the candidate from the backbone on its own answers, nats per completion. figures: evaluation.json."""
    if figures.get("kl") is None:
        return Verdict("kl", False, "was not measured: candidate and backbone have different vocabularies")
    kl = Interval(figures["kl"], figures["kl_low"], figures["kl_high"], num_prompts)
    passed = kl.mean <= limit
    reason = f"{kl.mean:.2f} nats per completion from the backbone"
    reason += "" if passed else f"; at most {limit:g} are accepted"
    return Verdict.of("kl", passed, reason, kl, limit)


def length_change(figures: Mapping[str, Any], limit: float) -> Verdict:
    """Mean tokens of the candidate's answers against the champion's, as a signed share of the latter."""
    before, after = figures["length_before"], figures["length_after"]
    change = after / before - 1 if before else float("inf")
    passed = abs(change) <= limit
    reason = f"answers went from {before:.1f} to {after:.1f} tokens ({change:+.0%})"
    reason += "" if passed else f"; a change of at most {limit:.0%} is accepted"
    return Verdict("length", passed, reason, change, threshold=limit)
