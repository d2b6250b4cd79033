"""Settings that more than one training stage has: adapters, the optimizer, sampling, where the model runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf.core.config import Settings


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al., arXiv:2106.09685) on the top share of the decoder's layers."""

    r: int = Field(16, ge=1, description="rank of the update matrices")
    alpha: float = Field(32.0, gt=0, description="scale: the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapter; ppo refuses any")
    adapter_layers: float = Field(
        0.5, gt=0, le=1, description="share of the layers, from the top, that get adapters (1.0 = all)"
    )


class OptimSettings(Settings):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) with linear warm-up."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after the warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this global norm")


class SamplingSettings(Settings):
    """How completions are drawn."""

    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the smallest set of tokens with this mass")
    top_k: int = Field(0, ge=0, description="keep this many tokens; 0 keeps all")
    max_completion_tokens: int = Field(64, ge=1, description="longest completion, end token included")
    stop_tokens: tuple[str, ...] = Field(
        (), description="tokens that end a completion beside the model's own"
    )
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="texts that end a completion; they are cut from its text"
    )
    engine: Literal["native", "transformers"] = Field(
        "native",
        description="who decodes: this project's sampler, or transformers' generate as the reference",
    )


class ModelSettings(Settings):
    """In what precision and where the frozen backbone is held."""

    dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision of the backbone")
    quantization: Literal["none", "nf4"] = Field(
        "none", description="nf4 holds the linear layers in 4 bits (extra qlora); such a base is never merged"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    attn_implementation: str | None = Field(
        None, description="attention kernel of transformers; default the best one that the architecture has"
    )
