"""Counter-based random numbers: the same counters give the same number, different ones look independent."""

from __future__ import annotations

import torch
from scipy.stats import chisquare

from rlhf.core.randomness import derived_seed, uniforms


def counters(num_cursors: int, num_samples: int, num_positions: int) -> tuple[torch.Tensor, ...]:
    grid = torch.cartesian_prod(
        torch.arange(num_cursors), torch.arange(num_samples), torch.arange(num_positions)
    )
    return tuple(grid.T.contiguous())


def splitmix(state: int, counter: int) -> int:
    """One absorbing step in Python's unbounded integers: SplitMix64's finaliser of (state xor counter) + golden."""
    mask = 2**64 - 1
    z = ((state ^ counter) + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_torch_arithmetic_is_the_published_hash() -> None:
    # SplitMix64 started at 0 gives 0xE220A8397B1DCDAF first (the value of the reference implementation).
    assert splitmix(0, 0) == 0xE220A8397B1DCDAF
    expected = splitmix(splitmix(splitmix(5, 7), 1), 3) >> 11
    found = uniforms(5, *(torch.tensor([n]) for n in (7, 1, 3)))
    assert found.item() == expected / 2**53


def test_a_number_does_not_depend_on_what_is_beside_it() -> None:
    cursors, samples, positions = counters(5, 3, 7)
    together = uniforms(11, cursors, samples, positions)
    order = torch.randperm(len(cursors), generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniforms(11, cursors[order], samples[order], positions[order]), together[order])
    alone = torch.cat(
        [uniforms(11, *(c[i : i + 1] for c in (cursors, samples, positions))) for i in range(20)]
    )
    assert torch.equal(alone, together[:20])


def test_numbers_are_uniform_and_every_counter_matters() -> None:
    numbers = uniforms(0, *counters(100, 10, 50))
    assert numbers.dtype == torch.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(numbers.unique()) == len(numbers)
    # 50 000 numbers in 100 cells; a sound generator falls below 1e-4 once in ten thousand seeds
    assert chisquare(torch.histc(numbers, 100, 0, 1).numpy()).pvalue > 1e-4
    # neighbours along each counter are uncorrelated: |r| < 4 / sqrt(n), n = 50 000
    grid = numbers.view(100, 10, 50)
    for axis in range(3):
        first, second = grid.narrow(axis, 0, grid.shape[axis] - 1), grid.narrow(axis, 1, grid.shape[axis] - 1)
        r = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert abs(r) < 4 / 45_000**0.5
    assert not torch.any(uniforms(1, *counters(100, 10, 50)) == numbers)


def test_derived_seeds_differ_by_purpose_and_do_not_run_together() -> None:
    seeds = {
        derived_seed(0, "policy"),
        derived_seed(0, "value"),
        derived_seed(1, "policy"),
        derived_seed(0, "epoch", 1),
        derived_seed(0, "epoch", 11),
        derived_seed(0, "epoch", 1, 1),  # labels are separated: "1","1" is not "11"
        derived_seed(0, "epoch1"),
    }
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "epoch", 1) == derived_seed(0, "epoch", "1")
