"""Settings of `rlhf serve` and `rlhf chat`. Torch-free."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rlhf.core.config import Settings
from rlhf.core.settings import ModelSettings

LIVE_PROJECT = "live"


class ServeConfig(Settings):
    """An OpenAI-compatible endpoint for the champion, or for one model: /v1/chat/completions, /v1/completions."""

    model_path: str | None = Field(
        None,
        description="serve this run, adapter or model directory; default the registry's champion, followed "
        "when its name moves",
    )
    host: str = Field("127.0.0.1", description="address to listen on; others than this machine's need a key")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    public_hosts: tuple[str, ...] = Field(
        (), description="host names under which programs reach the endpoint; others are refused"
    )
    api_key_file: Path | None = Field(
        None, description="file with the key that callers must send; default the variable RLHF_API_KEY"
    )
    canary_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the conversations that the registry's candidate answers; 0 for none",
    )
    poll_s: float = Field(1.0, gt=0, le=60, description="seconds between two looks at the registry's names")
    max_batch_rows: int = Field(32, ge=1, le=1024, description="completions that are written at once")
    max_batch_tokens: int = Field(
        65_536, ge=1, description="rows x (prompt + completion) tokens of a batch; bounds its key/value cache"
    )
    max_waiting: int = Field(
        256, ge=1, description="completions that wait for a place; more are answered 429"
    )
    default_max_tokens: int = Field(
        512,
        ge=1,
        description="longest completion where the request says nothing (less where the context ends)",
    )
    drain_s: float = Field(30.0, ge=0, description="seconds that a stop waits for requests in flight")
    score_with: str | None = Field(
        None, description="reward run that scores a share of the answers in the background, for /monitor"
    )
    score_share: float = Field(0.1, gt=0, le=1, description="share of the answers that are scored")
    reference_prompts: str | None = Field(
        None,
        description="JSONL of the training prompts, which live prompts are compared with; default the first "
        "500 that are served",
    )
    live_project: str = Field(
        LIVE_PROJECT, description="project of the feedback store whose thumbs /monitor shows"
    )
    model: ModelSettings = Field(default_factory=ModelSettings)


class ChatConfig(Settings):
    """A chat page against an OpenAI-compatible endpoint, whose thumbs, choices and corrections are kept as ratings."""

    endpoint: str = Field(
        "http://127.0.0.1:8000/v1", description="base URL of the endpoint, such as that of `rlhf serve`"
    )
    model_name: str | None = Field(
        None, description="model to ask for; default the first that the endpoint lists"
    )
    api_key_file: Path | None = Field(
        None, description="file with the endpoint's key; default the variable RLHF_API_KEY"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(7870, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    public_hosts: tuple[str, ...] = Field(
        (), description="host names under which people reach the chat; others are refused"
    )
    secure_cookies: bool = Field(False, description="set the Secure flag on cookies; for use behind TLS")
    trusted_proxy: bool = Field(False, description="take the client's address from X-Forwarded-For")
    guests: bool = Field(
        False, description="let people chat without an account; what they say is booked on 'chat-guest'"
    )
    project: str = Field(LIVE_PROJECT, description="project of the feedback store that gets the ratings")
    title: str = Field("chat", min_length=1, max_length=60, description="heading of the page")
    system_prompt: str = Field("", max_length=20_000, description="first message of every conversation")
    compare_share: float = Field(
        0.2, ge=0, le=1, description="share of the questions that get two answers to choose from"
    )
    temperature: float = Field(0.8, ge=0, le=2, description="temperature of the answers")
    max_tokens: int = Field(512, ge=1, description="longest answer in tokens")
    timeout_s: float = Field(120.0, gt=0, description="seconds that an answer may take")
    simulated: bool = Field(False, description="mark what is collected as simulated")
