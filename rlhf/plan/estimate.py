"""Peak memory of a stage: the largest of its phases, each a sum of named parts in bytes.

What tensors take is counted (`passes`). What the process takes beyond them on a CPU was measured
(`docs/operations.md`): a fixed cost of threads, code and small objects, and idle blocks in proportion to what a pass
has alive, since glibc often cannot use an aligned block again once it was freed. On a GPU the figures are what torch
allocates; the driver's own share (0.3 to 0.6 GB) comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.plan.config import PlanConfig
from rlhf.plan.passes import prefill_pass, reward_pass, sft_pass, update_pass
from rlhf.plan.sketch import (
    POLICY,
    REWARD,
    VALUE,
    Sketch,
    adapted_bytes,
    draw,
    merged_bytes,
    trained_bytes,
    weight_bytes,
)

# Measured on a CPU (`docs/operations.md` says with which runs); reward's are taken from ppo, whose passes are alike.
FIXED_BYTES = {"sft": 54e6, "reward": 78e6, "ppo": 78e6}
IDLE_SHARE = {"sft": 2.46, "reward": 0.0, "ppo": 0.0}
# Parts that come and go with every pass, and leave idle blocks behind.
PASSING = ("activations", "logits and activations", "prefill")


@dataclass(frozen=True)
class Phase:
    """A time of the run and what is alive in it, in bytes by name."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Estimate:
    """peak: the phase with the largest total."""

    phases: Sequence[Phase]

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)


def estimate(model_config: Any, plan: PlanConfig) -> Estimate:
    """What the stage needs with these settings. Raises ModelError."""
    sketch = draw(model_config, plan)
    phases = {"sft": _sft, "reward": _reward, "ppo": _ppo}[plan.stage](sketch, plan)
    return Estimate([_with_process(phase, plan) for phase in phases])


def on_cpu(plan: PlanConfig) -> bool:
    return not plan.model.device.startswith("cuda")


def _with_process(phase: Phase, plan: PlanConfig) -> Phase:
    """The phase with what a process on a CPU takes beyond its tensors."""
    if not on_cpu(plan):
        return phase
    passing = sum(size for name, size in phase.parts.items() if name in PASSING)
    extra = {
        "idle blocks": round(IDLE_SHARE[plan.stage] * passing),
        "process": round(FIXED_BYTES[plan.stage]),
    }
    return Phase(phase.name, {name: size for name, size in (phase.parts | extra).items() if size})


def _learned(trained: int) -> dict[str, int]:
    return {"gradients": trained, "optimizer": 2 * trained}


def _sft(sketch: Sketch, plan: PlanConfig) -> list[Phase]:
    weights = weight_bytes(sketch, plan.model)
    full = plan.method == "full"
    trained = trained_bytes(sketch, [] if full else [POLICY])
    own = {"weights": weights} if full else {"weights": weights, "adapters": trained}
    best = {"best step": trained}
    phases = [Phase("loading", {"weights": weights, "file": weights})]
    passes = sft_pass(sketch, plan, min(plan.micro_batch_size, plan.batch_size))
    phases.append(Phase("training", own | _learned(trained) | best | {"activations": passes}))
    merged = weights if full else adapted_bytes(sketch, POLICY)
    saving = own | _learned(trained) | best | {"merged copy": 0 if full else merged}
    phases.append(Phase("saving", saving))
    return phases


def _reward(sketch: Sketch, plan: PlanConfig) -> list[Phase]:
    weights = weight_bytes(sketch, plan.model)
    trained = trained_bytes(sketch, [REWARD])
    own = {"weights": weights, "adapters": trained, "best step": trained} | _learned(trained)
    own["merged weights"] = merged_bytes(sketch, REWARD, plan.model) if not plan.lora.dropout else 0
    if sketch.first_top_layer is not None:
        own["states below the adapters"] = (
            plan.num_texts * plan.row_tokens * sketch.hidden_size * sketch.dtype.itemsize
        )
    passes = reward_pass(sketch, plan, plan.micro_batch_size)
    return [
        Phase("loading", {"weights": weights, "file": weights}),
        Phase("training", own | {"activations": passes}),
    ]


def _ppo(sketch: Sketch, plan: PlanConfig) -> list[Phase]:
    weights = weight_bytes(sketch, plan.model)
    roles = [POLICY, VALUE] if plan.value_adapter else [POLICY]
    trained = trained_bytes(sketch, roles)
    merged = sum(merged_bytes(sketch, role, plan.model) for role in roles)
    own = {"weights": weights, "adapters": trained, "optimizer": 2 * trained, "boundary state": 3 * trained}
    if plan.reward_adapter:
        own["reward"] = trained_bytes(sketch, [POLICY]) + merged_bytes(sketch, POLICY, plan.model)
    states = {}
    if sketch.first_top_layer is not None:
        tokens = plan.batch_size * plan.row_tokens
        states["states below the adapters"] = tokens * sketch.hidden_size * sketch.dtype.itemsize
    sampling = own | {name: 2 * size for name, size in states.items()}
    sampling |= {"key/value cache": cache_bytes(sketch, plan), "arranged weights": _arranged(sketch, plan)}
    prefill = own | {"key/value cache": cache_bytes(sketch, plan)}
    prefill["prefill"] = prefill_pass(sketch, plan, plan.batch_size)
    passes = update_pass(sketch, plan, min(plan.micro_batch_size, plan.batch_size))
    update = own | states | {"gradients": trained, "merged weights": merged}
    return [
        Phase("loading", {"weights": weights, "file": weights}),
        Phase("prompts", prefill),
        Phase("sampling", sampling),
        Phase("update", update | {"logits and activations": passes}),
    ]


def cache_bytes(sketch: Sketch, plan: PlanConfig) -> int:
    """Keys and values of a rollout, all rows at their longest (at most 65,536 tokens are decoded at once)."""
    config = sketch.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = min(plan.batch_size * plan.row_tokens, max(65_536, plan.row_tokens))
    return 2 * sketch.num_layers * heads * size * tokens * sketch.dtype.itemsize


def _arranged(sketch: Sketch, plan: PlanConfig) -> int:
    """The copies of all fp32 weights that a CPU decodes with (see `rlhf.core.packed`), or a merged copy of the
    adapted ones elsewhere."""
    if on_cpu(plan) and plan.model.dtype == "float32" and plan.model.quantization == "none":
        head = sketch.head.weight_VH
        layers = sum(p.numel() * p.element_size() for p in sketch.decoder.layers.parameters())
        return layers + head.numel() * head.element_size()
    return 0 if plan.model.quantization != "none" else adapted_bytes(sketch, POLICY)
