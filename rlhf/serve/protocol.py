"""OpenAI's requests, answers and errors, as far as they are served.

What a request may hold beyond that is named with its neutral values: a client that sends `frequency_penalty: 0` is
served, one that sends 0.5 is told that it would be ignored. https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf.core.records import Message
from rlhf.core.validation import nearest, problems

MAX_STOPS = 16
MAX_CHOICES = 16
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Limit = Annotated[int, Field(ge=1)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]

# Fields of OpenAI's that mean nothing here, with the values at which that makes no difference.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
    "prediction": (),
    "audio": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "safety_identifier": (),
    "prompt_cache_key": (),
    "suffix": ("",),
    "echo": (False,),
}


class ApiError(Exception):
    """Answered as OpenAI answers: {"error": {"message", "type", "param", "code"}}."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": _plain(self.message),
                "type": _TYPES[self.status],
                "param": None if self.param is None else _plain(self.param),
                "code": self.code,
            }
        }


def _plain(text: str) -> str:
    """Half a surrogate pair, which JSON can escape but UTF-8 cannot hold, as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    def record(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=content)


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class _Sampling(_Body):
    model: str = Field(min_length=1, max_length=512)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # an extension that other servers have too
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = (
        None  # a string is read as a list of one
    )
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    max_tokens: Limit | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(_Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2000)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
TokenLists = Annotated[list[Tokens], Field(min_length=1, max_length=64)]


class CompletionBody(_Sampling):
    """POST /v1/completions: the prompt as it is, without a chat template."""

    prompt: str | Tokens | Annotated[list[str], Field(min_length=1, max_length=64)] | TokenLists
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @property
    def limit(self) -> int:
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


def read_body(cls: type[ChatBody] | type[CompletionBody], data: Any) -> Any:
    """The request, checked. Raises ApiError 400 that names the field, what was found and what is expected."""
    if not isinstance(data, dict):
        raise ApiError(400, f"expected a JSON object; found {type(data).__name__}")
    fields = dict(data)
    for name, neutral in _NEUTRAL.items():
        value = fields.pop(name, None)
        if value is not None and value not in neutral:
            raise ApiError(
                400, f"'{name}' is not supported; leave it out", param=name, code="unsupported_value"
            )
    unknown = [name for name in fields if name not in cls.model_fields]
    if unknown:
        hint = nearest(unknown[0], cls.model_fields)
        raise ApiError(400, f"unknown field '{unknown[0]}'{hint}", param=unknown[0], code="unknown_parameter")
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    try:
        body = cls.model_validate(fields)
    except ValidationError as error:
        path, message = problems(error)[0]
        param = path[0] if path else None
        code = "missing_required_parameter" if message == "is missing" else "invalid_value"
        raise ApiError(400, f"'{'.'.join(path)}' {message}", param=param, code=code) from error
    _check_together(body)
    return body


def _check_together(body: ChatBody | CompletionBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "'stream_options' needs 'stream': true", param="stream_options")
    if isinstance(body, ChatBody):
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            raise ApiError(
                400, "'max_tokens' and 'max_completion_tokens' differ; give one of them", param="max_tokens"
            )
    elif body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(400, "'best_of' is not supported beside 'n'; leave it out", param="best_of")


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
