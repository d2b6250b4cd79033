"""The only place that turns messages into tokens, and tokens back into text.

A prompt and its completion are tokenised apart and joined, so the boundary between them is always a token
boundary and the same in every stage. Without a chat template a prompt is one user message taken as plain
text, begun with the tokenizer's bos token where it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig

from rlhf.core.errors import DataError, ModelError
from rlhf.core.records import Message, Prompt

# A template is a program that came with somebody's model; real ones are a few KiB.
MAX_TEMPLATE_CHARS = 100_000


class PromptTooLongError(DataError):
    """A prompt leaves too little of the model's context for an answer; the one fault that may be dropped."""


class ChatCodec:
    """Tokens for one model.

    end_token_ids: every id that ends a completion; the first is the one that training appends.
    pad_token_id: an id to fill tensors with that is never an end token, so that "the last token that is not
        padding" is the same in every library (with pad == end, plain loaders pool one token too early).
    max_tokens: the model's context, prompt and completion together.
    """

    def __init__(
        self, tokenizer: Any, end_token_ids: Sequence[int], max_tokens: int, source: str = ""
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.end_token_ids = tuple(end_token_ids)
        self.max_tokens = max_tokens
        if not self.end_token_ids:
            raise ModelError(
                f"{source or 'the model'}: no end token; expected eos_token_id in generation_config.json"
            )
        template = tokenizer.chat_template
        if isinstance(template, str) and len(template) > MAX_TEMPLATE_CHARS:
            raise ModelError(
                f"{source}: chat template of {len(template)} characters; expected at most {MAX_TEMPLATE_CHARS}"
            )
        self.pad_token_id = _padding_id(tokenizer, self.end_token_ids)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, config: PretrainedConfig, generation: GenerationConfig
    ) -> ChatCodec:
        """Read the tokenizer beside a model. Raises ModelError when there is none."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path}: no usable tokenizer ({first_line(error)})") from error
        text_config = config.get_text_config()
        end = generation.eos_token_id
        if end is None:
            end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else text_config.eos_token_id
        end_ids = [] if end is None else [end] if isinstance(end, int) else list(end)
        limit = getattr(text_config, "max_position_embeddings", None) or tokenizer.model_max_length
        return cls(tokenizer, end_ids, min(int(limit), 2**30), str(path))

    @property
    def end_token_id(self) -> int:
        return self.end_token_ids[0]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, ready to be continued by a completion."""
        if self.tokenizer.chat_template is not None:
            try:
                ids = self.tokenizer.apply_chat_template(
                    [{"role": m.role, "content": m.content} for m in messages],
                    tokenize=True,
                    add_generation_prompt=True,
                    return_dict=False,
                )
            except TemplateError as error:
                raise DataError(
                    f"the chat template of {self.source} refuses a prompt: {first_line(error)}"
                ) from error
            return list(ids)
        if len(messages) != 1 or messages[0].role != "user":
            roles = ", ".join(m.role for m in messages)
            raise DataError(
                f"{self.source} has no chat template, so a prompt is one user message; found {roles}"
            )
        ids = self.tokenizer(messages[0].content, add_special_tokens=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        return list(ids) if bos is None else [bos, *ids]

    def checked_prompt_ids(self, prompt: Prompt, room: int) -> list[int]:
        """`prompt_ids`; raises PromptTooLongError where less than `room` tokens of the context are left."""
        ids = self.prompt_ids(prompt.messages)
        if not ids:
            raise DataError(f"prompt {prompt.prompt_id} has no tokens")
        if len(ids) + room > self.max_tokens:
            raise PromptTooLongError(
                f"prompt {prompt.prompt_id} has {len(ids)} tokens; with {room} for the completion that is more "
                f"than the model's context of {self.max_tokens}"
            )
        return ids

    def completion_ids(self, text: str, *, finished: bool = True) -> list[int]:
        """Token ids of a completion; `finished` appends the end token."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*ids, self.end_token_id] if finished else ids

    def decode(self, ids: Sequence[int], *, until: Sequence[str] = ()) -> str:
        """The text of a completion up to the first of `until`, without end tokens and other special ones, and
        without NUL, which a byte-level tokenizer can produce and no file or database takes."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        # Cut before the ends are stripped: a stop string may begin or end with a space.
        cuts = [place for stop in until if (place := text.find(stop)) >= 0]
        return text[: min(cuts, default=None)].replace("\0", "").strip()


def _padding_id(tokenizer: Any, end_token_ids: Sequence[int]) -> int:
    """The tokenizer's pad token unless it ends completions; else another id that does not."""
    candidates = [
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        *sorted(tokenizer.all_special_ids, reverse=True),
    ]
    for candidate in candidates:
        if candidate is not None and candidate not in end_token_ids:
            return int(candidate)
    return next(i for i in range(len(tokenizer)) if i not in end_token_ids)


def first_line(error: BaseException) -> str:
    """The first line of somebody else's error message, for a one-line message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
