"""What every gate answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from rlhf.core.metrics import finite
from rlhf.core.stats import Interval


@dataclass(frozen=True)
class Verdict:
    """One gate's answer. figure: what was measured, with its interval where there is one; threshold: what it was held
    against. provisional: to be confirmed by people. details: for the report, such as all groups of a gate on groups.
    """

    name: str
    passed: bool
    reason: str
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    provisional: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, passed: bool, reason: str, interval: Interval, threshold: float | None, **more: Any
    ) -> Verdict:
        """With the figure and its interval in one."""
        low, high = interval.low, interval.high
        return cls(name, passed, reason, interval.mean, low, high, threshold, **more)

    @classmethod
    def from_row(cls, row: Row[Any]) -> Verdict:
        return cls(
            name=row.gate,
            passed=bool(row.passed),
            reason=row.reason,
            figure=row.value,
            low=row.low,
            high=row.high,
            threshold=row.threshold,
            provisional=bool(row.provisional),
            details=dict(row.details or {}),
        )

    def row(self) -> dict[str, Any]:
        """The columns of `gate_verdicts`. A figure that is not finite is none."""
        figures = {
            "value": self.figure,
            "low": self.low,
            "high": self.high,
            "threshold": self.threshold,
            "details": self.details,
        }
        return {
            "gate": self.name,
            "passed": self.passed,
            "provisional": self.provisional,
            "reason": self.reason,
            **finite(figures),
        }

    def shown(self) -> str:
        """The figure with its interval, for a table."""
        if self.figure is None:
            return ""
        if self.low is None or self.high is None:
            return f"{self.figure:.3g}"
        return f"{self.figure:.3f} [{self.low:.3f}, {self.high:.3f}]"


def reasons(verdicts: list[Verdict]) -> str:
    """Why a candidate was refused: what every gate that it did not pass has to say."""
    return "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in verdicts if not verdict.passed)
