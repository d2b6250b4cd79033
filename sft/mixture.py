"""Which rows an epoch takes of each task, and in which order: a function of the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from rlhf.core.randomness import derived_seed


def rows_per_task(num_rows: int, weights: Sequence[float]) -> list[int]:
    """num_rows in these proportions, by largest remainders; every task gets one at least."""
    shares = [num_rows * weight / sum(weights) for weight in weights]
    counts = [max(1, int(share)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: int(shares[i]) - shares[i])
    for place in by_remainder[: max(0, num_rows - sum(counts))]:
        counts[place] += 1
    return counts


class MixtureSampler(Sampler[int]):
    """Places of rows, as many an epoch as there are rows (or `num_rows`), each task with its share.

    A task's rows come in one shuffled pass after another that go on over the ends of epochs, so that after any number
    of epochs no row was seen two times more often than another. `set_epoch` makes a resumed run go on as it would have.
    """

    def __init__(
        self,
        places: Sequence[Sequence[int]],
        weights: Sequence[float],
        seed: int,
        num_rows: int | None = None,
    ) -> None:
        """places: of the rows of each task. num_rows: of an epoch, by default as many as there are."""
        self._places = [np.asarray(of_task) for of_task in places]
        self._counts = rows_per_task(num_rows or sum(map(len, places)), weights)
        self._seed, self._epoch = seed, 0

    def __len__(self) -> int:
        return sum(self._counts)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        taken = [self._of_task(task) for task in range(len(self._places))]
        order = np.random.default_rng(derived_seed(self._seed, "mixture", self._epoch))
        yield from order.permutation(np.concatenate(taken)).tolist()

    def _of_task(self, task: int) -> np.ndarray:
        places, count = self._places[task], self._counts[task]
        start = self._epoch * count
        first, last = start // len(places), (start + count - 1) // len(places)
        passes = [
            np.random.default_rng(derived_seed(self._seed, "pass", task, number)).permutation(places)
            for number in range(first, last + 1)
        ]
        offset = start - first * len(places)
        found: np.ndarray = np.concatenate(passes)[offset : offset + count]
        return found
