"""Few-shot prompting of the untouched base (Brown et al., arXiv:2005.14165): the baseline that tuning has to beat.

Each held-out prompt gets examples of its own, drawn from the training demonstrations, never from the evaluation
data, as many of the k as fit the context. With a chat template they are earlier turns of the conversation. Without
one they stand before the prompt as text, joined by blank lines, after which an answer is cut at the next one, or by
the token that ends a document.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError
from rlhf.core.records import Message
from rlhf.core.settings import SamplingSettings
from sft.assess.encode import completion_row, prompt_ids
from sft.assess.rows import Item
from sft.assess.subjects import Subject

Join = Literal["chat", "blank-line", "end-token"]

BLANK_LINE = "\n\n"
NUM_TRIED = 16  # training demonstrations that decide between two ways of joining
TRIES_PER_SHOT = 8  # examples that are looked at for one that still fits


def example_pool(train: Sequence[Item], held_out: Sequence[Item], source: str) -> list[Item]:
    """The training demonstrations that share neither prompt group nor prompt with the evaluation data.

    Raises DataError where none is left.
    """
    groups = {item.group_id for item in held_out}
    prompts = {item.prompt for item in held_out}
    pool = [item for item in train if item.group_id not in groups and item.prompt not in prompts]
    if not pool:
        raise DataError(
            f"{source}: all {len(train)} demonstrations answer prompts of the evaluation data; expected others "
            "for the few-shot examples (--train FILE, or --shots 0)"
        )
    return pool


@dataclass(frozen=True)
class Shot:
    """A prompt with its examples. num_shots: how many fitted."""

    ids: list[int]
    num_shots: int


class FewShot:
    """Few-shot prompts of one model, always the same for the same item and seed."""

    def __init__(
        self, codec: ChatCodec, pool: Sequence[Item], *, shots: int, join: Join, room: int, seed: int
    ) -> None:
        self.codec, self.pool, self.shots, self.join, self.room, self.seed = (
            codec,
            pool,
            shots,
            join,
            room,
            seed,
        )
        self._separator = codec.completion_ids(BLANK_LINE, finished=False)

    def prompt(self, item: Item) -> Shot:
        """The item's prompt with its examples before it."""
        longest = max(self.room, len(self.codec.completion_ids(item.reference, finished=False)))
        limit = self.codec.max_tokens - longest
        generator = random.Random(f"{self.seed}\0{item.group_id}\0{item.line}")
        size = min(len(self.pool), TRIES_PER_SHOT * self.shots + 1)
        others = [one for one in generator.sample(self.pool, size) if one is not item]
        chosen: list[Item] = []
        ids = self._ids(chosen, item)
        for one in others:
            if len(chosen) == self.shots:
                break
            longer = self._ids([*chosen, one], item)
            if len(longer) <= limit:
                chosen, ids = [*chosen, one], longer
        return Shot(ids, len(chosen))

    def sampling(self, settings: SamplingSettings) -> SamplingSettings:
        """The settings with the end of an answer in this way of prompting."""
        if self.join != "blank-line" or any(BLANK_LINE in one.reference.strip() for one in self.pool):
            return settings
        return settings.model_copy(update={"stop_strings": (*settings.stop_strings, BLANK_LINE)})

    def _ids(self, examples: Sequence[Item], item: Item) -> list[int]:
        if self.join == "chat":
            return self.codec.prompt_ids(_conversation(examples, item))
        bos = self.codec.tokenizer.bos_token_id
        ids: list[int] = []
        for one in (*examples, item):
            own = prompt_ids(self.codec, one.prompt, f"line {one.line}")
            # One document begins with bos: its parts do not where a blank line or the end of the last one joins them.
            if ids and bos is not None and own[:1] == [bos] and (self.join == "blank-line" or ids[-1] == bos):
                own = own[1:]
            ids += own
            if one is not item:
                if self.join == "blank-line":
                    ids += self.codec.completion_ids(one.reference.rstrip(), finished=False)
                    ids += self._separator
                else:
                    ids += self.codec.completion_ids(one.reference)
        return ids


def _conversation(examples: Sequence[Item], item: Item) -> list[Message]:
    """System messages of the item, then the examples as turns, then the item's own."""
    system = [message for message in item.prompt if message.role == "system"]
    turns = [message for message in item.prompt if message.role != "system"]
    before = []
    for one in examples:
        before += [message for message in one.prompt if message.role != "system"]
        before.append(Message(role="assistant", content=one.reference))
    return [*system, *before, *turns]


def choose_join(
    asked: Literal["auto", "blank-line", "end-token"],
    base: Subject,
    pool: Sequence[Item],
    *,
    shots: int,
    room: int,
    seed: int,
) -> tuple[Join, dict[str, float]]:
    """How examples are joined, and what was measured to decide it: nats per token of training answers.

    The evaluation data has no part in the choice.
    """
    if base.codec.tokenizer.chat_template is not None:
        return "chat", {}
    if asked != "auto":
        return asked, {}
    tried = list(pool[:NUM_TRIED])
    losses: dict[Join, float] = {}
    joins: tuple[Join, ...] = ("blank-line", "end-token")
    for join in joins:
        few = FewShot(base.codec, pool, shots=shots, join=join, room=room, seed=seed)
        rows = [completion_row(base.codec, few.prompt(item).ids, item.reference) for item in tried]
        rows = [row for row in rows if len(row.ids) <= base.codec.max_tokens]
        if not rows:
            return "blank-line", {}
        losses[join] = float(np.concatenate(base.nll(rows, f"examples joined by {join}")).mean())
    best = min(joins, key=lambda join: losses[join])
    return best, {str(join): loss for join, loss in losses.items()}
