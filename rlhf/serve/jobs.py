"""One completion on its way: what is asked, and what comes back piece by piece."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from rlhf.core.chat import ChatCodec
from rlhf.core.randomness import uniforms
from rlhf.core.settings import SamplingSettings
from rlhf.core.stopping import StopRule
from rlhf.serve.text import TextStream

Finish = Literal["stop", "length"]
UNIFORMS_AT_ONCE = 64


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability under the model at temperature 1, and the most probable ones in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What came since the last piece. finish: why the completion ended, None while it goes on; error: it failed."""

    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    error: str | None = None

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass
class Times:
    """When things happened to a job, in seconds of `time.monotonic`; NaN for what has not."""

    asked: float = field(default_factory=time.monotonic)
    admitted: float = math.nan
    first_token: float = math.nan
    ended: float = math.nan

    def start(self) -> None:
        self.admitted = time.monotonic()


class Job:
    """One completion to write. `deliver` gets each piece, in the thread that decodes; it must not wait.

    seed, sample: the uniform numbers behind its tokens are those of `sampler.sample` with this seed for a request of
    cursor 0 and this sample, so the same request has the same answer whatever is written beside it.
    num_logprobs: None for none, else how many alternatives are told beside each token.
    """

    def __init__(
        self,
        model: Any,
        codec: ChatCodec,
        prompt_ids: Sequence[int],
        settings: SamplingSettings,
        deliver: Callable[[Piece], None],
        *,
        seed: int,
        sample: int = 0,
        num_logprobs: int | None = None,
        strip: bool = True,
    ) -> None:
        self.model, self.prompt_ids, self.settings = model, list(prompt_ids), settings
        self.seed, self.sample, self.num_logprobs = seed, sample, num_logprobs
        # What rows that are drawn together must share.
        self.distribution = SamplingSettings(
            temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k
        )
        self.cancelled = False
        self.tokens: list[int] = []
        self.times = Times()
        self._deliver = deliver
        self._stop = StopRule(codec, settings)
        self._ended_by_text = self._stop.ended_by_text
        self._text = TextStream(codec, settings.stop_strings, strip=strip)
        self._uniforms: list[float] = []

    @property
    def most_tokens(self) -> int:
        """Tokens that it may take in the cache."""
        return len(self.prompt_ids) + self.settings.max_completion_tokens

    def uniform(self) -> float:
        """The number behind the next token."""
        position = len(self.tokens)
        if position == len(self._uniforms):
            positions = torch.arange(position, position + UNIFORMS_AT_ONCE)
            same = torch.zeros_like(positions)
            self._uniforms += uniforms(self.seed, same, same + self.sample, positions).tolist()
        return self._uniforms[position]

    def take(self, token: int, logprob: TokenLogprob | None) -> bool:
        """One more token; True while more are wanted."""
        self.tokens.append(token)
        if len(self.tokens) == 1:
            self.times.first_token = time.monotonic()
        ended = token in self._stop.token_ids
        text = "" if ended else self._text.push(token)
        finish: Finish | None = None
        if ended or (self._ended_by_text is not None and self._ended_by_text(self.tokens)):
            finish = "stop"
        elif len(self.tokens) == self.settings.max_completion_tokens:
            finish = "length"
        if finish is not None:
            text += self._text.finish()
            self.times.ended = time.monotonic()
        self._deliver(Piece(text, 1, (logprob,) if logprob is not None else (), finish))
        return finish is None

    def fail(self, reason: str) -> None:
        """End it with an error."""
        self.times.ended = time.monotonic()
        self._deliver(Piece("", 0, error=reason))
