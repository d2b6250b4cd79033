"""Splits by family, mixtures by weight, and the order of the training rows."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf.core.errors import ConfigError
from sft.prepare.mixture import ordered, parse_weights, quotas, sample_classes
from sft.prepare.splits import assign, families


def test_families_join_prompts_and_groups() -> None:
    # rows 0 and 1 have one prompt, 1 and 3 one group, 2 and 4 nothing in common with others
    groups = np.array([[0, 0], [5, 5], [0, 0], [5, 5], [6, 6]], dtype=np.uint64)
    assert families(np.array([7, 7, 9, 11, 13]), groups).tolist() == [0, 0, 2, 0, 4]


def test_a_family_is_in_one_split_and_the_shares_are_kept() -> None:
    roots = np.repeat(np.arange(0, 3000, 3), 3)
    names = [f"g{i}" for i in range(3000)]
    found = assign(roots, names, (0.8, 0.1, 0.1), seed=0)
    assert (found.reshape(-1, 3) == found.reshape(-1, 3)[:, :1]).all()
    shares = np.bincount(found) / len(found)
    # 1,000 families: three deviations are 3 * sqrt(0.1 * 0.9 / 1000) = 0.028
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    assert (assign(roots, names, (0.8, 0.1, 0.1), seed=1) != found).any()
    # a family keeps its split while others come
    assert (assign(roots[:300], names, (0.8, 0.1, 0.1), seed=0) == found[:300]).all()


def test_a_split_that_was_asked_for_gets_a_family() -> None:
    for seed in range(20):
        found = assign(np.arange(3), ["a", "b", "c"], (0.98, 0.01, 0.01), seed)
        assert sorted(found.tolist()) == [0, 1, 2]


def test_quotas_by_hand() -> None:
    # 2 : 1 of 100 and 80: 100 is the one that runs out, at 50 rows per weight
    assert quotas({0: 100, 1: 80}, {0: 2.0, 1: 1.0}, repeat=False) == {0: 100, 1: 50}
    # repeating: 80 rows per weight, so that none of the 80 is left out
    assert quotas({0: 100, 1: 80}, {0: 2.0, 1: 1.0}, repeat=True) == {0: 160, 1: 80}
    assert quotas({0: 100, 1: 80}, {0: 0.0, 1: 1.0}, repeat=False) == {0: 0, 1: 80}
    assert quotas({0: 3, 1: 0}, {0: 1.0, 1: 1.0}, repeat=False) == {0: 3, 1: 0}


def test_rows_are_drawn_by_a_seed_and_go_round_whole() -> None:
    rows, classes = np.arange(10, 16), np.array([0, 0, 0, 0, 1, 1])
    once = sample_classes(rows, classes, {0: 1.0, 1: 1.0}, repeat=False, seed=0)
    assert len(once) == 4
    assert set(once.tolist()) >= {14, 15}
    assert once.tolist() == sample_classes(rows, classes, {0: 1.0, 1: 1.0}, repeat=False, seed=0).tolist()
    twice = sample_classes(rows, classes, {0: 1.0, 1: 1.0}, repeat=True, seed=0)
    assert twice.tolist() == [10, 11, 12, 13, 14, 14, 15, 15]


def test_weights_are_read() -> None:
    assert parse_weights("a=2, b=0.5", ["a", "b", "c"]) == {"a": 2.0, "b": 0.5, "c": 1.0}
    wrong = {"d=1": "no source is called 'd'", "a=x": "NAME=NUMBER", "a": "NAME=NUMBER", "a=-1": "0 or more"}
    for text, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            parse_weights(text, ["a", "b"])
    with pytest.raises(ConfigError, match="weigh 0"):
        parse_weights("a=0", ["a"])


def test_curriculum_begins_with_the_easy_ones() -> None:
    rows, lengths, hard = np.array([0, 1, 2]), np.array([5, 3, 3]), np.array([0.1, 0.3, 0.2])
    assert ordered(rows, "keep", lengths, hard, 0).tolist() == [0, 1, 2]
    assert ordered(rows, "length", lengths, hard, 0).tolist() == [1, 2, 0]
    assert ordered(rows, "difficulty", lengths, hard, 0).tolist() == [0, 2, 1]
    many = np.arange(50)
    shuffled = ordered(many, "shuffle", lengths, hard, 0)
    assert sorted(shuffled.tolist()) == many.tolist()
    assert shuffled.tolist() != many.tolist()
