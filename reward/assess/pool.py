"""The texts of an evaluation: each distinct prompt with completion goes through the model once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward.score import RewardScorer
from rlhf.core.batching import token_budget_batches
from rlhf.core.chat import ChatCodec
from rlhf.core.metrics import progress
from rlhf.core.records import Message, content_id
from rlhf.core.sequences import Sequences

BATCHES_PER_CALL = 16


class TextPool:
    """rows: token ids of every distinct text. prompt_tokens and completion_tokens: their parts, without the end
    token. max_tokens: texts that are longer, end token included, are refused."""

    def __init__(self, codec: ChatCodec, max_tokens: int) -> None:
        self.codec, self.max_tokens = codec, max_tokens
        self.rows: list[list[int]] = []
        self.prompt_tokens: list[int] = []
        self.completion_tokens: list[int] = []
        self._known: dict[str, int] = {}
        self._prompts: dict[tuple[Message, ...], list[int]] = {}

    def add(self, prompt: Sequence[Message], text: str, *, max_tokens: int | None = None) -> int | None:
        """The row number of a prompt with a finished completion; None where it is too long.

        Raises DataError where the model's chat template refuses the prompt.
        """
        key = tuple(prompt)
        if key not in self._prompts:
            self._prompts[key] = self.codec.prompt_ids(key)
        prompt_ids, completion_ids = self._prompts[key], self.codec.completion_ids(text)
        row = [*prompt_ids, *completion_ids]
        if len(row) > min(max_tokens or self.max_tokens, self.max_tokens):
            return None
        name = content_id("row", row)
        if name not in self._known:
            self._known[name] = len(self.rows)
            self.rows.append(row)
            self.prompt_tokens.append(len(prompt_ids))
            self.completion_tokens.append(len(completion_ids) - 1)
        return self._known[name]

    def score(self, scorer: RewardScorer, max_batch_tokens: int) -> np.ndarray:
        """Raw scores [N] of all rows, by token budget, behind a progress bar."""
        scores_N = np.full(len(self.rows), np.nan)
        batches = token_budget_batches([len(row) for row in self.rows], max_batch_tokens)
        with progress("texts", len(self.rows), stage="reward-eval") as tracker:
            for start in range(0, len(batches), BATCHES_PER_CALL):
                indices = [i for batch in batches[start : start + BATCHES_PER_CALL] for i in batch]
                part = Sequences(
                    scorer.backbone, [self.rows[i] for i in indices], max_tokens=max_batch_tokens, max_bytes=0
                )
                scores_N[indices] = scorer.score_all(part).numpy()
                tracker.advance(len(indices))
        return scores_N
