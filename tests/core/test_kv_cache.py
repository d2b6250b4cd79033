"""The key/value cache with room against transformers' own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlhf.core.backbone import Backbone
from rlhf.core.kv_cache import RoomyLayer, key_value_cache

LoadTiny = Callable[..., Backbone]


def states(tokens: int, seed: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, 3, tokens, 4, generator=generator)
    return keys, values


def test_tokens_go_into_room_that_is_taken_once() -> None:
    layer = RoomyLayer(8)
    assert layer.get_seq_length() == 0
    parts = [states(3, 0), states(1, 1), states(4, 2)]
    places = set()
    for number, part in enumerate(parts):
        keys, values = layer.update(*part)
        places.add((keys.data_ptr(), values.data_ptr()))
        for found, index in ((keys, 0), (values, 1)):
            expected = torch.cat([part[index] for part in parts[: number + 1]], dim=-2)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            assert found is (layer.keys, layer.values)[index]
    assert layer.get_seq_length() == 8
    assert len(places) == 1


def test_more_tokens_than_there_is_room_for_are_kept_all_the_same() -> None:
    layer = RoomyLayer(4)
    parts = [states(3, 0), states(2, 1), states(1, 2), states(7, 3)]
    for part in parts:
        keys, values = layer.update(*part)
    torch.testing.assert_close(keys, torch.cat([part[0] for part in parts], dim=-2), rtol=0, atol=0)
    torch.testing.assert_close(values, torch.cat([part[1] for part in parts], dim=-2), rtol=0, atol=0)
    assert layer.get_seq_length() == 13


def test_rows_are_kept_repeated_and_reordered_and_go_on_growing() -> None:
    layer, other = RoomyLayer(9), DynamicLayer()
    layer.batch_select_indices(torch.tensor([0]))  # nothing to select from yet
    for one in (layer, other):
        one.update(*states(3, 0))
        one.batch_select_indices(torch.tensor([1, 1, 0, 1]))
        one.update(*states(1, 1, rows=4))
        one.batch_select_indices(torch.tensor([3, 2]))
        one.update(*states(2, 2))
    assert layer.keys.shape == (2, 3, 6, 4)
    torch.testing.assert_close(layer.keys, other.keys, rtol=0, atol=0)
    torch.testing.assert_close(layer.values, other.values, rtol=0, atol=0)


def test_repeated_rows_do_not_share_their_memory() -> None:
    layer = RoomyLayer(4)
    layer.update(*states(2, 0, rows=1))
    layer.batch_select_indices(torch.tensor([0, 0]))
    keys, _ = layer.update(*states(1, 1))
    assert not torch.equal(keys[0, :, 2], keys[1, :, 2])


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "gpt2"])
def test_a_decode_with_it_is_a_decode_with_transformers_cache(load_tiny: LoadTiny, architecture: str) -> None:
    """Beyond the sliding windows of 8, with rows selected on the way and one token more than there is room for."""
    model = load_tiny(architecture).model
    caches = [DynamicCache(config=model.config), key_value_cache(model.config, 13)]
    kinds = [[type(layer).__name__ for layer in cache.layers] for cache in caches]
    assert [kind.replace("RoomyLayer", "DynamicLayer") for kind in kinds[1]] == kinds[0]
    assert ("RoomyLayer" in kinds[1]) == (architecture != "mistral")
    tokens = torch.randint(5, 200, (3, 14), generator=torch.Generator().manual_seed(0))
    logits: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for cache, found in zip(caches, logits, strict=True):
            rows = tokens
            found.append(model(rows[:, :10], past_key_values=cache, use_cache=True).logits)
            for position in range(10, 14):
                if position == 12:
                    keep = torch.tensor([2, 0])
                    cache.batch_select_indices(keep)
                    rows = rows[keep]
                step = model(rows[:, position : position + 1], past_key_values=cache, use_cache=True)
                found.append(step.logits)
        whole = model(tokens[[2, 0]]).logits[:, -1:]
    for expected, found in zip(*logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(logits[1][-1], whole, rtol=1e-4, atol=1e-4)
