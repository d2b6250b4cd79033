"""Does any group of prompts fall, behind a mean that rises?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.core.records import Prompt
from rlhf.core.stats import bootstrap_mean
from rlhf.loop.gates.verdict import Verdict

CHANCE = 0.5


def slice_of(prompt: Prompt, slice_by: str) -> str:
    """The group that a prompt belongs to: its source, or what its metadata say under a key."""
    if slice_by == "source":
        return prompt.source or "no source"
    return str(prompt.metadata.get(slice_by, f"no {slice_by}"))


def slices(
    pairs: Sequence[Mapping[str, Any]],
    prompts: Mapping[str, Prompt],
    slice_by: str,
    max_fall: float,
    min_size: int,
) -> Verdict:
    """Failed where a group's win rate is below 0.5 - max_fall, and below 0.5 with its whole interval.

    pairs: pairs.jsonl of an evaluation. prompts: by prompt id. Groups below min_size prompts are shown only.
    """
    wins: dict[str, list[float]] = defaultdict(list)
    groups: dict[str, list[str]] = defaultdict(list)
    for row in pairs:
        prompt = prompts[row["prompt_id"]]
        name = slice_of(prompt, slice_by)
        wins[name].append(float(row["win"]))
        groups[name].append(prompt.group_id)
    rows: list[dict[str, Any]] = []
    for name in sorted(wins):
        win = bootstrap_mean(wins[name], groups=groups[name])
        rows.append(
            {"slice": name, "n": win.n, "win_rate": win.mean, "low": win.low, "high": win.high}
            | {"counted": win.n >= min_size}
        )
    counted = [row for row in rows if row["counted"]]
    details = {"slices": rows, "slice_by": slice_by}
    limit = CHANCE - max_fall
    if not counted:
        reason = f"no group by {slice_by} has {min_size} held-out prompts"
        return Verdict("slices", True, reason, threshold=limit, details=details)
    lowest = min(counted, key=lambda row: row["win_rate"])
    fallen = [row for row in counted if row["win_rate"] < limit and row["high"] < CHANCE]
    reason = (
        f"the lowest of {len(counted)} groups by {slice_by} wins {lowest['win_rate']:.2f} ({lowest['slice']})"
    )
    if fallen:
        named = [f"{row['slice']} wins {row['win_rate']:.2f} of {row['n']}" for row in fallen]
        reason = f"falls: {', '.join(named)}; at least {limit:.2f} is needed"
    return Verdict(
        "slices",
        not fallen,
        reason,
        lowest["win_rate"],
        lowest["low"],
        lowest["high"],
        limit,
        details=details,
    )
