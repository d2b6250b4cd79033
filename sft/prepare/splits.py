"""Splits by family, so that no prompt, no near-copy of one and no group of the file is in two of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf.core.splits import split_of
from sft.prepare.families import Components
from sft.prepare.scratch import first_of_each

SPLITS = ("train", "validation", "test")


def families(prompt_roots: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rows with prompts of one family or of one group (transitively) as the place of their first row, [rows].

    prompt_roots: [rows], the same for prompts that are nearly the same. groups: [rows, 2], 0 for none.
    """
    components = Components(len(prompt_roots))
    _, first, inverse = np.unique(prompt_roots, return_index=True, return_inverse=True)
    components.parent = first[inverse].astype(np.int64)
    named = np.flatnonzero(groups.any(axis=1))
    for row, head in zip(named.tolist(), named[first_of_each(groups[named])].tolist(), strict=True):
        components.join(row, head)
    return components.roots()


def assign(
    roots: np.ndarray, names: Sequence[str], fractions: tuple[float, float, float], seed: int
) -> np.ndarray:
    """0 train, 1 validation, 2 test for each row, [rows].

    names: of each row, what its family is called if it is the first of it: the split depends on the name and the
    seed alone. A split that was asked for and got nothing takes a family of training, where there are enough.
    """
    heads = np.unique(roots)
    split = {int(head): SPLITS.index(split_of(names[head], seed, fractions)) for head in heads}
    wanted = [place for place in (1, 2) if fractions[place] > 0]
    for place in wanted:
        training = sorted((names[head], head) for head, where in split.items() if where == 0)
        if place not in split.values() and len(training) > 1:
            split[training[seed % len(training)][1]] = place
    if 0 not in split.values() and len(split) > len(wanted):
        split[min(split)] = 0
    found: np.ndarray = np.array([split[int(root)] for root in roots], dtype=np.int8)
    return found
