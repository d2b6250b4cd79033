"""What tuning took away: how surprising general text, and what the base itself says, have become.

On general text the measure is the rise of the negative log-likelihood per token. On completions that the base draws
itself (temperature 1, fixed seed) the same rise is an unbiased estimate of KL(base || tuned) per token: how far the
tuned model has left what the base would have said, whatever anybody thinks of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.core.figures import flat
from rlhf.core.settings import SamplingSettings
from rlhf.core.stats import bootstrap_sums
from sft.assess.compare import difference, nll_columns, perplexity
from sft.assess.encode import Window
from sft.assess.overlap import ratio
from sft.assess.rows import Text
from sft.assess.subjects import Subject, TokenRow

MAX_OWN_TOKENS = 64
PROMPT_TOKENS = 16
MIN_SOURCE_TEXTS = 5
NUM_SHOWN = 5
MAX_SHOWN_CHARS = 400


@dataclass(frozen=True)
class Remembered:
    """Likelihoods [tokens] of each row before and after. groups: the text that a row is of."""

    rows: Sequence[TokenRow]
    groups: Sequence[str]
    before: Sequence[np.ndarray]
    after: Sequence[np.ndarray]


def own_completions(base: Subject, texts: Sequence[Text], number: int, seed: int) -> list[TokenRow]:
    """What the base says when it is left alone: completions of the beginnings of general texts, or of nothing (the bos
    token) where there are none. Empty where the tokenizer has no bos token either."""
    codec = base.codec
    bos = codec.tokenizer.bos_token_id
    head = [] if bos is None else [bos]
    room = max(1, min(MAX_OWN_TOKENS, codec.max_tokens // 2))
    prompts = []
    for text in texts[:number]:
        ids = codec.completion_ids(text.text, finished=False)
        prompts.append(
            [*head, *ids[: min(PROMPT_TOKENS, codec.max_tokens - room - 1, max(1, len(ids) // 2))]]
        )
    if not prompts and head:
        prompts = [list(head)] * number
    if not prompts:
        return []
    prompts = [prompts[i % len(prompts)] for i in range(number)]
    sampling = SamplingSettings(temperature=1.0, max_completion_tokens=room)
    drawn = base.answers(prompts, sampling, seed, "its own completions")
    return [
        TokenRow([*ids, *answer.tokens], len(ids))
        for ids, answer in zip(prompts, drawn, strict=True)
        if answer.tokens
    ]


def remember(
    base: Subject, tuned: Subject, windows: Sequence[Window], shown: Sequence[Text], title: str
) -> Remembered:
    """Both models on the same pieces of text."""
    rows = [window.row for window in windows]
    groups = [shown[window.place].group_id for window in windows]
    return Remembered(rows, groups, base.nll(rows, title), tuned.nll(rows, title))


def remember_own(base: Subject, tuned: Subject, rows: Sequence[TokenRow]) -> Remembered:
    """Both models on what the base said."""
    groups = [str(i) for i in range(len(rows))]
    title = "the base's completions"
    return Remembered(rows, groups, base.nll(rows, title), tuned.nll(rows, title))


def rise(found: Remembered, name: str, seed: int) -> dict[str, float | None]:
    """Perplexity after (`name`) and before (`name_base`), and the rise in nats per token (`name_rise`)."""
    before, after = nll_columns(found.before), nll_columns(found.after)
    figures: dict[str, float | None] = {}
    for end, own in (("", after), ("_base", before)):
        figures |= flat(
            f"{name}{end}", perplexity(bootstrap_sums(own, ratio, groups=found.groups, seed=seed))
        )
    return figures | flat(f"{name}_rise", difference(after, before, ratio, found.groups, seed))


def by_source(found: Remembered, texts: Sequence[Text], seed: int) -> list[dict[str, Any]]:
    """The rise per source of the texts, the largest first; nothing where there is one source only."""
    source_of = {text.group_id: text.source or "(no source)" for text in texts}
    rows: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(found.groups):
        rows[source_of[group]].append(place)
    if len(rows) < 2:
        return []
    figures: list[dict[str, Any]] = []
    for source, places in rows.items():
        part = Remembered(*([column[i] for i in places] for column in _columns(found)))
        number = len(set(part.groups))
        row = {"source": source, "num_texts": number, "small": number < MIN_SOURCE_TEXTS}
        figures.append(row | rise(part, "perplexity", seed))
    return sorted(figures, key=lambda row: -row["perplexity_rise"])


def _columns(found: Remembered) -> tuple[Sequence[Any], ...]:
    return found.rows, found.groups, found.before, found.after


def most_lost(found: Remembered, texts: Sequence[Text]) -> list[dict[str, Any]]:
    """The texts that have become more surprising than all others, by nats per token."""
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    for group, before, after in zip(found.groups, found.before, found.after, strict=True):
        sums[group] += (before.sum(), after.sum(), len(before))
    text_of = {text.group_id: text for text in texts}
    worst = sorted(sums, key=lambda group: -(sums[group][1] - sums[group][0]) / sums[group][2])
    return [
        {
            "text": text_of[group].text[:MAX_SHOWN_CHARS],
            "source": text_of[group].source,
            "nats_before": float(sums[group][0] / sums[group][2]),
            "nats_after": float(sums[group][1] / sums[group][2]),
        }
        for group in worst[:NUM_SHOWN]
        if sums[group][1] > sums[group][0]
    ]
