"""Decoding by transformers' own `generate`, as a reference for this project's sampler.

Slower, and it keeps nothing but tokens and log-probabilities: prompts are padded on the left, rows that have
ended are decoded on until the last one ends, and a prompt is computed once for each of its completions. What is
drawn at each place is decided by the same function of the same numbers, so both engines give the same tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

# (tokens, their log-probabilities, whether something ended the completion before the limit)
Generated = tuple[list[int], list[float], bool]


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_completion_tokens: int,
    *,
    end_token_ids: Sequence[int],
    draw: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    ended_by_text: Callable[[Sequence[int]], bool] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> list[Generated]:
    """One completion for each prompt, all in one batch.

    draw: logits [B, V] in fp32 and the position of the token in its completion, 0 for the first -> token ids [B]
    and their log-probability [B]. ended_by_text and on_step are those of `rlhf.core.sampler.sample`.
    """
    width = max(len(ids) for ids in prompts)
    tokens_BS = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask_BS = torch.zeros_like(tokens_BS)
    for i, ids in enumerate(prompts):
        tokens_BS[i, width - len(ids) :] = torch.tensor(ids)
        mask_BS[i, width - len(ids) :] = 1
    chosen = _Chosen(draw)
    with _own_defaults_only(model), warnings.catch_warnings():
        # Behind virtual tokens peft drops the positions; rows of one length need none.
        warnings.filterwarnings("ignore", message="Position ids are not supported")
        model.generate(
            tokens_BS.to(model.device),
            attention_mask=mask_BS.to(model.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max_completion_tokens,
                eos_token_id=list(end_token_ids) or None,
                pad_token_id=0,  # what a row that has ended is fed with; nobody reads what comes of it
            ),
            logits_processor=[chosen],
            stopping_criteria=[_Ended(width, ended_by_text, on_step)],
        )
    tokens_BT = torch.stack(chosen.tokens, dim=1).tolist()
    logprobs_BT = torch.stack(chosen.logprobs, dim=1).tolist()
    ends = frozenset(end_token_ids)
    return [
        _up_to_its_end(tokens, logprobs, ends, ended_by_text)
        for tokens, logprobs in zip(tokens_BT, logprobs_BT, strict=True)
    ]


def _up_to_its_end(
    tokens: list[int],
    logprobs: list[float],
    ends: frozenset[int],
    ended_by_text: Callable[[Sequence[int]], bool] | None,
) -> Generated:
    """A row without what was drawn after its end, while others went on."""
    for count in range(1, len(tokens) + 1):
        row = tokens[:count]
        if row[-1] in ends or (ended_by_text is not None and ended_by_text(row)):
            return row, logprobs[:count], True
    return tokens, logprobs, False


@contextmanager
def _own_defaults_only(model: Any) -> Iterator[None]:
    """Without the model's generation settings: penalties or forbidden tokens among them would change the logits."""
    theirs, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = theirs


class _Chosen(LogitsProcessor):
    """Leaves `generate` nothing to choose: all scores but that of the drawn token become -inf."""

    def __init__(self, draw: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
        self._draw = draw
        self.tokens: list[Tensor] = []
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens_B, logprobs_B = self._draw(scores.float(), len(self.tokens))
        self.tokens.append(tokens_B)
        self.logprobs.append(logprobs_B)
        return torch.full_like(scores, float("-inf")).scatter(1, tokens_B[:, None], 0.0)


class _Ended(StoppingCriteria):
    """Says after each token which rows the text rule ends."""

    def __init__(
        self, width: int, ended_by_text: Callable[[Sequence[int]], bool] | None, on_step: Callable[[], None]
    ) -> None:
        self._width, self._ended_by_text, self._on_step = width, ended_by_text, on_step

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self._on_step()
        ended = [False] * len(input_ids)
        if self._ended_by_text is not None:
            ended = [self._ended_by_text(row) for row in input_ids[:, self._width :].tolist()]
        return torch.tensor(ended, device=input_ids.device)
