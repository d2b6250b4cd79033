"""`rlhf plan`: the estimate as a table or JSON, and the largest micro-batch that fits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from rlhf.core.backbone import resolve_device
from rlhf.core.errors import ConfigError
from rlhf.core.inputs import required
from rlhf.core.machine import available_memory
from rlhf.core.run import Launch
from rlhf.plan.config import PlanConfig
from rlhf.plan.estimate import Estimate, estimate
from rlhf.plan.sketch import read_config

MB, GB = 1e6, 1e9
# An estimate may be 15 % short, and a machine that swaps is slower than one with a smaller micro-batch.
USABLE = 0.85


def run(config: PlanConfig, launch: Launch) -> None:
    """Print the plan. Raises ModelError for what has no configuration, ConfigError where the memory is not known."""
    model_config = read_config(required(config.base, "base", "the model that is to be used"), launch)
    longest = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and config.row_tokens > longest:
        raise ConfigError(
            f"--prompt-tokens and --completion-tokens are {config.row_tokens} together; the context of the model "
            f"is {longest}"
        )
    plan = on_device(config)
    available = round(config.memory_gb * GB) if config.memory_gb else free_memory(plan.model.device)
    asked = estimate(model_config, plan)
    choices = tried(model_config, plan, available)
    result = as_json(plan, asked, choices, available)
    print(json.dumps(result, indent=2) if launch.json else as_text(result))


def on_device(config: PlanConfig) -> PlanConfig:
    """The settings with `auto` resolved; a GPU that is not here may be planned for (with --memory-gb)."""
    device = config.model.device
    if device == "auto":
        device = resolve_device(device).type
    elif device.startswith("cuda"):
        device = "cuda"
    return config.model_copy(update={"model": config.model.model_copy(update={"device": device})})


def free_memory(device: str) -> int:
    """Bytes that are free on the device. Raises ConfigError where that cannot be seen."""
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    found = available_memory() if device != "cuda" else None
    if found is None:
        raise ConfigError(f"--memory-gb is required: how much memory {device} has cannot be seen here")
    return found[0]


def tried(model_config: Any, plan: PlanConfig, available: int) -> list[dict[str, Any]]:
    """Micro-batches of 1, 2, 4, ... rows, first without and then with checkpointing, up to the first too large."""
    rows = []
    for checkpointing in (False, True):
        size = 1
        while size <= plan.batch_size:
            settings = plan.model_copy(
                update={"micro_batch_size": size, "gradient_checkpointing": checkpointing}
            )
            peak = estimate(model_config, settings).peak.total
            fits = peak <= USABLE * available
            rows.append(
                {
                    "micro_batch_size": size,
                    "gradient_checkpointing": checkpointing,
                    "peak": peak,
                    "fits": fits,
                }
            )
            if not fits:
                break
            size *= 2
    return rows


def suggested(choices: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The largest micro-batch that fits without checkpointing, which costs a third more time; else with it."""
    for checkpointing in (False, True):
        fitting = [c for c in choices if c["fits"] and c["gradient_checkpointing"] == checkpointing]
        if fitting:
            return max(fitting, key=lambda choice: choice["micro_batch_size"])
    return None


def as_json(
    plan: PlanConfig, asked: Estimate, choices: list[dict[str, Any]], available: int
) -> dict[str, Any]:
    """Everything in bytes."""
    best = suggested(choices)
    return {
        "base": Path(str(plan.base)).name if os.path.isabs(str(plan.base)) else plan.base,
        "stage": plan.stage,
        "method": plan.method,
        "device": plan.model.device,
        "row_tokens": plan.row_tokens,
        "batch_size": plan.batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "available": available,
        "peak": asked.peak.total,
        "peak_phase": asked.peak.name,
        "fits": asked.peak.total <= USABLE * available,
        "phases": {phase.name: phase.parts | {"total": phase.total} for phase in asked.phases},
        "choices": choices,
        "suggested": best and {k: best[k] for k in ("micro_batch_size", "gradient_checkpointing")},
        "options": options(plan, best),
    }


def options(plan: PlanConfig, best: dict[str, Any] | None) -> str:
    """What to put on the stage's command line; empty where nothing fits."""
    if best is None:
        return ""
    size = best["micro_batch_size"]
    first = (
        f"--micro-batch-size {size}"
        if plan.stage == "sft"
        else f"--micro-batch-tokens {size * plan.row_tokens}"
    )
    return first + (" --gradient-checkpointing" if best["gradient_checkpointing"] else "")


def as_text(result: dict[str, Any]) -> str:
    """The estimate, phase by phase, then what fits."""
    told = f"{result['stage']} ({result['method']}) of {result['base']} on {result['device']}"
    lines = [
        f"{told}: {result['micro_batch_size']} rows of {result['row_tokens']} tokens at a time"
        + (", with gradient checkpointing" if result["gradient_checkpointing"] else "")
    ]
    parts = list(
        dict.fromkeys(name for phase in result["phases"].values() for name in phase if name != "total")
    )
    names = list(result["phases"])
    width = max(len(part) for part in [*parts, "total"]) + 2
    lines.append(f"{'MB':<{width}}" + "".join(f"{name:>12}" for name in names))
    for part in [*parts, "total"]:
        cells = [result["phases"][name].get(part) for name in names]
        shown = "".join(f"{'' if not cell else f'{cell / MB:,.1f}':>12}" for cell in cells)
        lines.append(f"{part:<{width}}{shown}")
    fits = "fits in" if result["fits"] else "does not fit in"
    lines.append(
        f"peak {result['peak'] / MB:,.0f} MB ({result['peak_phase']}); {fits} the {result['available'] / GB:,.1f} GB "
        f"available, of which {USABLE:.0%} are planned with"
    )
    for choice in result["choices"]:
        how = "with" if choice["gradient_checkpointing"] else "without"
        lines.append(
            f"  {choice['micro_batch_size']:>4} rows {how:>7} checkpointing: {choice['peak'] / MB:>10,.0f} MB"
            f"{'' if choice['fits'] else '  does not fit'}"
        )
    if result["options"]:
        lines.append(f"suggested: rlhf {result['stage']} {result['options']}")
    else:
        lines.append(
            "nothing fits: a smaller model, shorter rows, --model.dtype bfloat16, --model.quantization nf4 or fewer "
            "--lora.adapter-layers"
        )
    return "\n".join(lines)
