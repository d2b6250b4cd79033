"""A word-by-word codec and a pool on it, so that every figure can be worked out by hand; no model in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from reward.assess.heldout import HeldOut
from reward.assess.pool import TextPool
from reward.data import Pair
from rlhf.core.records import Message, Preference

END = 0


class WordCodec:
    """One token a word, spaces and line breaks kept apart from words; the end token is 0."""

    max_tokens = 60

    def __init__(self) -> None:
        self.words = ["<end>"]

    def _ids(self, text: str) -> list[int]:
        ids = []
        for word in text.replace("\n", " \n ").split(" "):
            if word not in self.words:
                self.words.append(word)
            ids.append(self.words.index(word))
        return ids if text else []

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return [i for message in messages for i in self._ids(message.content)]

    def completion_ids(self, text: str, *, finished: bool = True) -> list[int]:
        return self._ids(text) + [END] * finished


class WordPool(TextPool):
    """A pool that remembers its texts, for scores that are functions of text."""

    def __init__(self) -> None:
        scorer: Any = SimpleNamespace(backbone=SimpleNamespace(codec=WordCodec()))
        super().__init__(scorer)
        self.texts: list[str] = []

    def add(self, prompt: Sequence[Message], text: str) -> int | None:
        row = super().add(prompt, text)
        if row is not None and row == len(self.texts):
            self.texts.append(text)
        return row

    def scored(self, score: Callable[[str], float]) -> np.ndarray:
        return np.array([score(text) for text in self.texts])


@pytest.fixture
def pool() -> WordPool:
    return WordPool()


@pytest.fixture
def compare(pool: WordPool) -> Callable[..., Pair]:
    """compare("better", "worse", prompt="p", ...) -> a comparison whose texts are in the pool."""

    def make(chosen: str, rejected: str, prompt: str = "p", **changes: Any) -> Pair:
        values: dict[str, Any] = {"prompt": prompt, "chosen": chosen, "rejected": rejected} | changes
        if values.get("tie"):
            values["margin"] = 0
        preference = Preference.model_validate(values)
        rows = [pool.add(preference.prompt, text) for text in (chosen, rejected)]
        assert rows[0] is not None
        assert rows[1] is not None
        return Pair(rows[0], rows[1], preference)

    return make


@pytest.fixture
def held_out(compare: Callable[..., Pair]) -> Callable[..., HeldOut]:
    """held_out(test pairs, train preferences) -> HeldOut"""

    def make(pairs: list[Pair], train: Sequence[Pair] = (), validation: Sequence[Pair] = ()) -> HeldOut:
        return HeldOut(pairs, [pair.preference for pair in train], [pair.preference for pair in validation])

    return make
