"""Near-duplicates of many rows: the same families as the measured ones of rlhf.core, by hashing on disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from rlhf.core.near_duplicates import near_duplicate_groups, similarity
from sft.prepare.families import Components, near_families
from sft.prepare.scratch import first_of_each
from sft.prepare.signatures import Signatures, bands_for


def roots(folder: Path, texts: list[str], threshold: float = 0.8) -> list[int]:
    found, _ = near_families(
        folder / "bands",
        len(texts),
        lambda: iter(texts),
        lambda i: texts[i],
        threshold=threshold,
        seed=0,
        advance=lambda _: None,
    )
    assert not (folder / "bands").exists()
    return found.tolist()


def made_up(number: int) -> list[str]:
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghijklmnop") for _ in range(rng.randint(2, 9))) for _ in range(2000)]
    texts: list[str] = []
    for _ in range(number):
        if texts and rng.random() < 0.3:
            copy = rng.choice(texts).split()
            copy[rng.randrange(len(copy))] = rng.choice(words)
            texts.append(" ".join(copy))
        else:
            texts.append(" ".join(rng.choice(words) for _ in range(rng.randint(3, 40))))
    return texts


def test_the_families_are_those_of_the_measured_similarity(tmp_path: Path) -> None:
    texts = [*made_up(1500), "a", "b", "A ", "", "ab", "\u00e9" * 4]
    first: dict[int, int] = {}
    wanted = [first.setdefault(group, place) for place, group in enumerate(near_duplicate_groups(texts))]
    assert len(set(wanted)) < len(texts) - 200
    found = roots(tmp_path, texts)
    # a pair at the threshold is missed once in a thousand times, here and there
    assert sum(a != b for a, b in zip(wanted, found, strict=True)) <= 2


def test_a_family_is_called_after_its_first_text(tmp_path: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog and runs away into the dark wood"
    texts = ["something else entirely, of another kind", text, f"{text}.", f"x {text}", "something else"]
    assert roots(tmp_path, texts) == [0, 1, 1, 1, 4]


def test_signatures_estimate_the_similarity(tmp_path: Path) -> None:
    texts = made_up(60)
    pair = (
        "one two three four five six seven eight nine ten",
        "one two three four five six seven eight nine zen",
    )
    signatures = Signatures(tmp_path / "s", 0.5, seed=1)
    assert sum(signatures.fill([*pair, *texts])) == 62
    estimate = signatures.estimate(np.array([0, 2]), np.array([1, 3]))
    # 50 minima: the deviation is 0.07 at most
    assert estimate[0] == pytest.approx(similarity(*pair), abs=0.2)
    assert estimate[1] == pytest.approx(similarity(texts[0], texts[1]), abs=0.2)


def test_bands_miss_a_pair_at_the_threshold_once_in_a_thousand_times() -> None:
    for threshold in (0.3, 0.5, 0.8, 0.9, 1.0):
        number, length = bands_for(threshold)
        assert (1 - threshold**length) ** number <= 1e-3
        assert number * length <= 128


def test_components_join_to_the_first() -> None:
    components = Components(5)
    components.join(4, 2)
    components.join(2, 1)
    assert components.roots().tolist() == [0, 1, 1, 3, 1]


def test_first_of_each() -> None:
    digests = np.array([[1, 2], [1, 3], [1, 2], [0, 0], [1, 3]], dtype=np.uint64)
    assert first_of_each(digests).tolist() == [0, 1, 0, 3, 1]
    assert first_of_each(digests[:0]).tolist() == []
