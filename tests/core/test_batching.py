"""Micro-batches by token budget, and the ragged sequences they are cut from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rlhf.core.backbone import Backbone
from rlhf.core.batching import token_budget_batches
from rlhf.core.sequences import Sequences
from rlhf.core.settings import LoraSettings


def test_groups_by_hand() -> None:
    # longest first 7, 5, 5, 3, 2, 1 with a budget of 10: 7 alone (2 x 7 = 14), 5 + 5 = 2 x 5, then 3 x 3 = 9
    assert token_budget_batches([5, 1, 7, 3, 5, 2], 10) == [[2], [0, 4], [3, 5, 1]]


def test_a_row_over_the_budget_goes_alone_and_nothing_is_lost() -> None:
    lengths = [40, 3, 12, 12, 9, 1, 1, 30]
    batches = token_budget_batches(lengths, 16)
    assert batches[:2] == [[0], [7]]
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 16 for b in batches)
    assert token_budget_batches([], 16) == []


def test_groups_are_of_like_size() -> None:
    # 80 tokens hold 8 of 9 rows; 8 + 1 would make a second pass for one row, 5 + 4 needs no more passes
    assert [len(batch) for batch in token_budget_batches([10] * 9, 80)] == [5, 4]
    # of 32 rows at most 7 fit: five groups, which 7 7 7 7 4 fill and no smaller budget does
    assert [len(batch) for batch in token_budget_batches([33] * 32, 7 * 33)] == [7, 7, 7, 7, 4]
    assert [len(batch) for batch in token_budget_batches([33] * 30, 7 * 33)] == [6] * 5


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens is 0"):
        token_budget_batches([1], 0)


ROWS = [[5, 6, 7], [9, 10, 11, 12, 13, 14, 15], [20]]


@pytest.mark.parametrize("mode", ["cached", "over budget", "no trunk"])
def test_sequences_give_each_row_the_hidden_states_it_has_alone(
    load_tiny: Callable[..., Backbone], mode: str
) -> None:
    backbone = load_tiny()
    role = backbone.add_role("reward", LoraSettings(r=4), seed=0, scalar_head=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in role.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    expected = [backbone.hidden("reward", torch.tensor([row]))[0, -1] for row in ROWS]
    if mode != "no trunk":
        assert backbone.enable_trunk(16).startswith("trunk cache on")
    done: list[int] = []
    sequences = Sequences(
        backbone, ROWS, max_tokens=8, max_bytes=0 if mode == "over budget" else 1 << 20, on_batch=done.append
    )
    assert done == ([1, 2] if mode == "cached" else [])
    batch = sequences.batch([2, 0, 1])
    assert (batch.trunk_BSH is None) == (mode == "no trunk")
    assert batch.lengths_B.tolist() == [1, 3, 7]
    torch.testing.assert_close(
        sequences.last_hidden("reward", batch),
        torch.stack([expected[2], expected[0], expected[1]]),
        rtol=1e-5,
        atol=1e-5,
    )
