"""From a checked request to jobs, and from their pieces to OpenAI's answers, whole or as events."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.core.chat import ChatCodec
from rlhf.core.errors import DataError
from rlhf.core.records import Message
from rlhf.core.settings import SamplingSettings
from rlhf.serve.catalog import Catalog, Choice
from rlhf.serve.engine import Engine, EngineStoppedError, QueueFullError
from rlhf.serve.jobs import Finish, Job, Piece, TokenLogprob
from rlhf.serve.protocol import ApiError, ChatBody, CompletionBody, usage
from rlhf.serve.text import UNFINISHED

SMALLEST_TOP_P = 1e-6
# Below this the quotients of logits may leave the range of fp32; it would take the most probable token anyway.
SMALLEST_TEMPERATURE = 1e-4
# JSON has no infinity: what a token that cannot come is said to have, as OpenAI's endpoint does.
LEAST_LOGPROB = -9999.0
# A tokenizer may be used by one thread at a time where texts are encoded: it keeps its settings in itself.
_ENCODING = threading.Lock()


@dataclass
class Reply:
    """One request with its jobs, each a choice of the answer. Pieces arrive as (choice, piece) in `pieces`."""

    body: ChatBody | CompletionBody
    choice: Choice
    prompts: list[list[int]]
    jobs: list[Job] = field(default_factory=list)
    pieces: asyncio.Queue[tuple[int, Piece]] = field(default_factory=asyncio.Queue)
    created: int = field(default_factory=lambda: int(time.time()))
    begun: float = field(default_factory=time.monotonic)
    texts: list[str] = field(default_factory=list)
    finishes: list[Finish | None] = field(default_factory=list)
    logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    status: int = 200
    gone: bool = False

    def __post_init__(self) -> None:
        self.is_chat = isinstance(self.body, ChatBody)
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{secrets.token_hex(12)}"

    @property
    def codec(self) -> ChatCodec:
        return self.choice.served.writer.codec

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def num_completion_tokens(self) -> int:
        return sum(len(job.tokens) for job in self.jobs)

    @property
    def usage(self) -> dict[str, int]:
        return usage(self.num_prompt_tokens, self.num_completion_tokens)


class Answering:
    """Takes requests to the catalog's models and the engine. `default_limit`: tokens where a request says nothing."""

    def __init__(self, catalog: Catalog, engine: Engine, *, default_limit: int) -> None:
        self.catalog, self.engine, self.default_limit = catalog, engine, default_limit

    def open(self, body: ChatBody | CompletionBody, loop: asyncio.AbstractEventLoop) -> Reply:
        """Encode the request and queue its jobs; `close` must follow. Raises ApiError.

        To be called in a thread: a long prompt takes a moment to encode.
        """
        if not self.catalog.ready:
            raise ApiError(503, "the model is still loading", code="loading", retry_after_s=2)
        try:
            choice = self.catalog.borrow(body.model, conversation_of(body))
        except KeyError as error:
            known = ", ".join(sorted(self.catalog.names()))
            raise ApiError(
                404,
                f"there is no model '{body.model}'; known: {known}",
                param="model",
                code="model_not_found",
            ) from error
        try:
            reply = Reply(body, choice, self._prompts(body, choice.served.writer.codec))
            self._queue(reply, loop)
        except BaseException:
            self.catalog.give_back(choice)
            raise
        return reply

    def close(self, reply: Reply) -> None:
        """The request has ended, or nobody waits for it any more."""
        if any(math.isnan(job.times.ended) for job in reply.jobs):
            reply.gone = True
            self.engine.cancel(reply.jobs)
        self.catalog.give_back(reply.choice)

    def _prompts(self, body: ChatBody | CompletionBody, codec: ChatCodec) -> list[list[int]]:
        try:
            with _ENCODING:
                if isinstance(body, ChatBody):
                    prompts = [codec.prompt_ids([message.record() for message in body.messages])]
                else:
                    prompts = [_raw(codec, prompt) for prompt in body.prompts]
        except (DataError, UnicodeEncodeError, TypeError) as error:
            name = "messages" if isinstance(body, ChatBody) else "prompt"
            raise ApiError(400, f"'{name}' cannot be encoded: {error}", param=name) from error
        for ids in prompts:
            self._check_length(body, ids, codec)
        return prompts

    def _check_length(self, body: ChatBody | CompletionBody, ids: list[int], codec: ChatCodec) -> None:
        name = "messages" if isinstance(body, ChatBody) else "prompt"
        if not ids:
            raise ApiError(400, f"'{name}' has no tokens", param=name)
        room = codec.max_tokens - len(ids)
        if room < (body.limit or 1):
            raise ApiError(
                400,
                f"'{name}' has {len(ids)} tokens; with {body.limit or 1} for the completion that is more than the "
                f"model's context of {codec.max_tokens}",
                param=name,
                code="context_length_exceeded",
            )

    def _queue(self, reply: Reply, loop: asyncio.AbstractEventLoop) -> None:
        body, codec = reply.body, reply.codec
        number, most = len(reply.prompts) * (body.n or 1), self.engine.max_waiting
        if number > most:
            raise ApiError(400, f"{number} completions in one request; at most {most} can wait", param="n")
        for prompt in reply.prompts:
            # One for each prompt: the same prompt listed twice has two answers.
            seed = secrets.randbits(63) if body.seed is None else body.seed
            for sample in range(body.n or 1):
                reply.jobs.append(
                    Job(
                        reply.choice.served.writer,
                        codec,
                        prompt,
                        self._settings(body, codec.max_tokens - len(prompt)),
                        _deliverer(reply.pieces, len(reply.jobs), loop),
                        seed=seed,
                        sample=sample,
                        num_logprobs=body.num_logprobs,
                        strip=reply.is_chat,
                    )
                )
        reply.texts = [""] * len(reply.jobs)
        reply.finishes = [None] * len(reply.jobs)
        reply.logprobs = [[] for _ in reply.jobs]
        try:
            self.engine.submit(reply.jobs)
        except QueueFullError as error:
            raise ApiError(429, str(error), code="queue_full", retry_after_s=1) from error
        except EngineStoppedError as error:
            raise ApiError(503, str(error), code="stopped", retry_after_s=5) from error

    def _settings(self, body: ChatBody | CompletionBody, room: int) -> SamplingSettings:
        temperature = 1.0 if body.temperature is None else body.temperature
        return SamplingSettings(
            temperature=0.0 if temperature < SMALLEST_TEMPERATURE else temperature,
            top_p=1.0 if body.top_p is None else max(body.top_p, SMALLEST_TOP_P),
            top_k=body.top_k or 0,
            max_completion_tokens=body.limit or min(self.default_limit, room),
            stop_strings=body.stops,
        )


