"""Accuracy per slice of the held-out comparisons: where the reward model is weak although the mean is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward.data import Pair
from rlhf.core.records import Preference
from rlhf.core.stats import Interval, bootstrap_mean

MIN_PAIRS = 20
MIN_PROMPTS = 10  # fewer prompts to resample make an interval that says less than it seems to
FEW = "few"


@dataclass(frozen=True)
class Slice:
    """accuracy of the comparisons that share one property, e.g. kind 'annotator', name 'maria'."""

    kind: str
    name: str
    accuracy: Interval
    num_prompts: int

    @property
    def small(self) -> bool:
        """Whether it is too small, or too mixed, to draw a conclusion from."""
        few = self.accuracy.n < MIN_PAIRS or self.num_prompts < MIN_PROMPTS
        return few or self.name.startswith(f"{FEW} (")

    def as_dict(self) -> dict[str, Any]:
        mean, low, high, n = self.accuracy
        named: dict[str, Any] = {
            "kind": self.kind,
            "name": self.name,
            "n": n,
            "num_prompts": self.num_prompts,
        }
        return named | {"accuracy": mean, "low": low, "high": high, "small": self.small}


def slices(
    correct: np.ndarray,
    decided: Sequence[Pair],
    completion_tokens: Sequence[int],
    prompt_tokens: Sequence[int],
    seed: int,
) -> list[Slice]:
    """Every kind of slice that tells comparisons apart. correct: [P]; tokens: per row of the pool.

    Slices of one kind with fewer than MIN_PAIRS comparisons are measured together, as 'few'.
    """
    deltas = np.array([completion_tokens[pair.chosen] - completion_tokens[pair.rejected] for pair in decided])
    kinds = {
        "length": length_bins(deltas),
        "prompt length": thirds([prompt_tokens[pair.chosen] for pair in decided]),
        "source": _sorted_names([_optional(pair.preference, "source") for pair in decided]),
        "models": _sorted_names([model_pair(pair.preference) for pair in decided]),
        "strength": _sorted_names([f"strength {pair.preference.margin:g}" for pair in decided]),
        "annotator": _sorted_names([pair.preference.annotator_id for pair in decided]),
    }
    groups = [pair.group_id for pair in decided]
    found: list[Slice] = []
    for kind, bins in kinds.items():
        found += _of_kind(kind, bins, correct, groups, seed)
    return found


def _of_kind(
    kind: str, bins: dict[str, list[int]], correct: np.ndarray, groups: Sequence[str], seed: int
) -> list[Slice]:
    if len(bins) < 2:
        return []

    def measured(name: str, places: list[int]) -> Slice:
        own = [groups[place] for place in places]
        return Slice(kind, name, bootstrap_mean(correct[places], groups=own, seed=seed), len(set(own)))

    few = [name for name, places in bins.items() if len(places) < MIN_PAIRS]
    made = [measured(name, places) for name, places in bins.items() if name not in few]
    if few:
        pooled = sorted(place for name in few for place in bins[name])
        made.append(measured(few[0] if len(few) == 1 else f"{FEW} ({len(few)} together)", pooled))
    return made


def worst(found: Sequence[Slice], overall: Interval) -> Slice | None:
    """The slice of lowest accuracy among those whose whole interval lies below that of all comparisons."""
    below = [s for s in found if not s.small and s.accuracy.high < overall.low]
    return min(below, key=lambda s: s.accuracy.mean, default=None)


def length_bins(deltas: np.ndarray) -> dict[str, list[int]]:
    """Name -> places, from 'better one much shorter' to 'much longer': each side is cut at its median."""
    bins: dict[str, list[int]] = {}
    shorter, longer = np.flatnonzero(deltas < 0), np.flatnonzero(deltas > 0)
    cuts = [int(np.median(np.abs(deltas[side]))) if len(side) else 0 for side in (shorter, longer)]
    for name, places in (
        (f"better one shorter by more than {cuts[0]}", shorter[-deltas[shorter] > cuts[0]]),
        (f"better one shorter by up to {cuts[0]}", shorter[-deltas[shorter] <= cuts[0]]),
        ("equally long", np.flatnonzero(deltas == 0)),
        (f"better one longer by up to {cuts[1]}", longer[deltas[longer] <= cuts[1]]),
        (f"better one longer by more than {cuts[1]}", longer[deltas[longer] > cuts[1]]),
    ):
        if len(places):
            bins[name] = places.tolist()
    return bins


def thirds(lengths: Sequence[int]) -> dict[str, list[int]]:
    """Prompts of few, middling and many tokens, each about a third; equal lengths stay together."""
    values = np.asarray(lengths)
    low, high = np.quantile(values, [1 / 3, 2 / 3], method="inverted_cdf")
    bins = {
        f"prompt up to {low} tokens": np.flatnonzero(values <= low),
        f"prompt of {low + 1} to {high} tokens": np.flatnonzero((values > low) & (values <= high)),
        f"prompt over {high} tokens": np.flatnonzero(values > high),
    }
    return {name: places.tolist() for name, places in bins.items() if len(places)}


def model_pair(preference: Preference) -> str:
    """'a and b' for the models that wrote the two completions, in alphabetical order; '' where not known."""
    names = sorted(_optional(preference, column) for column in ("chosen_model", "rejected_model"))
    return " and ".join(names) if all(names) else ""


def _optional(preference: Preference, column: str) -> str:
    """A column that snapshots of earlier versions lack."""
    return str(getattr(preference, column, "") or "")


def _sorted_names(names: Sequence[str]) -> dict[str, list[int]]:
    """Name -> places; places without a name belong to no slice."""
    bins: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        if name:
            bins[name].append(place)
    return dict(sorted(bins.items()))
