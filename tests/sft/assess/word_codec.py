"""A word-by-word codec, so that every token of a prompt can be read."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from rlhf.core.errors import DataError
from rlhf.core.records import Message

BOS, END = 0, 1


class WordCodec:
    """One token a word, a blank line kept as a word of its own; <s> begins a text, </s> ends one.

    With `chat` a message is its role as a token, then its words.
    """

    def __init__(self, max_tokens: int = 40, *, chat: bool = False) -> None:
        self.words = ["<s>", "</s>"]
        self.max_tokens = max_tokens
        self.end_token_id = END
        self.tokenizer = SimpleNamespace(bos_token_id=BOS, chat_template="roles" if chat else None)

    def _ids(self, text: str) -> list[int]:
        ids = []
        for word in text.replace("\n\n", " \n\n ").split(" "):
            if word and word not in self.words:
                self.words.append(word)
            ids += [self.words.index(word)] if word else []
        return ids

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        if self.tokenizer.chat_template:
            return [i for m in messages for i in self._ids(f"<{m.role}> {m.content}")]
        if len(messages) != 1:
            raise DataError("no chat template, so a prompt is one user message")
        return [BOS, *self._ids(messages[0].content)]

    def completion_ids(self, text: str, *, finished: bool = True) -> list[int]:
        return self._ids(text) + [END] * finished

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i] for i in ids)
