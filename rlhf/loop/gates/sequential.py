"""People's comparisons, looked at as they come in, without the error that looking often would otherwise make.

A bet on each pair: capital starts at 1 and is multiplied by 1 + bet x (outcome - m), where outcome is 1 for the
candidate, 0 for the champion and 0.5 for a tie. If the true win rate is m, the capital's expectation never exceeds 1,
however the bets are placed and whenever one stops, so it exceeds 1 / error with a chance of at most `error` (Ville,
1939; Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86, 2024). The bets are
a uniform mixture over BETS, which needs no guess of the size of the effect. The number of pairs is fixed beforehand
all the same: a test that has not spoken by then says that the candidate was not shown to be better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import logsumexp

BETS = np.linspace(0.05, 1.0, 20)  # as a share of the largest bet that cannot lose everything
GRID = np.linspace(0.0, 1.0, 401)

Decision = Literal["better", "worse", "open", "not shown"]


@dataclass(frozen=True)
class Look:
    """decision: so far. low, high: of a confidence sequence for the win rate, valid at every look, each side with the
    chance of `error`, rounded outwards to GRID. planned: pairs that were fixed beforehand."""

    decision: Decision
    win_rate: float | None
    low: float
    high: float
    num_answered: int
    planned: int


def log_capital(outcomes: Sequence[float], m: float, direction: int) -> float:
    """Logarithm of the capital of the mixture that bets on a win rate above m (direction 1) or below it (-1).

    outcomes: in [0, 1], in the order in which they came (which the result does not depend on).
    """
    values = np.asarray(outcomes, float)
    if not len(values):
        return 0.0
    # 1 + bet (x - m) stays positive for every x in [0, 1] while bet < 1 / m (upwards) or 1 / (1 - m) (downwards)
    largest = 1 / max(m, 1e-9) if direction > 0 else 1 / max(1 - m, 1e-9)
    bets = direction * np.minimum(BETS * largest, 1e6) * (1 - 1e-9)
    factors = np.log1p(np.maximum(bets[:, None] * (values[None, :] - m), -1 + 1e-12))
    return float(logsumexp(factors.sum(1)) - np.log(len(BETS)))


def look(outcomes: Sequence[float], planned: int, error: float, against: float = 0.5) -> Look:
    """Whether the win rate is above `against`, from the answers so far; those beyond the planned ones do not count."""
    values = list(outcomes)[:planned]
    limit = float(np.log(1 / error))
    better = log_capital(values, against, 1) >= limit
    worse = log_capital(values, against, -1) >= limit
    # The capital falls with m (rises, downwards): the end lies between the last grid point refused and the first kept.
    low = max((m for m in GRID if log_capital(values, float(m), 1) >= limit), default=0.0)
    high = min((m for m in GRID if log_capital(values, float(m), -1) >= limit), default=1.0)
    decision: Decision = "better" if better else "worse" if worse else "open"
    if decision == "open" and len(values) >= planned:
        decision = "not shown"
    return Look(
        decision,
        float(np.mean(values)) if values else None,
        float(low),
        float(high),
        len(values),
        planned,
    )
