"""What is measured: model shapes, one measurement's settings, and the lengths imposed on both sides.

Torch-free and rlhf-free: the peer's process reads it too.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PAD, BEGIN, END, UNKNOWN = range(4)
NUM_SPECIAL = 4


@dataclass(frozen=True)
class Shape:
    """A model with random weights. `architecture` is a model type of transformers."""

    architecture: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool

    def config(self, context: int) -> dict[str, Any]:
        """Arguments of `AutoConfig.for_model` beside the model type."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": context,
            "pad_token_id": PAD,
            "bos_token_id": BEGIN,
            "eos_token_id": END,
        }

    @property
    def wanted(self) -> range:
        """The reward is the share of a completion's tokens in this set, half of the vocabulary."""
        return range(self.vocabulary // 2, self.vocabulary)


SHAPES = {
    "tiny": Shape("llama", 32, 2, 64, 4, 4, 64, False),
    "tiny-qwen2": Shape("qwen2", 64, 4, 96, 4, 2, 64, True),
    "llama-5m": Shape("llama", 256, 4, 688, 4, 4, 4096, False),
    "llama-14m": Shape("llama", 384, 6, 1024, 6, 6, 4096, False),
    "llama-40m": Shape("llama", 576, 9, 1536, 9, 9, 4096, False),
    "qwen2.5-0.5b": Shape("qwen2", 896, 24, 4864, 14, 2, 151_936, True),
    "qwen2.5-1.5b": Shape("qwen2", 1536, 28, 8960, 12, 2, 151_936, True),
}


@dataclass(frozen=True)
class Case:
    """One measurement, the same for both sides.

    share: part of the layers, from the top, that carries adapters. mixed: imposed lengths, uniform from 1 to
    the maximum, instead of completions that all reach it. warmup, timed, phased: iterations before the clock
    starts, on the clock, and afterwards with a stopwatch on each phase. eval_every: 0 measures speed only;
    otherwise the policy is scored on held-out prompts, off the clock, every so many iterations.
    value_coef: weight of the value loss, on both sides. value_lr: of our value head; None is lr. value: "full" is
    the peer's documented value model, "lora" gives it adapters like the policy's. keep_freed: the process starts
    with glibc's thresholds raised, so that freed memory is not given back to the kernel. pairs, shortest: of the reward
    model's benchmark only: comparisons, whose completions have from `shortest` to `completion` tokens; `batch` counts
    comparisons there.
    """

    shape: str = "llama-14m"
    share: float = 1.0
    mixed: bool = False
    batch: int = 32
    prompt: int = 32
    completion: int = 64
    epochs: int = 4
    minibatches: int = 1
    micro_rows: int = 8
    rank: int = 16
    lr: float = 3e-4
    value_coef: float = 0.5
    value_lr: float | None = None
    kl_coef: float = 0.05
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 2
    seed: int = 0
    warmup: int = 1
    timed: int = 2
    phased: int = 1
    eval_every: int = 0
    eval_prompts: int = 256
    value: str = "full"
    keep_freed: bool = False
    pairs: int = 0
    shortest: int = 16

    @property
    def iterations(self) -> int:
        return self.warmup + self.timed + self.phased

    @property
    def context(self) -> int:
        return self.prompt + self.completion

    @property
    def first_layer(self) -> int:
        """The lowest layer with an adapter."""
        layers = SHAPES[self.shape].layers
        return layers - max(1, round(layers * self.share))

    @property
    def targets(self) -> list[str]:
        """Names of the linear modules that carry adapters, as the peer's peft wants them."""
        parts = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
        layers = range(self.first_layer, SHAPES[self.shape].layers)
        return [f"model.layers.{layer}.{part}" for layer in layers for part in parts]

    def lengths(self) -> list[list[int]]:
        """[iteration][row] the position, from 1, of the end token. Beyond the maximum: never."""
        rng = random.Random(f"lengths {self.seed}")
        if not self.mixed:
            return [[self.completion + 1] * self.batch for _ in range(self.iterations)]
        return [[rng.randint(1, self.completion) for _ in range(self.batch)] for _ in range(self.iterations)]

    def num_tokens(self, iteration: int) -> int:
        """Completion tokens of an iteration, end tokens included."""
        return sum(min(length, self.completion) for length in self.lengths()[iteration])

    def prompts(self, kind: str = "train") -> list[list[int]]:
        """Token ids. Training has more prompts than are used, so that no side meets the end of its data."""
        rng = random.Random(f"prompts {kind} {self.seed}")
        count = self.eval_prompts if kind == "held-out" else self.batch * (self.iterations + 2)
        vocabulary = SHAPES[self.shape].vocabulary
        return [[rng.randrange(NUM_SPECIAL, vocabulary) for _ in range(self.prompt)] for _ in range(count)]

    @property
    def wanted(self) -> range:
        return SHAPES[self.shape].wanted


@dataclass
class Result:
    """What a measuring process reports. seconds: per timed iteration; phases: mean seconds per iteration;
    curve: (training iterations done, seconds spent in them, held-out mean, half width of its 95 % interval)."""

    seconds: list[float]
    tokens: list[int]
    memory_mb: float
    phases: dict[str, float]
    steps: int
    adapter_parameters: int
    trained_parameters: int
    curve: list[tuple[int, float, float, float]] = field(default_factory=list)
    lengths_seen: list[float] = field(default_factory=list)


def save(value: Case | Result, path: Path) -> None:
    path.write_text(json.dumps(asdict(value), indent=1) + "\n", encoding="utf-8")


def load_case(path: Path) -> Case:
    return Case(**json.loads(path.read_text(encoding="utf-8")))


def load_result(path: Path) -> Result:
    return Result(**json.loads(path.read_text(encoding="utf-8")))
