"""Scores of many texts with any reward model: each distinct prompt with completion goes through the model once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward.score import RewardScorer
from reward.texts import TextScorer, context_of, score_rows, token_row
from rlhf.core.batching import token_budget_batches
from rlhf.core.metrics import progress
from rlhf.core.records import Prompt, content_id
from rlhf.core.sequences import Sequences

BATCHES_PER_CALL = 16


class TextTable:
    """Distinct prompts with a completion, numbered in the order in which they came."""

    def __init__(self) -> None:
        self.items: list[tuple[Prompt, str]] = []
        self._known: dict[str, int] = {}

    def add(self, prompt: Prompt, text: str) -> int:
        """The number of a prompt with a completion."""
        key = content_id("text", [(m.role, m.content) for m in prompt.messages], text)
        if key not in self._known:
            self._known[key] = len(self.items)
            self.items.append((prompt, text))
        return self._known[key]


def score_table(
    scorer: TextScorer, table: TextTable, *, max_tokens: int, stage: str
) -> tuple[np.ndarray, np.ndarray]:
    """(raw scores [N], deviations of an ensemble's members [N], 0 without one). NaN where a text is too long.

    max_tokens: padded tokens per forward pass. Raises DataError where the model's chat template refuses a prompt.
    """
    rows = [token_row(scorer, prompt, text) for prompt, text in table.items]
    fitting = [i for i, row in enumerate(rows) if len(row) <= context_of(scorer)]
    scores_N, spreads_N = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    batches = token_budget_batches([len(rows[i]) for i in fitting], max_tokens)
    with progress("texts", len(fitting), stage=stage) as tracker:
        for start in range(0, len(batches), BATCHES_PER_CALL):
            part = [fitting[place] for batch in batches[start : start + BATCHES_PER_CALL] for place in batch]
            asked = [rows[i] for i in part]
            scores_N[part] = score_rows(scorer, asked, max_tokens=max_tokens).numpy()
            spreads_N[part] = _spreads(scorer, asked, max_tokens)
            tracker.advance(len(part))
    return scores_N, spreads_N


def _spreads(scorer: TextScorer, rows: Sequence[list[int]], max_tokens: int) -> np.ndarray:
    if not isinstance(scorer, RewardScorer) or scorer.scale.num_members == 1:
        return np.zeros(len(rows))
    sequences = Sequences(scorer.backbone, rows, max_tokens=max_tokens, max_bytes=0)
    found: np.ndarray = scorer.spread_all(sequences).numpy()
    return found
