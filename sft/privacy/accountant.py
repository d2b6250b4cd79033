"""How much privacy steps of DP-SGD spend, through opacus (extra `privacy`), the only module that imports it.

Each step sees every demonstration with probability `sample_rate`, independently (Poisson), clips what each of them
contributes, and adds Gaussian noise: the subsampled Gaussian mechanism, composed numerically by privacy loss random
variables (Gopi, Lee and Wutschitz, arXiv:2106.02848). epsilon bounds how much likelier any outcome can become by one
demonstration more or less, but for the chance delta.
"""

from __future__ import annotations

import numpy as np
from opacus.accountants import PRVAccountant

from rlhf.core.errors import ConfigError

MAX_NOISE = 1e4
TOLERANCE = 1.005


def spent_epsilon(noise_multiplier: float, sample_rate: float, num_steps: int, delta: float) -> float:
    """An upper bound of epsilon after so many steps; 0 before the first."""
    if num_steps == 0:
        return 0.0
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, num_steps)]
    with np.errstate(divide="ignore"):  # it takes the logarithm of 1 - sample_rate
        return float(accountant.get_epsilon(delta=delta))


def noise_for(epsilon: float, sample_rate: float, num_steps: int, delta: float) -> float:
    """The least noise multiplier (to half a percent) with which so many steps spend at most epsilon.

    Raises ConfigError where not even MAX_NOISE suffices.
    """
    low, high = 0.25, 1.0
    while spent_epsilon(high, sample_rate, num_steps, delta) > epsilon:
        low, high = high, 2 * high
        if high > MAX_NOISE:
            raise ConfigError(
                f"privacy.epsilon {epsilon:g} cannot be kept in {num_steps} steps with delta {delta:g}"
            )
    while high / low > TOLERANCE:
        middle = (low * high) ** 0.5
        if spent_epsilon(middle, sample_rate, num_steps, delta) > epsilon:
            low = middle
        else:
            high = middle
    return high
