"""Recall and precision of a finder on the planted items and the look-alike lines."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from preparing.pii_fixture import Line
from sft.prepare.pii import Finder


class Measured(NamedTuple):
    """recall: planted items found with their kind and masked whole. precision: of all findings, those that are right.

    missed and wrong: examples. per_kind: kind -> (found, planted).
    """

    recall: float
    precision: float
    per_kind: dict[str, tuple[int, int]]
    missed: list[Line]
    wrong: list[tuple[str, str, str]]


def measure(finder: Finder, planted: list[Line], look_alikes: list[Line]) -> Measured:
    """A finding is right when its kind is the planted one and it lies within the planted item.

    An item is found when every letter and digit of it that is personal lies in findings of its kind; of a
    'password: ...' that is the value.
    """
    hits: Counter[str] = Counter()
    planted_of = Counter(line.kind for line in planted)
    missed, wrong, right = [], [], 0
    for line in [*planted, *look_alikes]:
        found = finder.find(line.text)
        at = line.text.find(line.item) if line.item else -1
        inside = [
            f
            for f in found
            if line.item and f.kind == line.kind and at <= f.start and f.end <= at + len(line.item)
        ]
        right += len(inside)
        wrong += [(f.kind, line.text[f.start : f.end], line.text) for f in found if f not in inside]
        if line.item:
            covered = sum(f.end - f.start for f in inside)
            needed = len(line.item) if line.kind != "KEY" else len(line.item) - len('SECRET_KEY = ""')
            if covered >= needed:
                hits[line.kind] += 1
            else:
                missed.append(line)
    recall = sum(hits.values()) / max(1, len(planted))
    precision = right / max(1, right + len(wrong))
    per_kind = {kind: (hits[kind], number) for kind, number in sorted(planted_of.items())}
    return Measured(recall, precision, per_kind, missed, wrong)
