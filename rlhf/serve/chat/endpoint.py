"""An OpenAI-compatible endpoint, as a caller sees it: its models, and answers that come in parts."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from rlhf.core.errors import ConfigError, RlhfError
from rlhf.core.records import Message

LISTED_S = 5.0
CHAMPION, CANDIDATE = "champion", "candidate"


class EndpointError(RlhfError, RuntimeError):
    """The endpoint cannot be reached, or refuses; `status` is its answer's, 0 for none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Models:
    """model: whom to ask. rivals: two models to compare, where a candidate is tried. multi_turn: False where each
    question stands alone."""

    model: str
    rivals: tuple[str, str] | None = None
    multi_turn: bool = True


@dataclass
class Answer:
    """An answer on its way. model_id: what wrote it, as exactly as the endpoint says."""

    text: str = ""
    model_id: str = ""
    finish: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)


class Endpoint:
    """base_url ends in /v1. One client for all calls; `close` when done."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        model: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(timeout_s, connect=10.0)
        try:
            url = httpx.URL(base_url.rstrip("/") + "/")
        except httpx.InvalidURL as error:
            raise ConfigError(f"--endpoint {base_url!r}: expected a URL that ends in /v1; {error}") from error
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=timeout,
            transport=transport,
            trust_env=False,
        )
        self.base_url, self._model = base_url, model
        self._models: Models | None = None
        self._listed_at = 0.0

    async def close(self) -> None:
        await self._client.aclose()

    async def models(self) -> Models:
        """Whom to ask now; looked up at most every few seconds. Raises EndpointError."""
        if self._models is None or time.monotonic() - self._listed_at > LISTED_S:
            try:
                reply = await self._client.get("models")
            except httpx.HTTPError as error:
                raise EndpointError(f"{self.base_url} cannot be reached ({type(error).__name__})") from error
            _check(reply.status_code, reply.content)
            try:
                listed = reply.json()
            except ValueError as error:
                raise EndpointError("the endpoint lists its models in something that is not JSON") from error
            self._models, self._listed_at = _choose(listed, self._model), time.monotonic()
        return self._models

    def forget_models(self) -> None:
        """Look again at the next question: a name was not known any more."""
        self._models = None

    async def stream(
        self,
        answer: Answer,
        model: str,
        messages: Sequence[Message],
        *,
        conversation: str,
        temperature: float,
        max_tokens: int,
        seed: int,
    ) -> AsyncGenerator[str, None]:
        """The parts of one answer's text; `answer` is filled meanwhile. Raises EndpointError."""
        answer.sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        body = {
            "model": model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "stream": True,
            "user": conversation,
            **answer.sampling,
        }
        try:
            async with self._client.stream("POST", "chat/completions", json=body) as reply:
                if reply.status_code != 200:
                    _check(reply.status_code, await reply.aread())
                async with aclosing(_events(reply)) as events:
                    async for event in events:
                        try:
                            part = _take(answer, event, model)
                        except (AttributeError, LookupError, TypeError) as error:
                            raise EndpointError("the endpoint sent an event of another form") from error
                        if part:
                            yield part
        except httpx.HTTPError as error:
            raise EndpointError(f"the answer broke off ({type(error).__name__})") from error
        if not answer.finish:
            raise EndpointError("the answer broke off before its end")


async def _events(reply: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    async for line in reply.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise EndpointError("the endpoint sent an event that is not JSON") from error
        if isinstance(event, dict):
            yield event


def _take(answer: Answer, event: dict[str, Any], model: str) -> str:
    """The text of one event, which is added to the answer."""
    if event.get("error"):
        raise EndpointError(_message(event))
    answer.model_id = str(event.get("system_fingerprint") or event.get("model") or model)
    choices = event.get("choices") or []
    if not choices:
        return ""
    part = str((choices[0].get("delta") or {}).get("content") or "")
    answer.text += part
    answer.finish = str(choices[0].get("finish_reason") or answer.finish)
    return part


def _choose(listed: Any, wanted: str | None) -> Models:
    """Whom to ask, of what the endpoint lists. Raises EndpointError."""
    rows = listed.get("data") if isinstance(listed, dict) else None
    by_name = {str(row["id"]): row for row in rows or [] if isinstance(row, dict) and "id" in row}
    if not by_name:
        raise EndpointError("the endpoint lists no model")
    if wanted is not None and wanted not in by_name:
        raise EndpointError(f"the endpoint has no model '{wanted}'; it lists {', '.join(sorted(by_name))}")
    model = wanted or (CHAMPION if CHAMPION in by_name else next(iter(by_name)))
    rivals = None
    if model == CHAMPION and CANDIDATE in by_name:
        # By their own names: 'champion' alone may be answered by the candidate.
        names = [str(by_name[name].get("artifact") or name) for name in (CHAMPION, CANDIDATE)]
        rivals = (names[0], names[1])
    return Models(model, rivals, bool(by_name[model].get("multi_turn", True)))


def _check(status: int, content: bytes) -> None:
    if status == 200:
        return
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    raise EndpointError(_message(body) or f"the endpoint answered {status}", status)


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return str(error.get("message") or "")
    return str(error or "")
