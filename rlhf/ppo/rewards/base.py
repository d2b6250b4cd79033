"""What a reward is, and the one door through which it is asked: whatever it answers is checked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlhf.core.errors import DataError
from rlhf.core.processes import Processes
from rlhf.core.records import Prompt
from rlhf.ppo.completions import Completions


class Reward(Protocol):
    """Anything with these three attributes and `score` can be given to `PPOTrainer` and `evaluate`.

    name: what errors call it. mean, std: bring raw scores to mean 0 and deviation 1; a reward that has not been
    measured says 0 and 1.
    """

    name: str
    mean: float
    std: float

    def score(self, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        """Raw scores [B] of all completions of a rollout; row b answers prompts[b] with texts[b]."""
        ...


@runtime_checkable
class SumOfTerms(Protocol):
    """A reward that is made of others."""

    @property
    def parts(self) -> dict[str, Reward]:
        """The terms by name."""
        ...

    def combine(self, terms: dict[str, Tensor]) -> Tensor:
        """The score [B] from the raw scores [B] of every term."""
        ...


@runtime_checkable
class ChecksPrompts(Protocol):
    """A reward that cannot score every prompt, and says so before the run begins."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises DataError naming the first prompt that the reward cannot read."""
        ...


@dataclass(frozen=True)
class Scores:
    """total_B: what is maximised, before any normalisation. terms: raw scores [B] of each part of a sum."""

    total_B: Tensor
    terms: dict[str, Tensor]


def check_prompts(reward: Reward, prompts: Sequence[Prompt]) -> None:
    """Ask a reward, or every part of one, whether it can score these prompts. Raises DataError."""
    for part in reward.parts.values() if isinstance(reward, SumOfTerms) else [reward]:
        if isinstance(part, ChecksPrompts):
            part.check_prompts(prompts)


def score_completions(
    reward: Reward, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]
) -> Scores:
    """Ask a reward about a whole rollout. Raises DataError naming the reward and the row of an impossible score."""
    if not isinstance(reward, SumOfTerms):
        return Scores(_checked(reward, completions, prompts, texts), {})
    terms = {name: _checked(part, completions, prompts, texts) for name, part in reward.parts.items()}
    return Scores(reward.combine(terms), terms)


def score_own(
    reward: Reward, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]
) -> Scores:
    """`score_completions` of the rows of this process alone; prompts and texts are those of all rows."""
    own = completions.own
    if not own:
        parts = reward.parts if isinstance(reward, SumOfTerms) else {}
        none_B = torch.zeros(0, device=completions.mask_BT.device)
        return Scores(none_B, dict.fromkeys(parts, none_B))
    rows = slice(own.start, own.stop)
    return score_completions(reward, completions.of_own(), prompts[rows], texts[rows])


def all_scores(own: Scores, processes: Processes) -> Scores:
    """The scores of all processes' rows, from what each asked about its own."""
    if processes.size == 1:
        return own

    def whole(scores_B: Tensor) -> Tensor:
        return torch.tensor(processes.gather_rows(scores_B.tolist()), device=scores_B.device)

    return Scores(whole(own.total_B), {name: whole(scores_B) for name, scores_B in own.terms.items()})


def _checked(
    reward: Reward, completions: Completions, prompts: Sequence[Prompt], texts: Sequence[str]
) -> Tensor:
    with torch.no_grad():
        scores_B = reward.score(completions, prompts, texts).float()
    if scores_B.shape != (len(texts),):
        raise DataError(
            f"{reward.name} returned scores of shape {tuple(scores_B.shape)}; expected ({len(texts)},), one per row"
        )
    wrong = (~torch.isfinite(scores_B)).nonzero().flatten().tolist()
    if wrong:
        row = wrong[0]
        raise DataError(
            f"{reward.name} returned {scores_B[row].item()} for row {row} (prompt {prompts[row].prompt_id}); "
            "expected a finite number"
        )
    return scores_B.to(completions.mask_BT.device)
