"""How much of a completion's content stands in the prompt's `context`, as a reward: see `rlhf.core.grounding`."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.core.errors import DataError
from rlhf.core.grounding import grounded_share
from rlhf.core.records import Prompt


def groundedness(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """One number from 0 to 1 per text. Raises DataError for a prompt without a context."""
    require_contexts(prompts)
    return [grounded_share(prompt.context or "", text) for prompt, text in zip(prompts, texts, strict=True)]


def require_contexts(prompts: Sequence[Prompt]) -> None:
    """Raises DataError naming the first prompt that has no context."""
    for row, prompt in enumerate(prompts):
        if not (prompt.context or "").strip():
            raise DataError(
                f"groundedness: prompt {prompt.prompt_id} (number {row}) has no 'context'; expected the text that "
                "its answer must rest on"
            )
