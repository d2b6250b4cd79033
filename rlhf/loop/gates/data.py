"""Is there enough to learn from, do the raters agree, and does nobody contradict all the others?"""

from __future__ import annotations

from typing import Any

from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.retrain.config import GateSettings, TriggerSettings
from rlhf.loop.retrain.news import News


def enough(found: News, num_decided: int, num_test: int, gates: GateSettings) -> Verdict:
    """Decided comparisons in all and in the test split, against the least that a round may rest on."""
    lacking = []
    if found.num_new < gates.min_new:
        lacking.append(f"{found.num_new} new comparisons; at least {gates.min_new} are needed")
    if num_decided < gates.min_comparisons:
        lacking.append(f"{num_decided} decided comparisons; at least {gates.min_comparisons} are needed")
    if num_test < gates.min_test_comparisons:
        lacking.append(
            f"{num_test} of them in the test split; at least {gates.min_test_comparisons} are needed"
        )
    reason = "too little data: " + ", ".join(lacking) if lacking else f"{num_decided} decided comparisons"
    details = {"num_new": found.num_new, "num_test": num_test}
    return Verdict(
        "data",
        not lacking,
        reason,
        float(num_decided),
        threshold=float(gates.min_comparisons),
        details=details,
    )


def raters_agree(found: News, trigger: TriggerSettings) -> Verdict:
    """How often two raters of a new pair prefer the same side. Unknown where no pair has two of them."""
    agreed = found.agreement()
    floor = trigger.min_agreement
    if agreed.raw is None or agreed.interval is None:
        return Verdict("agreement", True, "no new pair has two raters who took a side", threshold=floor)
    passed = agreed.raw >= floor
    reason = f"raters agree on {agreed.raw:.2f} of {agreed.n_items} new pairs"
    reason += "" if passed else f"; at least {floor:.2f} is needed"
    return Verdict.of("agreement", passed, reason, agreed.interval, floor)


def raters_one_by_one(found: News, gates: GateSettings) -> Verdict:
    """Nobody's agreement with the others may lie below the floor beyond chance: with its whole interval."""
    each = found.with_others()
    floor = gates.rater_floor
    rows: list[dict[str, Any]] = [
        {"rater": found.name_of(rater), "agreement": one.mean, "low": one.low, "high": one.high, "n": one.n}
        for rater, one in sorted(each.items(), key=lambda item: item[1].mean)
    ]
    against = [row for row in rows if row["high"] < floor]
    if not each:
        return Verdict("raters", True, "no new pair has two raters who took a side", threshold=floor)
    lowest = each[min(each, key=lambda rater: each[rater].mean)]
    reason = f"all {len(rows)} raters agree with the others"
    if against:
        named = [
            f"{row['rater']} agrees with the others on {row['agreement']:.2f} [{row['low']:.2f}, {row['high']:.2f}] "
            f"of {row['n']} new pairs"
            for row in against
        ]
        reason = f"contradicts the others: {', '.join(named)}; look at their answers, or leave them out "
        reason += "(snapshot.exclude)"
    return Verdict.of("raters", not against, reason, lowest, floor, details={"raters": rows})
