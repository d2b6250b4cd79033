"""The texts of an evaluation: each distinct prompt with completion goes through the model once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward.foreign import ForeignScorer
from reward.texts import TextScorer, context_of, score_rows, token_row
from rlhf.core.batching import token_budget_batches
from rlhf.core.metrics import progress
from rlhf.core.records import Message, Prompt, content_id

BATCHES_PER_CALL = 16


class TextPool:
    """rows: token ids of every distinct text, in the tokens of one reward model. completion_tokens: how many of each
    row are the completion's own, without an end token; prompt_tokens: the others. max_tokens: the model's context."""

    def __init__(self, scorer: TextScorer) -> None:
        self.scorer = scorer
        self.max_tokens = context_of(scorer)
        self.rows: list[list[int]] = []
        self.prompt_tokens: list[int] = []
        self.completion_tokens: list[int] = []
        self._known: dict[str, int] = {}

    def add(self, prompt: Sequence[Message], text: str) -> int | None:
        """The row number of a prompt with a finished completion; None where it is longer than the model's context.

        Raises DataError where the model's chat template refuses the prompt.
        """
        # Not validated again: what is compared may hold what no new prompt may, such as an empty last message.
        row = token_row(self.scorer, Prompt.model_construct(prompt_id="", messages=tuple(prompt)), text)
        if len(row) > self.max_tokens:
            return None
        name = content_id("row", row)
        if name not in self._known:
            self._known[name] = len(self.rows)
            self.rows.append(row)
            self.completion_tokens.append(min(self.num_tokens(text), len(row)))
            self.prompt_tokens.append(len(row) - self.completion_tokens[-1])
        return self._known[name]

    def num_tokens(self, text: str) -> int:
        """Tokens of a completion on its own, without an end token."""
        if isinstance(self.scorer, ForeignScorer):
            return len(self.scorer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return len(self.scorer.backbone.codec.completion_ids(text, finished=False))

    def score(self, max_batch_tokens: int) -> np.ndarray:
        """Raw scores [N] of all rows, by token budget, behind a progress bar."""
        scores_N = np.full(len(self.rows), np.nan)
        batches = token_budget_batches([len(row) for row in self.rows], max_batch_tokens)
        with progress("texts", len(self.rows), stage="reward-eval") as tracker:
            for start in range(0, len(batches), BATCHES_PER_CALL):
                indices = [i for batch in batches[start : start + BATCHES_PER_CALL] for i in batch]
                part = [self.rows[i] for i in indices]
                scores_N[indices] = score_rows(self.scorer, part, max_tokens=max_batch_tokens).numpy()
                tracker.advance(len(indices))
        return scores_N
