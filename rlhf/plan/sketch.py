"""The backbone of a configuration on the `meta` device, with the roles of a stage: shapes, and no numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.core.backbone import REFERENCE, Backbone
from rlhf.core.chat import first_line
from rlhf.core.decoder import decoder_layers, share_clone, split_decoder
from rlhf.core.errors import ModelError
from rlhf.core.inputs import find_model
from rlhf.core.lora import MAX_MERGED_BYTES
from rlhf.core.run import Launch
from rlhf.core.settings import ModelSettings
from rlhf.plan.config import PlanConfig

POLICY, VALUE, REWARD = "policy", "value", "reward"
NF4_BYTES = 0.52  # a weight and its share of the doubly quantised scales


class Sketch(Backbone):
    """A Backbone without weights: what it keeps alive in a pass can be counted, what it computes cannot be read."""

    def _check_logits(self) -> None:
        """Nothing: there are no numbers to compare."""

    def split(self) -> None:
        """`enable_trunk` without its probe."""
        reference = self.roles[REFERENCE]
        if reference.model is self.model:
            reference.model = share_clone(self.model)
            self._quicken(reference)
        first = min(role.first_adapted_layer for role in self.roles.values())
        if 0 < first < self.num_layers:
            self._trunk, _ = split_decoder(self.decoder, first)
            for role in self.roles.values():
                role.top = split_decoder(role.causal_lm.get_decoder(), first)[1]
            self.first_top_layer = first


def read_config(text: str, launch: Launch) -> Any:
    """The model's configuration, with its largest length. Raises ModelError."""
    path = find_model(text, launch)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: has no configuration that can be read ({first_line(error)})") from error


def draw(model_config: Any, plan: PlanConfig) -> Sketch:
    """The stage's base and roles. Raises ModelError for what is no causal language model."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                model_config,
                dtype=getattr(torch, plan.model.dtype),
                attn_implementation=plan.model.attn_implementation,
                trust_remote_code=False,
            )
    except (ValueError, KeyError, AttributeError, ImportError) as error:
        raise ModelError(
            f"{plan.base}: cannot be made a causal language model ({first_line(error)})"
        ) from error
    model.eval().requires_grad_(plan.method == "full")
    codec: Any = None  # a sketch has no tokens to write
    sketch = Sketch(model, codec, str(plan.base))
    if plan.method == "full":
        return sketch
    if plan.stage == "reward":
        sketch.add_role(REWARD, plan.lora, seed=0, scalar_head=True)
    else:
        own_value = plan.stage == "ppo" and plan.value_adapter
        sketch.add_role(POLICY, plan.lora, seed=0, scalar_head=plan.stage == "ppo" and not own_value)
        if own_value:
            sketch.add_role(VALUE, plan.lora, seed=0, scalar_head=True)
    if plan.stage != "sft" and plan.trunk_cache:
        sketch.split()
    if plan.gradient_checkpointing:
        for name in [name for name in sketch.roles if name != REFERENCE]:
            sketch.checkpoint_gradients(name)
    return sketch


def weight_bytes(sketch: Sketch, settings: ModelSettings) -> int:
    """The base on its device; in 4 bits the linear layers of the decoder are."""
    total = sum(t.numel() * t.element_size() for t in unique(sketch.model))
    if settings.quantization == "none":
        return total
    linears = [
        m for layer in decoder_layers(sketch.decoder) for m in layer.modules() if isinstance(m, nn.Linear)
    ]
    numbers = sum(m.weight.numel() for m in linears)
    size = getattr(torch, settings.dtype).itemsize
    return round(total - numbers * (size - NF4_BYTES))


def unique(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, a tied one once."""
    found = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return list(found.values())


def adapted_bytes(sketch: Sketch, role: str) -> int:
    """The base's weights under a role's adapters: the size of one merged copy of them."""
    layers = sketch.roles[role].model.modules()
    return sum(
        m.base_layer.weight.numel() * m.base_layer.weight.element_size()
        for m in layers
        if hasattr(m, "lora_A")
    )


def merged_bytes(sketch: Sketch, role: str, settings: ModelSettings) -> int:
    """What a role holds of merged weights between two optimizer steps (see `rlhf.core.lora`)."""
    size = adapted_bytes(sketch, role)
    keeps = settings.dtype == "float32" and settings.quantization == "none" and size <= MAX_MERGED_BYTES
    return size if keeps else 0


def trained_bytes(sketch: Sketch, roles: list[str]) -> int:
    """The trained numbers of these roles; of the whole model where there are none."""
    if not roles:
        return sum(p.numel() * p.element_size() for p in sketch.model.parameters())
    return sum(p.numel() * p.element_size() for role in roles for p in sketch.roles[role].parameters())
