"""Near-duplicates: by hand, against all pairs measured one by one, and on planted copies."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import cache
from itertools import combinations

import pytest

from rlhf.core.near_duplicates import NearDuplicate, near_duplicate_groups, near_duplicate_pairs
from rlhf.demo import corpus


@cache
def shingles(text: str) -> frozenset[str]:
    return frozenset(text[i : i + 5] for i in range(len(text) - 4))


def jaccard(first: str, second: str) -> float:
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def random_texts(num: int, num_words: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    vocabulary = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(2000)
    ]
    return [" ".join(rng.choices(vocabulary, k=num_words)) for _ in range(num)]


def by_all_pairs(texts: list[str], threshold: float) -> list[int]:
    """Components by repeated renumbering; texts of lower case with single spaces."""
    group = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if group[i] != group[j] and jaccard(texts[i], texts[j]) >= threshold:
            old, new = max(group[i], group[j]), min(group[i], group[j])
            group = [new if g == old else g for g in group]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(g, len(numbers)) for g in group]


def test_similarity_by_hand():
    """'abcdefgh' has abcde bcdef cdefg defgh, 'abcdefgx' has abcde bcdef cdefg defgx: 3 of 5 are shared."""
    texts = ["abcdefgh", "abcdefgx"]
    assert list(near_duplicate_pairs(texts, threshold=0.6)) == [NearDuplicate(0, 1, 0.6)]
    assert near_duplicate_groups(texts, threshold=0.6) == [0, 0]
    assert near_duplicate_groups(texts, threshold=0.61) == [0, 1]


def test_equal_after_folding_is_equal_at_every_threshold():
    texts = ["Is tea hot?", "is  TEA\nhot? ", "Is tea ｈｏｔ？", "is tea hot", "Straße", "STRASSE"]
    assert near_duplicate_groups(texts, threshold=1.0) == [0, 0, 0, 1, 2, 2]
    pairs = list(near_duplicate_pairs(texts, threshold=1.0))
    assert pairs == [NearDuplicate(0, 1, 1.0), NearDuplicate(0, 2, 1.0), NearDuplicate(4, 5, 1.0)]


def test_digits_are_characters_like_others():
    """One digit of two is 5 shingles of n: in a long text the rest prevails, in a short one it does not."""
    short, long = (
        "order {}",
        "I am still waiting for my kettle and would like to know where it is. My order is {}.",
    )
    assert near_duplicate_groups([short.format(12), short.format(13)]) == [0, 1]
    assert near_duplicate_groups([long.format(12), long.format(13)]) == [0, 0]
    assert near_duplicate_groups([short.format(1234), short.format(1299)]) == [0, 1]


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.95])
def test_planted_copies_are_found_and_nothing_else(threshold):
    """Chains of copies, each with a word more replaced, so that similarities lie on both sides of any threshold."""
    rng = random.Random(1)
    texts = random_texts(80, 25, seed=2)
    for text in texts[:20]:
        words = text.split()
        for _ in range(3):
            words[rng.randrange(len(words))] = "replaced" + str(rng.randrange(10))
            texts.append(" ".join(words))
    rng.shuffle(texts)
    expected = by_all_pairs(texts, threshold)
    assert near_duplicate_groups(texts, threshold=threshold) == expected
    pairs = list(near_duplicate_pairs(texts, threshold=threshold))
    assert pairs == [
        NearDuplicate(i, j, pytest.approx(similarity))
        for j in range(len(texts))
        for i in range(j)
        if (similarity := jaccard(texts[i], texts[j])) >= threshold
    ]
    assert (max(expected) + 1 < len(texts)) == bool(pairs)


def test_the_order_of_the_texts_only_renumbers():
    texts = [prompt.text for prompt in corpus.make_prompts(0, 400, name="rated", heldout=False)]
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    straight = near_duplicate_groups(texts, threshold=0.6)
    mixed = near_duplicate_groups([texts[i] for i in order], threshold=0.6)
    back = [0] * len(texts)
    for place, i in enumerate(order):
        back[i] = mixed[place]
    assert len(set(zip(straight, back, strict=True))) == len(set(straight)) == len(set(back)) < len(texts)


def test_prompts_of_one_template_do_not_become_one_group():
    texts = [prompt.text for prompt in corpus.make_prompts(0, 1000, name="rated", heldout=False)]
    groups = near_duplicate_groups(texts)
    assert max(groups.count(g) for g in set(groups)) <= 3
    assert len(set(groups)) > 980


def test_short_empty_and_strange_texts():
    texts = ["", "  ", "a", "ab", "a", "\ud800", "", "日本の首都はどこですか。", "日本の首都はどこですか？"]
    # 12 characters, the last one differs: 7 of 9 shingles are shared
    assert near_duplicate_groups(texts, threshold=0.7) == [0, 0, 1, 2, 1, 3, 0, 4, 4]
    assert near_duplicate_groups([]) == []
    assert list(near_duplicate_pairs([])) == []
    long = "x" * 20_000 + " ".join(map(str, range(20_000)))
    assert near_duplicate_groups([long, long + "!", long[:50_000]]) == [0, 0, 1]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(ValueError, match=r"above 0 and at most 1"):
        near_duplicate_groups(["a"], threshold=threshold)


def test_another_process_finds_the_same():
    program = (
        "from rlhf.core.near_duplicates import near_duplicate_groups as f\n"
        "print(f(['the quick brown fox jumps over it', 'the quick brown fox jumps over me', 'x'], threshold=.7))"
    )
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "[0, 0, 1]"