def conversation_of(body: ChatBody | CompletionBody) -> str:
    """What a conversation is recognised by: the caller's `user`, else how the conversation began."""
    if body.user:
        return f"user\0{body.user}"
    if isinstance(body, ChatBody):
        begin = next((m for m in body.messages if m.role == "user"), body.messages[0])
        return f"begin\0{begin.record().content}"
    return f"prompt\0{body.prompts[0]}"


def _raw(codec: ChatCodec, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, list):
        size = len(codec.tokenizer)
        if any(token >= size for token in prompt):
            raise DataError(f"token {max(prompt)} is not in the vocabulary of {size}")
        return prompt
    ids = list(codec.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    bos = codec.tokenizer.bos_token_id
    return ids if bos is None else [bos, *ids]


def _deliverer(pieces: asyncio.Queue[tuple[int, Piece]], number: int, loop: asyncio.AbstractEventLoop) -> Any:
    def deliver(piece: Piece) -> None:
        try:
            loop.call_soon_threadsafe(pieces.put_nowait, (number, piece))
        except RuntimeError:  # the server's loop has ended, so nobody waits any more
            if not loop.is_closed():
                raise

    return deliver


async def gather(reply: Reply) -> None:
    """Wait until all choices are there. Raises ApiError 500 where one failed."""
    async for _ in _pieces(reply):
        pass


async def _pieces(reply: Reply) -> AsyncIterator[tuple[int, Piece]]:
    """The pieces as they come, kept in the reply."""
    open_choices = len(reply.jobs)
    while open_choices:
        number, piece = await reply.pieces.get()
        if piece.error is not None:
            reply.status = 500
            raise ApiError(500, f"the completion failed: {piece.error}")
        reply.texts[number] += piece.text
        reply.logprobs[number] += piece.logprobs
        reply.finishes[number] = piece.finish
        open_choices -= piece.last
        yield number, piece


def answer(reply: Reply) -> dict[str, Any]:
    """The whole answer of a request that was not streamed."""
    choices = [_whole_choice(reply, number) for number in range(len(reply.jobs))]
    kind = "chat.completion" if reply.is_chat else "text_completion"
    return {**_envelope(reply, kind), "choices": choices, "usage": reply.usage}


async def events(reply: Reply) -> AsyncIterator[bytes]:
    """The answer as server-sent events, the last one [DONE]; a fault on the way is an event with an error."""
    kind = "chat.completion.chunk" if reply.is_chat else "text_completion"
    with_usage = reply.body.with_usage

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        data = {
            **_envelope(reply, kind),
            "choices": choices,
            **({"usage": None} if with_usage else {}),
            **more,
        }
        return f"data: {json.dumps(data)}\n\n".encode()

    if reply.is_chat:
        for number in range(len(reply.jobs)):
            yield event([_part(number, delta={"role": "assistant", "content": ""})])
    waiting: list[list[TokenLogprob]] = [[] for _ in reply.jobs]  # of tokens whose text is not certain yet
    try:
        async for number, piece in _pieces(reply):
            waiting[number] += piece.logprobs
            if piece.text:
                yield event([_text_part(reply, number, piece.text, waiting[number])])
                waiting[number] = []
            if piece.finish is not None:
                yield event([_end_part(reply, number, piece.finish, waiting[number])])
    except ApiError as error:
        yield f"data: {json.dumps(error.body)}\n\n".encode()
        return
    if with_usage:
        yield event([], usage=reply.usage)
    yield b"data: [DONE]\n\n"


def _envelope(reply: Reply, kind: str) -> dict[str, Any]:
    return {
        "id": reply.id,
        "object": kind,
        "created": reply.created,
        "model": reply.choice.name,
        "system_fingerprint": reply.choice.served.model_id,
    }


def _whole_choice(reply: Reply, number: int) -> dict[str, Any]:
    text, finish = reply.texts[number], reply.finishes[number]
    told = _logprobs(reply, reply.logprobs[number])
    if reply.is_chat:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": number, "message": message, "logprobs": told, "finish_reason": finish}
    return {"index": number, "text": text, "logprobs": told, "finish_reason": finish}


def _part(number: int, **more: Any) -> dict[str, Any]:
    return {
        "index": number,
        **more,
        "logprobs": more.get("logprobs"),
        "finish_reason": more.get("finish_reason"),
    }


def _text_part(reply: Reply, number: int, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    told = _logprobs(reply, logprobs)
    if reply.is_chat:
        return _part(number, delta={"content": text}, logprobs=told)
    return _part(number, text=text, logprobs=told)


def _end_part(reply: Reply, number: int, finish: Finish, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    told = _logprobs(reply, logprobs) if logprobs else None
    if reply.is_chat:
        return _part(number, delta={}, finish_reason=finish, logprobs=told)
    return _part(number, text="", finish_reason=finish, logprobs=told)


def _logprobs(reply: Reply, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if reply.body.num_logprobs is None:
        return None
    names = _TokenNames(reply.codec)
    if reply.is_chat:
        rows = [
            {
                **names.row(one.token_id, one.logprob),
                "top_logprobs": [names.row(*other) for other in one.top],
            }
            for one in logprobs
        ]
        return {"content": rows, "refusal": None}
    return {
        "tokens": [names.text(one.token_id) for one in logprobs],
        "token_logprobs": [max(one.logprob, LEAST_LOGPROB) for one in logprobs],
        "top_logprobs": [
            {names.text(token): max(value, LEAST_LOGPROB) for token, value in one.top} for one in logprobs
        ],
        "text_offset": None,
    }


class _TokenNames:
    """Tokens as texts, the special ones too."""

    def __init__(self, codec: ChatCodec) -> None:
        self._tokenizer = codec.tokenizer

    def text(self, token: int) -> str:
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def row(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.text(token)
        # A part of a character has bytes that its text does not show.
        told = None if UNFINISHED in text else list(text.encode("utf-8", "replace"))
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": told}


def messages_of(body: ChatBody | CompletionBody) -> list[Message]:
    """What was asked, for figures about prompts."""
    if isinstance(body, ChatBody):
        return [message.record() for message in body.messages]
    return [Message(role="user", content=prompt) for prompt in body.prompts if isinstance(prompt, str)]
