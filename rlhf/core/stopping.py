"""What ends a completion: the model's end tokens, further tokens, and strings that a person names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhf.core.chat import ChatCodec
from rlhf.core.errors import ConfigError
from rlhf.core.settings import SamplingSettings


class StopRule:
    """token_ids: a completion ends with any of them. ended_by_text: looks for stop strings, None without any."""

    def __init__(self, codec: ChatCodec, settings: SamplingSettings) -> None:
        """Raises ConfigError for a stop token that the tokenizer does not have."""
        self._codec = codec
        self.strings = settings.stop_strings
        known = (
            codec.tokenizer.get_vocab() if settings.stop_tokens else {}
        )  # a dictionary of the whole vocabulary
        for token in settings.stop_tokens:
            if token not in known:
                raise ConfigError(
                    f"sampling.stop_tokens: {token!r} is not a token of {codec.source}; "
                    "expected one of its vocabulary (a text of several tokens belongs in stop_strings)"
                )
        extra = [int(known[token]) for token in settings.stop_tokens]
        self.token_ids = tuple(dict.fromkeys([*codec.end_token_ids, *extra]))
        # A token holds at least one byte, so the last tokens that can hold a stop string are this many; a few
        # more keep a character whole that began before them.
        self._window = max((len(text.encode()) for text in self.strings), default=0) + 4

    @property
    def ended_by_text(self) -> Callable[[Sequence[int]], bool] | None:
        return self._holds_stop_string if self.strings else None

    def _holds_stop_string(self, tokens: Sequence[int]) -> bool:
        """True when a completion now holds a stop string, asked after every token."""
        tail = self._codec.tokenizer.decode(list(tokens[-self._window :]), skip_special_tokens=False)
        return any(text in tail for text in self.strings)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of a completion up to its first stop string, and without the token that ended it."""
        ended = bool(tokens) and tokens[-1] in self.token_ids
        return self._codec.decode(tokens[:-1] if ended else tokens, until=self.strings)
