"""Figures with intervals: flat keys of a JSON file, and words of a page or a printed line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.core.stats import Interval

Metrics = Mapping[str, Any]


def flat(name: str, interval: Interval | None) -> dict[str, float | None]:
    """{name, name_low, name_high} of an interval; all None where nothing was measured."""
    values = (None, None, None) if interval is None else interval[:3]
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def span(metrics: Metrics, name: str, digits: int = 3) -> str:
    """'0.712 [0.650, 0.770]', or 'not measured'."""
    value = metrics.get(name)
    if value is None:
        return "not measured"
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    text = f"{value:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def percent(metrics: Metrics, name: str) -> str:
    """'71.2 % (65.0 to 77.0)', or 'not measured'."""
    value, low, high = (metrics.get(name + end) for end in ("", "_low", "_high"))
    if value is None:
        return "not measured"
    text = f"{100 * value:.1f} %"
    return (
        text
        if low is None or high is None or low == high
        else f"{text} ({100 * low:.1f} to {100 * high:.1f})"
    )
