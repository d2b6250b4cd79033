"""Held-out rows as tokens: what is measured, and what does not fit the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError
from rlhf.core.records import Message
from sft.assess.rows import Item, Text, as_text
from sft.assess.subjects import TokenRow
from sft.data import text_parts


def completion_row(codec: ChatCodec, prompt_ids: Sequence[int], completion: str) -> TokenRow:
    """A prompt with a completion of which the text is measured. The end token is not: a base that was never told how
    completions end cannot know it, and a few-shot prompt ends them by other means."""
    ids = codec.completion_ids(completion, finished=False)
    start = max(1, len(prompt_ids))
    return TokenRow([*prompt_ids, *ids], start)


def prompt_ids(codec: ChatCodec, prompt: Sequence[Message], where: str) -> list[int]:
    """Tokens of a prompt. Raises DataError naming the row that the codec refuses."""
    try:
        return codec.prompt_ids(prompt)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


@dataclass(frozen=True)
class Window:
    """A piece of a text that fits the context. place: of the text among all texts."""

    place: int
    row: TokenRow


def text_windows(codec: ChatCodec, texts: Sequence[Text]) -> list[Window]:
    """Texts cut into pieces of the model's context, each begun with the bos token where the tokenizer has one.

    A piece begins with the last token of the one before it, so that every token is measured once. The end token that
    closes a text is not measured.
    """
    windows = []
    for place, text in enumerate(texts):
        parts = text_parts(text.text, codec, codec.max_tokens)
        parts[-1] = parts[-1][:-1]
        windows += [Window(place, TokenRow(ids, 1)) for ids in parts if len(ids) > 1]
    return windows


def general_windows(
    codec: ChatCodec, items: Sequence[Item], texts: Sequence[Text], source: str
) -> tuple[list[Window], list[Text]]:
    """Everything of a file to be measured, and the texts that `place` counts in: texts, then demonstrations, of which
    the completion is measured where both fit the context."""
    windows, shown = text_windows(codec, texts), list(texts)
    for item in items:
        row = completion_row(codec, prompt_ids(codec, item.prompt, f"{source}:{item.line}"), item.reference)
        if row.num_measured > 0 and len(row.ids) <= codec.max_tokens:
            windows.append(Window(len(shown), row))
            shown.append(as_text(item))
    if not windows:
        raise DataError(
            f"{source}: no row has a token to be measured within the context of {codec.max_tokens}"
        )
    return windows, shown


def fitting(
    items: Sequence[Item], codecs: Sequence[ChatCodec], room: int, source: str
) -> tuple[list[Item], int]:
    """The items whose prompt leaves `room` tokens, and room for the completion, in every codec; how many do not.

    Raises DataError where none is left.
    """
    kept = []
    for item in items:
        for codec in codecs:
            prompt = len(prompt_ids(codec, item.prompt, f"{source}:{item.line}"))
            longest = max(room, len(codec.completion_ids(item.reference, finished=False)))
            if prompt + longest > codec.max_tokens:
                break
        else:
            kept.append(item)
    if items and not kept:
        limit = min(codec.max_tokens for codec in codecs)
        raise DataError(
            f"{source}: no prompt leaves {room} tokens for an answer in the context of {limit}; "
            "expected shorter prompts or --sampling.max-completion-tokens"
        )
    return kept, len(items) - len(kept)
