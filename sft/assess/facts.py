"""Factual drift: a fixed set of questions before and after tuning, and how well answers rest on a given context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlhf.core.figures import flat
from rlhf.core.grounding import grounded_share
from rlhf.core.stats import bootstrap_mean
from sft.assess.overlap import exact_match, holds_answer
from sft.assess.rows import Item, words_of

RightWhen = Literal["contains", "exact"]


@dataclass(frozen=True)
class Answered:
    """Answers of both models to the same items."""

    items: Sequence[Item]
    before: Sequence[str]
    after: Sequence[str]


def is_right(answer: str, references: Sequence[str], when: RightWhen) -> bool:
    """Whether an answer is, or holds, one of the references after normalisation."""
    return holds_answer(answer, references) if when == "contains" else bool(exact_match(answer, references))


def drift(found: Answered, when: RightWhen, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(figures, the answers that changed sides: those that turned wrong first).

    facts and facts_base: share of right answers; facts_gain: their paired difference; facts_lost and facts_won: how
    many turned from right to wrong and back; facts_changed: share of answers whose text is another one.
    """
    right = np.array(
        [
            [is_right(text, item.references, when) for text in (before, after)]
            for item, before, after in zip(found.items, found.before, found.after, strict=True)
        ],
        dtype=float,
    )
    groups = [item.group_id for item in found.items]
    before, after = right[:, 0], right[:, 1]
    figures: dict[str, Any] = {
        **flat("facts", bootstrap_mean(after, groups=groups, seed=seed)),
        **flat("facts_base", bootstrap_mean(before, groups=groups, seed=seed)),
        **flat("facts_gain", bootstrap_mean(after - before, groups=groups, seed=seed)),
        "facts_lost": int(((before == 1) & (after == 0)).sum()),
        "facts_won": int(((before == 0) & (after == 1)).sum()),
        "facts_changed": float(np.mean([a != b for a, b in zip(found.before, found.after, strict=True)])),
        "num_questions": len(found.items),
    }
    turned = [
        {
            "line": item.line,
            "question": words_of(item.prompt),
            "expected": item.reference,
            "before": found.before[place],
            "after": found.after[place],
            "turned": "wrong" if before[place] else "right",
        }
        for place, item in enumerate(found.items)
        if before[place] != after[place]
    ]
    return figures, sorted(turned, key=lambda row: row["turned"] != "wrong")


def groundedness(found: Answered, seed: int) -> dict[str, Any] | None:
    """How much of the answers' content stands in the context of their items (see `rlhf.core.grounding`), before and
    after, beside that of the references; None where no item has a context."""
    places = [place for place, item in enumerate(found.items) if (item.context or "").strip()]
    if not places:
        return None
    groups = [found.items[place].group_id for place in places]

    def shares(texts: Sequence[str]) -> np.ndarray:
        return np.array(
            [
                grounded_share(found.items[p].context or "", text)
                for p, text in zip(places, texts, strict=True)
            ]
        )

    before, after = (shares([texts[p] for p in places]) for texts in (found.before, found.after))
    reference = shares([found.items[p].reference for p in places])
    return {
        **flat("grounded", bootstrap_mean(after, groups=groups, seed=seed)),
        **flat("grounded_base", bootstrap_mean(before, groups=groups, seed=seed)),
        **flat("grounded_gain", bootstrap_mean(after - before, groups=groups, seed=seed)),
        **flat("grounded_reference", bootstrap_mean(reference, groups=groups, seed=seed)),
        "num_contexts": len(places),
    }
