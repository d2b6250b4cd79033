"""Settings of `rlhf compare`. Torch-free."""

from __future__ import annotations

import contextlib
import re
from typing import Any, get_args

import yaml
from pydantic import Field, model_validator

from rlhf.core.config import Settings
from rlhf.core.settings import LoraSettings, ModelSettings, SamplingSettings
from rlhf.ppo.config import PPOConfig
from rlhf.preference.config import Method, PreferConfig

PPO, BEST_OF_N = "ppo", "best-of-n"
METHODS: tuple[str, ...] = (PPO, *get_args(Method), BEST_OF_N)
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(s|m|h|tokens|)$")


class CompareConfig(Settings):
    """Tune the same backbone by several methods on the same data at the same price, and say which one is better.

    Without --backbone it makes the embedded world in the workspace first and compares there.
    """

    methods: str = Field(
        "ppo,dpo,kto,grpo,rloo,best-of-n",
        description=f"separated by commas, of: {', '.join(METHODS)}",
    )
    budget: str = Field(
        "120s",
        description="compute of each method's training: seconds (120s, 5m, 1h) or tokens through the model "
        "(3e6tokens; one forward counts 1, with its backward 3)",
    )
    seeds: int = Field(1, ge=1, description="runs of each method; their wins are counted together")

    backbone: str | None = Field(None, description="the supervised model that all of them start from")
    snapshot: str | None = Field(None, description="ratings, for the offline methods")
    reward: str | None = Field(None, description="what the online methods and best-of-n maximise")
    prompts: str | None = Field(None, description="JSONL of prompts that the online methods train on")
    eval_prompts: str | None = Field(
        None, description="JSONL of prompts by which the online methods choose their best policy"
    )
    heldout: str | None = Field(None, description="JSONL of prompts that all answer at the end, seen by none")
    judge: str | None = Field(
        None, description="who compares the answers: file.py:function or a reward run; as in rlhf evaluate"
    )
    n: int = Field(8, ge=2, description="best-of-n: completions per prompt")
    overrides: tuple[str, ...] = Field(
        (),
        description="settings of single methods, as METHOD.KEY=VALUE: dpo.optim.lr=3e-4, ppo.kl_coef=0.02 "
        "(keys of `rlhf prefer` and `rlhf ppo`; all.KEY=VALUE is for every method that has the key)",
    )
    sampling: SamplingSettings = Field(default_factory=SamplingSettings)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    max_prompts: int | None = Field(
        None, ge=1, description="take this many prompts from the start of heldout"
    )
    isolate: bool = Field(
        True, description="run each method in a process of its own, so that its peak memory can be told"
    )
    register_runs: bool = Field(True, description="note every finished run in the registry")
    seed: int = Field(0, ge=0, description="seed of everything random; further runs take the next ones")

    @property
    def names(self) -> list[str]:
        """The methods, in the order in which they were asked for."""
        return [name.strip() for name in self.methods.split(",") if name.strip()]

    @property
    def budget_seconds(self) -> float | None:
        value, unit = self._budget()
        return None if unit == "tokens" else value * _UNITS[unit]

    @property
    def budget_tokens(self) -> int | None:
        value, unit = self._budget()
        return int(value) if unit == "tokens" else None

    def _budget(self) -> tuple[float, str]:
        found = _BUDGET.match(self.budget.strip())
        if found is None or float(found[1]) <= 0:
            raise ValueError(f"budget is {self.budget!r}; expected something like 120s, 5m or 3e6tokens")
        return float(found[1]), found[2]

    def overrides_of(self, method: str, known: set[str]) -> dict[str, Any]:
        """Nested settings for one method; those for it alone win over those for all, which need a known key."""
        values: dict[str, Any] = {}
        for scope in ("all", method):
            for text in self.overrides:
                name, keys, value = _override(text)
                if name == scope and (scope == method or keys[0] in known):
                    _put(values, keys, value)
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> CompareConfig:
        self._budget()
        for name in self.names:
            if name not in METHODS:
                raise ValueError(f"methods names {name!r}; expected some of {', '.join(METHODS)}")
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"methods is {self.methods!r}; expected each method once, separated by commas")
        known = {*PreferConfig.model_fields, *PPOConfig.model_fields}
        for text in self.overrides:
            scope, keys, _ = _override(text)
            if scope not in (*self.names, "all"):
                raise ValueError(f"overrides: {text!r} is for {scope!r}, which is not among the methods")
            if scope == BEST_OF_N:
                raise ValueError(
                    f"overrides: {text!r}: best-of-n is not trained; what it has is --n and --sampling"
                )
            if scope == "all" and keys[0] not in known:
                raise ValueError(f"overrides: {text!r}: no method has a setting {keys[0]!r}")
        return self


def _override(text: str) -> tuple[str, list[str], Any]:
    """(method, keys, value) of METHOD.KEY=VALUE."""
    left, equals, right = text.partition("=")
    method, *keys = left.strip().split(".")
    if not equals or not keys or not all(keys):
        raise ValueError(f"overrides: {text!r} is not of the form METHOD.KEY=VALUE")
    try:
        value = yaml.safe_load(right)
    except yaml.YAMLError as error:
        raise ValueError(f"overrides: the value of {text!r} cannot be read") from error
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 takes 3e-4 for a text
            value = float(value)
    return method, keys, value


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    *outer, last = keys
    for key in outer:
        values = values.setdefault(key, {})
    values[last] = value
