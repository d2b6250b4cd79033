"""What supervised tuning can train: each method as a role of the backbone, and what a run leaves of it.

    lora     W + B A alpha / r                                       Hu et al., arXiv:2106.09685
    dora     the same, with the length of each column trained apart  Liu et al., arXiv:2402.09353
    rslora   alpha / sqrt(r), so that large ranks learn too          Kalajdzievski, arXiv:2312.03732
    qlora    LoRA beside a base in 4 bits                            Dettmers et al., arXiv:2305.14314
    full     all weights
    ia3      keys, values and the MLP's inner numbers are scaled     Liu et al., arXiv:2205.05638
    adapters, prefix-tuning, prompt-tuning                           `rlhf.core.bottleneck`, `rlhf.core.virtual_tokens`

The last three change no weight: a run of them ends with its adapter. All others end in a merged model directory, the
backbone of the next stages. QLoRA's adapter is merged into the base as it was before it was rounded to 4 bits: a
model in 4 bits cannot take up an adapter without rounding it away.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import IA3Config
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from rlhf.core.adapters import save_policy
from rlhf.core.backbone import Backbone, Role
from rlhf.core.bottleneck import add_bottlenecks
from rlhf.core.decoder import linear_names
from rlhf.core.errors import CheckpointError, ModelError
from rlhf.core.files import atomic_folder, clear_folders
from rlhf.core.randomness import derived_seed
from rlhf.core.virtual_tokens import prompt_config, start_from_tokens
from sft.config import LORA_METHODS, UNMERGED_METHODS, SFTConfig

# Linear modules whose output IA3 scales (fused projections as a whole), and those whose input it scales.
IA3_OUTPUTS = ("k_proj", "v_proj", "query_key_value", "qkv_proj", "c_attn")
IA3_INPUTS = ("down_proj", "dense_4h_to_h", "mlp.c_proj", "fc2", "w2")


def add_method(backbone: Backbone, name: str, config: SFTConfig, start: Sequence[int]) -> Role:
    """A fresh role of the method. It starts out equal to the base, except with virtual tokens.

    start: token ids that virtual tokens begin as. Raises ModelError for an architecture that the method cannot take.
    """
    method, seed = config.method, config.seed
    if method in LORA_METHODS:
        variant = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True}}.get(method, {})
        return backbone.add_role(name, config.lora, seed=seed, **variant)
    if method == "full":
        return _all_weights(backbone, name)
    seed, first = derived_seed(seed, name, "adapter"), backbone.first_layer(config.lora.adapter_layers)
    if method == "adapters":
        return add_bottlenecks(backbone, name, width=config.bottleneck, first_layer=first, seed=seed)
    if method == "ia3":
        return backbone.attach_role(name, _ia3_config(backbone, first), head=None, seed=seed)
    prompts = prompt_config(
        prefix=method == "prefix-tuning", num_tokens=config.virtual_tokens, base=backbone.name
    )
    role = backbone.attach_role(name, prompts, head=None, seed=seed)
    start_from_tokens(role.model, start)
    return role


def _all_weights(backbone: Backbone, name: str) -> Role:
    """The loaded model itself: its files stay as they are, but from here on the reference is this role too."""
    backbone.model.requires_grad_(True)
    role = Role(name, backbone.model, None, None, first_adapted_layer=0)
    backbone.roles[name] = role
    return role


def _ia3_config(backbone: Backbone, first_layer: int) -> IA3Config:
    names = linear_names(backbone.model, backbone.decoder, first_layer)
    inputs = [name for name in names if name.endswith(IA3_INPUTS)]
    targets = [name for name in names if name.endswith(IA3_OUTPUTS)] + inputs
    if not inputs or len(targets) == len(inputs):
        kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
        raise ModelError(
            f"{backbone.name}: its linear layers are {kinds}; method ia3 expects one of {', '.join(IA3_OUTPUTS)} and "
            f"one of {', '.join(IA3_INPUTS)}"
        )
    return IA3Config(
        target_modules=targets,
        feedforward_modules=inputs,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in backbone.decoder.modules()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=backbone.name,
    )


# ---- states ------------------------------------------------------------------------------------------------------


def trained_tensors(role: Role) -> dict[str, Tensor]:
    """Copies of all that is trained, on the CPU, by the names of the parameters."""
    return {name: p.detach().cpu().clone() for name, p in role.model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trained(role: Role, tensors: dict[str, Tensor], where: str) -> None:
    """Put back what `trained_tensors` gave. Raises CheckpointError where it does not fit."""
    trained: dict[str, nn.Parameter] = {n: p for n, p in role.model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in trained.items()} != {n: t.shape for n, t in tensors.items()}:
        raise CheckpointError(f"{where}: does not fit the model: other parameters are trained here")
    for name, parameter in trained.items():
        parameter.copy_(tensors[name])


def count_parameters(backbone: Backbone, role: Role) -> tuple[int, int]:
    """(trained, of the base). In 4 bits two weights are one stored number, so linear layers count by their sizes."""
    trained = sum(p.numel() for p in role.parameters())
    packed = [m for m in backbone.model.modules() if getattr(m, "quant_state", None) is not None]
    inside = {id(m.weight) for m in packed}
    total = sum(p.numel() for p in backbone.model.parameters() if id(p) not in inside)
    return trained, total + sum(m.in_features * m.out_features for m in packed)


# ---- what is left of a run -----------------------------------------------------------------------------------------


def results_of(config: SFTConfig) -> tuple[str, ...]:
    """The folders that a finished run of the method holds."""
    return (*(("adapter",) if config.method != "full" else ()), *(("model",) if merges(config) else ()))


def merges(config: SFTConfig) -> bool:
    return config.method not in UNMERGED_METHODS


def save_adapter(backbone: Backbone, role: Role, config: SFTConfig, out: Path) -> None:
    """OUT/adapter, there as a whole or not at all; nothing for method full."""
    clear_folders(out, "adapter", "model")
    if config.method != "full":
        with atomic_folder(out / "adapter") as folder:
            save_policy(role, folder, backbone)


def save_merged(backbone: Backbone, role: Role, config: SFTConfig, out: Path) -> None:
    """OUT/model, there as a whole or not at all."""
    with atomic_folder(out / "model") as folder:
        save_model(backbone, role, folder, getattr(torch, config.model.dtype))


def save_model(backbone: Backbone, role: Role, folder: Path, dtype: torch.dtype) -> None:
    """The merged model as a plain transformers directory, with tokenizer and generation settings.

    generation_config.json lists the codec's end tokens, the trained one first; `pad_token_id` is an id that
    ends nothing, so that plain loaders and ours pad alike.
    """
    codec = backbone.codec
    merged = backbone.merged(role.name)
    merged.config = copy.deepcopy(backbone.model.config)
    merged.config.get_text_config().pad_token_id = codec.pad_token_id
    generation = copy.deepcopy(backbone.model.generation_config)
    generation.eos_token_id = list(codec.end_token_ids)
    generation.pad_token_id = codec.pad_token_id
    try:
        generation.validate(strict=True)
    except ValueError:  # the base came with settings that transformers refuses to write
        generation = GenerationConfig(
            bos_token_id=codec.tokenizer.bos_token_id,
            eos_token_id=list(codec.end_token_ids),
            pad_token_id=codec.pad_token_id,
        )
    merged.generation_config = generation
    if merged.dtype != dtype:  # of method full, whose weights are trained in fp32
        merged = merged.to(dtype)
    merged.save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)


def let_go(backbone: Backbone) -> None:
    """Free the weights of a backbone that is not used any more, whoever still holds it."""
    for parameter in backbone.model.parameters():
        parameter.data = torch.empty(0)
