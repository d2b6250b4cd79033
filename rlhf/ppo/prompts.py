"""The stream of prompts: an endless, seeded shuffle addressed by a cursor, so that resume needs one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf.core.chat import ChatCodec, PromptTooLongError
from rlhf.core.errors import DataError
from rlhf.core.files import read_numbered
from rlhf.core.randomness import derived_seed
from rlhf.core.records import Prompt


@dataclass(frozen=True)
class EncodedPrompt:
    prompt: Prompt
    ids: list[int]


def load_prompts(
    path: Path, codec: ChatCodec, *, room: int, drop_too_long: bool
) -> tuple[list[EncodedPrompt], int]:
    """(prompts of a JSONL with their tokens, how many were dropped because they leave less than `room`).

    Raises DataError naming file:line for a prompt that is too long (unless dropped) or cannot be encoded, and
    for a file without a usable prompt.
    """
    encoded, dropped = [], 0
    for line, prompt in read_numbered(path, Prompt):
        try:
            ids = codec.checked_prompt_ids(prompt, room)
        except DataError as error:
            if drop_too_long and isinstance(error, PromptTooLongError):
                dropped += 1
                continue
            raise DataError(f"{path}:{line}: {error}") from error
        encoded.append(EncodedPrompt(prompt, ids))
    if not encoded:
        raise DataError(
            f"{path}: all {dropped} prompts are too long for the model's context of {codec.max_tokens}"
        )
    return encoded, dropped


class PromptStream:
    """Prompt number `cursor` of an endless sequence: each pass over the prompts has an order of its own."""

    def __init__(self, prompts: Sequence[EncodedPrompt], seed: int) -> None:
        self.prompts = prompts
        self._seed = seed
        self._pass = -1
        self._order: list[int] = []

    def __getitem__(self, cursor: int) -> EncodedPrompt:
        number, place = divmod(cursor, len(self.prompts))
        if number != self._pass:
            generator = torch.Generator().manual_seed(derived_seed(self._seed, "prompts", number))
            self._order = torch.randperm(len(self.prompts), generator=generator).tolist()
            self._pass = number
        return self.prompts[self._order[place]]
