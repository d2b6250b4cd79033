"""Comparisons with a planted preference, as token ids that both sides are given as they are. Torch-free."""

from __future__ import annotations

import math
import random

from bench.cases import BEGIN, END, NUM_SPECIAL, SHAPES, Case

# Words that occur; the upper half of them is wanted. Few enough for a small model to learn each one.
NUM_WORDS = 128
# Log-odds per unit of the difference in the share of wanted words: the better one is chosen 5 times of 6.
SHARPNESS = 12.0
Pair = tuple[list[int], list[int]]


def is_wanted(case: Case, token: int) -> bool:
    words = _words(case)
    return token in words and token >= words.start + len(words) // 2


def _words(case: Case) -> range:
    return range(NUM_SPECIAL, min(NUM_SPECIAL + NUM_WORDS, SHAPES[case.shape].vocabulary))


def pairs_of(case: Case, kind: str) -> list[Pair]:
    """(chosen, rejected) rows of prompt + completion + end token; kind is `train` or `held-out`.

    Each completion has a share of wanted words of its own. Which one is chosen is drawn with the probability of a
    Bradley-Terry model of that share, so nobody can be right about all of them.
    """
    rng = random.Random(f"pairs {kind} {case.seed}")
    words = _words(case)
    middle = words.start + len(words) // 2
    halves = (range(words.start, middle), range(middle, words.stop))

    def completion() -> tuple[list[int], float]:
        wanted = rng.uniform(0.2, 0.8)
        length = rng.randint(case.shortest, case.completion) - 1
        tokens = [rng.choice(halves[rng.random() < wanted]) for _ in range(length)]
        return tokens, sum(token >= middle for token in tokens) / length

    pairs = []
    for _ in range(case.pairs if kind == "train" else case.eval_prompts):
        prompt = [BEGIN, *(rng.choice(words) for _ in range(case.prompt - 1))]
        (one, share), (other, other_share) = completion(), completion()
        first_wins = rng.random() < 1 / (1 + math.exp(-SHARPNESS * (share - other_share)))
        rows = [[*prompt, *one, END], [*prompt, *other, END]]
        pairs.append((rows[0], rows[1]) if first_wins else (rows[1], rows[0]))
    return pairs


def num_steps(case: Case) -> int:
    return case.epochs * math.ceil(case.pairs / case.batch)


def accuracy(chosen: list[float], rejected: list[float]) -> tuple[float, float]:
    """(share of pairs whose chosen one scores higher, half width of its 95 % interval)."""
    right = [a > b for a, b in zip(chosen, rejected, strict=True)]
    mean = sum(right) / len(right)
    return mean, 1.96 * math.sqrt(mean * (1 - mean) / len(right))
