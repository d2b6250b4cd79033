"""What the peer is given so that it does the same work: imposed lengths, and a reward model that counts tokens."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from bench.cases import END, PAD, Case


class ImposedLengths(LogitsProcessor):
    """Lets each row draw its end token at its imposed position and never before."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.lengths = torch.tensor(case.lengths(), device=case.device)
        self.iteration = -1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = input_ids.shape[1] - self.case.prompt
        scores[:, [PAD, END]] = float("-inf")
        ending = self.lengths[self.iteration] == drawn + 1
        if self.case.mixed:
            scores = scores.masked_fill(ending[:, None], float("-inf"))
            scores[:, END] = scores[:, END].masked_fill(ending, 0.0)
        return scores

    def generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """`generate`, which the trainer calls once a rollout, under these lengths."""

        def imposed(**options: Any) -> Any:
            self.iteration += 1
            return generate(logits_processor=LogitsProcessorList([self]), **options)

        return imposed


class TokenShare(torch.nn.Module):
    """A reward model in the trainer's sense: at each position, the share of wanted tokens since the prompt."""

    base_model_prefix = "counter"

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def counter(self, input_ids: torch.Tensor, **_: Any) -> Any:
        wanted = (input_ids >= self.case.wanted.start).float()
        wanted[:, : self.case.prompt] = 0
        count = torch.arange(input_ids.shape[1], device=input_ids.device) - self.case.prompt + 1
        return SimpleNamespace(hidden_states=[wanted.cumsum(1) / count.clamp(min=1)])

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[..., None]
