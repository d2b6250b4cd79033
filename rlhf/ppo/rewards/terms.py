"""The kinds of reward: a model on the policy's backbone, one on another, a classifier, a function of texts, a sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward.foreign import ForeignScorer
from reward.score import RewardScorer
from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError
from rlhf.core.records import Prompt
from rlhf.core.sequences import Sequences
from rlhf.ppo.completions import Completions
from rlhf.ppo.rewards.base import Reward


class ModelReward:
    """A reward adapter on the policy's own backbone: it reads the cached trunk states."""

    def __init__(self, scorer: RewardScorer, name: str = "the reward model") -> None:
        self.scorer, self.name = scorer, name
        self.mean, self.std = scorer.scale.mean, scorer.scale.std

    def score(self, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return self.scorer.score_all(completions.sequences)


class ForeignModelReward:
    """A reward model with a backbone or a tokenizer of its own: it reads the texts, tokenised its own way.

    A completion that the policy ended gets the reward model's end token, one that was cut off does not. What does
    not fit the reward model's context loses the beginning of its prompt; a line is printed whenever that happens.
    """

    def __init__(self, scorer: RewardScorer, name: str, *, max_tokens: int) -> None:
        self.scorer, self.name, self.max_tokens = scorer, name, max_tokens
        self.mean, self.std = scorer.scale.mean, scorer.scale.std

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises DataError naming a prompt that the reward model's template refuses or that fills its context."""
        for prompt in prompts:
            try:
                self._codec.checked_prompt_ids(prompt, room=1)
            except DataError as error:
                who = "" if prompt.prompt_id in str(error) else f" (prompt {prompt.prompt_id})"
                raise DataError(f"{self.name}: {error}{who}") from error

    @property
    def _codec(self) -> ChatCodec:
        return self.scorer.backbone.codec

    def score(self, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        codec = self._codec
        ended = completions.finished_B.tolist()
        rows = [
            [*codec.prompt_ids(prompt.messages), *codec.completion_ids(text, finished=end)]
            for prompt, text, end in zip(prompts, texts, ended, strict=True)
        ]
        _say_what_is_cut(self.name, rows, codec.max_tokens)
        kept = [row[-codec.max_tokens :] for row in rows]
        # The policy's own budget falls where memory runs out.
        budget = min(self.max_tokens, completions.sequences.max_tokens)
        return self.scorer.score_all(Sequences(self.scorer.backbone, kept, max_tokens=budget, max_bytes=0))


class ClassifierReward:
    """A sequence classifier of another framework: it reads the texts, written and tokenised its own way.

    A completion that was cut off looks to it like one that ended. What does not fit its context loses the beginning of
    its prompt; a line is printed whenever that happens.
    """

    def __init__(self, scorer: ForeignScorer, name: str, *, max_tokens: int) -> None:
        self.scorer, self.name, self.max_tokens = scorer, name, max_tokens
        self.mean, self.std = scorer.scale.mean, scorer.scale.std

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises DataError naming a prompt that the model's template refuses or that fills its context."""
        for prompt in prompts:
            length = len(self.scorer.row(prompt, ""))
            if length >= self.scorer.max_tokens:
                raise DataError(
                    f"{self.name}: prompt {prompt.prompt_id} has {length} tokens; expected fewer than its context of "
                    f"{self.scorer.max_tokens}"
                )

    def score(self, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        rows = [self.scorer.row(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        _say_what_is_cut(self.name, rows, self.scorer.max_tokens)
        # The policy's own budget falls where memory runs out.
        budget = min(self.max_tokens, completions.sequences.max_tokens)
        return self.scorer.score_rows([self.scorer.cut(row) for row in rows], max_tokens=budget)


def _say_what_is_cut(name: str, rows: Sequence[Sequence[int]], max_tokens: int) -> None:
    num_cut = sum(len(row) > max_tokens for row in rows)
    if num_cut:
        print(
            f"ppo: {num_cut} of {len(rows)} completions do not fit the context of {name} ({max_tokens} tokens): "
            "the beginning of their prompts was left out"
        )


class TextReward:
    """A function of prompts and texts; its scores are taken as they are."""

    mean, std = 0.0, 1.0

    def __init__(
        self,
        name: str,
        function: Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]],
        *,
        check: Callable[[Sequence[Prompt]], None] = lambda prompts: None,
    ) -> None:
        self.name, self.function, self.check_prompts = name, function, check

    def score(self, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return torch.tensor(list(self.function(prompts, texts)), dtype=torch.float32)


@dataclass(frozen=True)
class Term:
    """One part of a weighted sum. normalize: bring it to mean 0 and deviation 1 by its saved figures first."""

    name: str
    reward: Reward
    weight: float = 1.0
    normalize: bool = True


class WeightedReward:
    """sum over terms of weight * score. The sum itself counts as unmeasured (mean 0, deviation 1)."""

    name = "the weighted sum of rewards"
    mean, std = 0.0, 1.0

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)

    @property
    def parts(self) -> dict[str, Reward]:
        return {term.name: term.reward for term in self.terms}

    def combine(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum [B] of raw scores [B]."""
        total_B = torch.zeros_like(next(iter(terms.values())))
        for term in self.terms:
            mean, std = (term.reward.mean, term.reward.std) if term.normalize else (0.0, 1.0)
            total_B = total_B + term.weight * (terms[term.name] - mean) / std
        return total_B

    def score(self, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        return self.combine(
            {name: part.score(completions, prompts, texts) for name, part in self.parts.items()}
        )
