"""One way to ask either kind of reward model about texts: ours, or a classifier of another framework."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from reward.foreign import Classifier, ForeignScorer, find_classifier, open_classifier
from reward.score import RewardScorer
from rlhf.core.adapters import base_path
from rlhf.core.backbone import Backbone
from rlhf.core.errors import DataError
from rlhf.core.inputs import find_adapter, find_model, model_name
from rlhf.core.records import Prompt
from rlhf.core.run import Launch
from rlhf.core.sequences import Sequences
from rlhf.core.settings import ModelSettings

TextScorer = RewardScorer | ForeignScorer


def find_scorer(text: str, launch: Launch) -> Classifier | Path:
    """The sequence-classification model or the adapter directory that was named. Raises what `find_classifier` and
    `find_adapter` raise."""
    return find_classifier(text, launch) or find_adapter(text, launch)


def load_scorer(
    found: Classifier | Path, settings: ModelSettings, launch: Launch, *, backbone: str | None = None
) -> TextScorer:
    """The reward model, ready to score. backbone: what an adapter sits on; None is the one that it names.

    Raises ModelError and CheckpointError.
    """
    if isinstance(found, Classifier):
        return open_classifier(found, settings)
    path = find_model(backbone, launch) if backbone else base_path(found, launch)
    return RewardScorer.attach(Backbone.load(path, settings, name=model_name(path, launch)), found)


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
