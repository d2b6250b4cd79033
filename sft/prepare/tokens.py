"""How many tokens a row has for a model, counted as `rlhf sft` does. The only module here that loads torch."""

from __future__ import annotations

from transformers import AutoConfig, GenerationConfig

from rlhf.core.chat import ChatCodec, first_line
from rlhf.core.errors import DataError, ModelError
from rlhf.core.records import Message
from sft.prepare.rows import Sample


class TokenCounter:
    """max_tokens: the longest row; by default the model's context."""

    def __init__(self, path: str, max_tokens: int | None) -> None:
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path}: is no model ({first_line(error)})") from error
        try:
            generation = GenerationConfig.from_pretrained(path)
        except OSError:
            generation = GenerationConfig.from_model_config(config)
        self.codec = ChatCodec.from_pretrained(path, config, generation)
        self.max_tokens = min(max_tokens or self.codec.max_tokens, self.codec.max_tokens)

    def count(self, sample: Sample) -> int:
        """Prompt, answer and end token. Raises DataError for a conversation that the chat template refuses."""
        if sample.messages is None:
            return len(self.codec.completion_ids(sample.text))
        prompt = [Message(role=turn["role"], content=turn["content"]) for turn in sample.messages[:-1]]
        return len(self.codec.prompt_ids(prompt)) + len(self.codec.completion_ids(sample.answer))

    def refuses(self, sample: Sample) -> str | None:
        """Why the row cannot be trained on with this model, or None."""
        try:
            number = self.count(sample)
        except DataError:
            return "refused by the chat template"
        return "too many tokens" if number > self.max_tokens else None
