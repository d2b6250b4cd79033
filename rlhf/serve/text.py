"""The text of a completion while its tokens still come.

Only what later tokens cannot change is given out: characters whose bytes are all there, nothing that may turn out to
be the beginning of a stop string, no space that may turn out to be the last. The parts joined are what
`ChatCodec.decode` makes of all tokens (raw completions keep the spaces at their ends).
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.core.chat import ChatCodec

UNFINISHED = "\ufffd"  # what a decoder puts for bytes that are no character, or not yet


class TextStream:
    """push(token) and finish() give the next part of the text."""

    def __init__(self, codec: ChatCodec, stops: Sequence[str], *, strip: bool) -> None:
        self._tokenizer, self._stops, self._strip = codec.tokenizer, tuple(stops), strip
        self._tokens: list[int] = []
        # Tokens before `_read` are in `_text`; those from `_context` on are decoded again, since a decoder treats the
        # first token that it sees in a way of its own.
        self._context = self._read = 0
        self._text = self._given = ""

    def push(self, token: int) -> str:
        """What is certain now that this token has come."""
        self._tokens.append(token)
        more = self._decoded()
        if more and not more.endswith(UNFINISHED):
            self._text += more
            self._context, self._read = self._read, len(self._tokens)
        return self._next(self._text[: len(self._text) - self._num_held()])

    def finish(self) -> str:
        """The rest, up to the first stop string."""
        self._text += self._decoded()
        self._context = self._read = len(self._tokens)
        cuts = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        return self._next(self._text[: min(cuts, default=None)])

    def _decoded(self) -> str:
        """The text of the tokens that are not in `_text` yet."""
        before = self._tokenizer.decode(self._tokens[self._context : self._read], skip_special_tokens=True)
        whole = self._tokenizer.decode(self._tokens[self._context :], skip_special_tokens=True)
        return str(whole[len(before) :])

    def _num_held(self) -> int:
        """Characters at the end that may belong to a stop string, or all from the first one that is there."""
        held = 0
        for stop in self._stops:
            place = self._text.find(stop)
            if place >= 0:
                held = max(held, len(self._text) - place)
                continue
            for length in range(min(len(stop) - 1, len(self._text)), held, -1):
                if self._text.endswith(stop[:length]):
                    held = length
                    break
        return held

    def _next(self, certain: str) -> str:
        shown = certain.replace("\0", "")
        if self._strip:
            shown = shown.strip()
        more = shown[len(self._given) :]
        self._given = shown if more else self._given
        return more
