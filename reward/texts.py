"""One way to ask either kind of reward model about texts: ours, or a classifier of another framework."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from reward.foreign import ForeignScorer
from reward.score import RewardScorer
from rlhf.core.errors import DataError
from rlhf.core.records import Prompt
from rlhf.core.sequences import Sequences

TextScorer = RewardScorer | ForeignScorer


def context_of(scorer: TextScorer) -> int:
    """The longest row that the model reads, in tokens."""
    return scorer.max_tokens if isinstance(scorer, ForeignScorer) else scorer.backbone.codec.max_tokens


def token_row(scorer: TextScorer, prompt: Prompt, text: str) -> list[int]:
    """Token ids of a prompt and a finished completion, however long.

    Raises DataError where a chat template refuses the prompt, or where there is no token at all.
    """
    if isinstance(scorer, ForeignScorer):
        row = scorer.row(prompt, text)
    else:
        codec = scorer.backbone.codec
        row = [*codec.prompt_ids(prompt.messages), *codec.completion_ids(text)]
    if not row:
        raise DataError(f"prompt {prompt.prompt_id} and its completion have no tokens")
    return row


def shortened(scorer: TextScorer, row: list[int]) -> list[int]:
    """The row without so much of its beginning as does not fit."""
    return scorer.cut(row) if isinstance(scorer, ForeignScorer) else row[-context_of(scorer) :]


def score_rows(scorer: TextScorer, rows: Sequence[list[int]], *, max_tokens: int) -> Tensor:
    """Raw scores [N] of token rows that fit, by token budget, on the CPU."""
    if isinstance(scorer, ForeignScorer):
        return scorer.score_rows(rows, max_tokens=max_tokens)
    return scorer.score_all(Sequences(scorer.backbone, rows, max_tokens=max_tokens, max_bytes=0))
