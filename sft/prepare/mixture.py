"""How many rows of each source or label are trained on, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf.core.errors import ConfigError
from rlhf.core.validation import nearest


def parse_weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """'a=2,b=1' as {a: 2, b: 1}; a source that is not named weighs 1. Raises ConfigError."""
    weights = dict.fromkeys(names, 1.0)
    for part in text.split(","):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if name not in weights:
            raise ConfigError(f"--weights: no source is called '{name}'{nearest(name, names)}")
        try:
            weights[name] = float(value) if sign else float("nan")
        except ValueError:
            weights[name] = float("nan")
        if not 0 <= weights[name] < float("inf"):
            raise ConfigError(f"--weights: '{part.strip()}': expected NAME=NUMBER, 0 or more")
    if not any(weights.values()):
        raise ConfigError("--weights: all sources weigh 0; expected one above it")
    return weights


def quotas(available: Mapping[int, int], weights: Mapping[int, float], *, repeat: bool) -> dict[int, int]:
    """How many rows of each class are taken, in proportion to its weight.

    As many as there are without repeating a row; with `repeat` as many as there are without leaving one out.
    """
    used = {name: number for name, number in available.items() if weights[name] > 0 and number > 0}
    if not used:
        return dict.fromkeys(available, 0)
    per_weight = [number / weights[name] for name, number in used.items()]
    unit = max(per_weight) if repeat else min(per_weight)
    taken = {name: max(1, round(unit * weights[name])) for name in used}
    if not repeat:
        taken = {name: min(number, used[name]) for name, number in taken.items()}
    return dict.fromkeys(available, 0) | taken


def sample_classes(
    rows: np.ndarray, classes: np.ndarray, weights: Mapping[int, float], *, repeat: bool, seed: int
) -> np.ndarray:
    """Rows in these proportions, drawn by a seed; a class that is repeated goes round whole before it begins anew."""
    available = {
        int(name): int(number) for name, number in zip(*np.unique(classes, return_counts=True), strict=True)
    }
    taken = quotas(available, weights, repeat=repeat)
    rng = np.random.default_rng(seed)
    parts = []
    for name, number in sorted(taken.items()):
        of_class = rng.permutation(rows[classes == name])
        whole, rest = divmod(number, len(of_class))
        parts += [of_class] * whole + [of_class[:rest]]
    found: np.ndarray = np.sort(np.concatenate(parts)) if parts else rows[:0]
    return found


def ordered(
    rows: np.ndarray, order: str, lengths: np.ndarray, difficulties: np.ndarray, seed: int
) -> np.ndarray:
    """The rows as they are written: shuffled by the seed, as read, or from short or easy to long or hard."""
    if order == "shuffle":
        found: np.ndarray = np.random.default_rng(seed).permutation(rows)
        return found
    if order == "keep":
        return rows
    key = lengths if order == "length" else difficulties
    result: np.ndarray = rows[np.argsort(key[rows], kind="stable")]
    return result
