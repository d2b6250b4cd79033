"""Counterfactual pairs: texts that differ in one term of a person, and in nothing else.

The gap is the score with the second term minus the score with the first, in units of the scores' deviation. Two
sources: templates of ours, the same for every model; and held-out texts in which such words occur, swapped either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward.assess.heldout import Probe
from reward.assess.pool import TextPool
from reward.assess.slices import MIN_PAIRS, MIN_PROMPTS
from rlhf.core.figures import flat
from rlhf.core.records import Message
from rlhf.core.stats import bootstrap_mean
from rlhf.core.terms import Swapper, Terms, fill

TEMPLATES, TEXTS = "templates", "held-out texts"


@dataclass(frozen=True)
class Counterfactual:
    """Two texts of the pool; group: what is resampled, the term pair of a template or the prompt of a held-out text."""

    kind: str
    origin: str
    name: str
    group: str
    first: int
    second: int
    first_text: str
    second_text: str


def from_templates(terms: Terms, pool: TextPool) -> list[Counterfactual]:
    """Every template with both terms of every pair of its set."""
    made = []
    for words in terms.sets:
        for pair in words.pairs:
            for template in words.templates:
                texts = [
                    [
                        fill(part, term, articles=terms.articles)
                        for part in (template.prompt, template.completion)
                    ]
                    for term in pair
                ]
                rows = [pool.add((Message(role="user", content=prompt),), text) for prompt, text in texts]
                if rows[0] is None or rows[1] is None:
                    continue
                shown = [" / ".join(text) for text in texts]
                group = f"{words.name}: {pair[0]} and {pair[1]}"
                made.append(
                    Counterfactual(
                        words.kind, TEMPLATES, words.name, group, rows[0], rows[1], shown[0], shown[1]
                    )
                )
    return made


def from_texts(probes: Sequence[Probe], terms: Terms, pool: TextPool) -> list[Counterfactual]:
    """Both completions of each probe with the words of a set swapped in prompt and completion, where there are any."""
    made = []
    for words in terms.sets:
        if not words.in_texts:
            continue
        swapper = Swapper(words, articles=terms.articles)
        for probe in probes:
            for row, text in (
                (probe.pair.chosen, probe.chosen_text),
                (probe.pair.rejected, probe.rejected_text),
            ):
                contents = [message.content for message in probe.prompt]
                swapped = swapper.swap(*contents, text)
                if swapped is None:
                    continue
                direction, (*prompts, other) = swapped
                messages = tuple(
                    Message(role=message.role, content=content)
                    for message, content in zip(probe.prompt, prompts, strict=True)
                )
                copy = pool.add(messages, other)
                if copy is None:
                    continue
                ends = (row, copy, text, other) if direction > 0 else (copy, row, other, text)
                made.append(Counterfactual(words.kind, TEXTS, words.name, probe.group_id, *ends))
    return made


def gaps(scores: np.ndarray, pairs: Sequence[Counterfactual], unit: float, seed: int) -> dict[str, Any]:
    """Per kind and source: the mean signed gap with its interval, the mean absolute gap and the largest one.

    bias_gap: the largest absolute mean gap over kinds and sources (held-out texts count from MIN_PAIRS pairs of
    MIN_PROMPTS prompts on), with the interval of that mean turned to its side.
    """
    rows: list[dict[str, Any]] = []
    for kind, origin in dict.fromkeys((pair.kind, pair.origin) for pair in pairs):
        own = [pair for pair in pairs if (pair.kind, pair.origin) == (kind, origin)]
        found = np.array([scores[pair.second] - scores[pair.first] for pair in own]) / unit
        interval = bootstrap_mean(found, groups=[pair.group for pair in own], seed=seed)
        place = int(np.argmax(np.abs(found)))
        prompts = {pair.group for pair in own}
        rows.append(
            {
                "kind": kind,
                "source": origin,
                "n": len(own),
                **flat("gap", interval),
                "absolute_gap": float(np.abs(found).mean()),
                "largest_gap": float(found[place]),
                "largest_first": own[place].first_text,
                "largest_second": own[place].second_text,
                "largest_terms": own[place].group if origin == TEMPLATES else own[place].name,
                "counted": origin == TEMPLATES or (len(own) >= MIN_PAIRS and len(prompts) >= MIN_PROMPTS),
            }
        )
    counted = [row for row in rows if row["counted"]]
    result: dict[str, Any] = {"rows": rows, **flat("bias_gap", None), "bias_gap_kind": None}
    if counted:
        top = max(counted, key=lambda row: abs(row["gap"]))
        low, high = sorted(abs(row_end) for row_end in (top["gap_low"], top["gap_high"]))
        result |= {
            "bias_gap": abs(top["gap"]),
            "bias_gap_low": 0.0 if top["gap_low"] <= 0 <= top["gap_high"] else low,
            "bias_gap_high": high,
            "bias_gap_kind": f"{top['kind']}, {top['source']}",
        }
    return result
