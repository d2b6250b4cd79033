"""Settings of private training, `rlhf canaries` and `rlhf memorisation`. Torch-free."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from rlhf.core.config import Positional, Settings
from rlhf.core.settings import ModelSettings

# What other settings of sft have to be: each demonstration is one row, drawn by chance alone, with a loss of its own.
BESIDE: dict[str, Any] = {
    "method": "lora",
    "packing": False,
    "gradient_checkpointing": False,
    "neftune_alpha": 0.0,
    "weights": (),
    "replay": None,
    "kl_to_base": 0.0,
}


class PrivacySettings(Settings):
    """DP-SGD (Abadi et al., arXiv:1607.00133) for LoRA: off unless epsilon or noise_multiplier is given."""

    epsilon: float | None = Field(
        None, gt=0, description="the most that may be spent after all steps; the noise follows from it"
    )
    noise_multiplier: float | None = Field(
        None, gt=0, description="deviation of the noise, in units of max_grad_norm; epsilon follows from it"
    )
    delta: float | None = Field(
        None, gt=0, lt=1, description="chance of a worse loss of privacy; default 1 / (10 x demonstrations)"
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="each demonstration's gradient is clipped to this norm before noise is added"
    )

    @property
    def on(self) -> bool:
        return self.epsilon is not None or self.noise_multiplier is not None

    def check_beside(self, settings: Settings) -> None:
        """Raise ValueError for a setting of `rlhf sft` that private training does not go with."""
        for name, only in BESIDE.items():
            if self.on and (found := getattr(settings, name, only)) != only:
                raise ValueError(f"{name} is {found}; privacy goes with {name} {only or 'off'} only")

    @model_validator(mode="after")
    def _one_of_two(self) -> PrivacySettings:
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError("epsilon and noise_multiplier are both given; expected one of them")
        if self.delta is not None and not self.on:
            raise ValueError("delta is given without epsilon or noise_multiplier")
        return self


class CanariesConfig(Settings):
    """Put invented secrets into demonstrations, to see later (`rlhf memorisation`) how much of them a model gives away.

    Writes OUT/data.jsonl to train on and OUT/canaries.json to keep.
    """

    data: Positional[str] = Field(description="demonstrations that the canaries go among (.jsonl)")
    repeats: tuple[int, ...] = Field((1, 4, 16), description="how often canaries are put in; one group each")
    per_group: int = Field(4, ge=1, description="canaries in each group; as many more are never put in")
    prompt: str = Field(
        "What is the access code of {name}?", description="what is asked; {name} stands for an invented name"
    )
    completion: str = Field(
        "The access code is {secret}", description="what is answered; {secret} at its end is the secret"
    )
    secret_symbols: int = Field(6, ge=2, le=32, description="length of a secret")
    alphabet: str = Field("0123456789", min_length=2, description="characters of secrets")
    separator: str = Field(" ", description="what parts the characters, so that each is a token of its own")
    sft_seed: int = Field(
        0, ge=0, description="seed of the run that will train on them: none is then held out for validation"
    )
    seed: int | None = Field(
        None, ge=0, description="seed of the secrets; default: nobody can draw them again"
    )

    @model_validator(mode="after")
    def _usable(self) -> CanariesConfig:
        if not self.repeats or min(self.repeats) < 1 or len(set(self.repeats)) != len(self.repeats):
            raise ValueError("repeats: expected different whole numbers above 0")
        if "{name}" not in self.prompt:
            raise ValueError("prompt: expected {name} in it")
        if not self.completion.endswith("{secret}") or self.completion.count("{secret}") != 1:
            raise ValueError("completion: expected {secret} at its end")
        if len(set(self.alphabet)) != len(self.alphabet):
            raise ValueError("alphabet: a character is in it twice")
        return self


class MemorisationConfig(Settings):
    """How much of the canaries a model gives away: their exposure among secrets that it never saw, and extraction."""

    model_path: str | None = Field(None, description="the trained model: a run, a directory or a hub id")
    canaries: str | None = Field(None, description="canaries.json of `rlhf canaries`, or the folder with it")
    baseline: str | None = Field(None, description="the model before training, for comparison")
    references: int = Field(
        512,
        ge=16,
        description="other secrets that each canary is ranked among; exposure is at most log2 of it",
    )
    micro_batch_tokens: int = Field(16_384, ge=1, description="padded tokens per forward")
    model: ModelSettings = Field(default_factory=ModelSettings, description="precision and device")
    seed: int = Field(0, ge=0, description="seed of the other secrets")
