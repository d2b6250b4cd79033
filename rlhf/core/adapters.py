"""A role on disk: a standard PEFT adapter directory that plain `peft` and `transformers` load.

    adapter_config.json        base_model_name_or_path is a hub id or a path relative to the workspace
    adapter_model.safetensors  the adapter; for a reward also `score.weight`
    value_head.safetensors     the head of a policy or value role (plain loaders do not know it)
    config.json, tokenizer     for a reward: what AutoModelForSequenceClassification needs, with a pad token
                               that never ends a completion (otherwise it pools one token too early)

Loading checks every key: a sequence-classification adapter on a causal model would otherwise drop
`score.weight` without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rlhf.core.backbone import Backbone, Role
from rlhf.core.bottleneck import PEFT_TYPE, add_bottlenecks, bottleneck_tensors, load_bottleneck_tensors
from rlhf.core.chat import first_line
from rlhf.core.errors import CheckpointError, ModelError
from rlhf.core.run import Launch

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
VALUE_HEAD_FILE = "value_head.safetensors"
SCORE_KEY = "base_model.model.score.weight"
LORA_ONLY = ("LORA",)
# What supervised tuning may leave, beside bottlenecks.
CONFIGS = {
    "LORA": LoraConfig,
    "IA3": IA3Config,
    "PREFIX_TUNING": PrefixTuningConfig,
    "PROMPT_TUNING": PromptTuningConfig,
}
ALL_KINDS = (*CONFIGS, PEFT_TYPE)


def role_tensors(role: Role) -> dict[str, Tensor]:
    """Copies of the adapter's tensors, on the CPU, under the names that peft saves them by.

    Of a role without an adapter: of all weights of its decoder, under their own names.
    """
    if role.bottleneck is not None:
        state = bottleneck_tensors(role.model)
    elif role.lora is None:
        state = role.causal_lm.get_decoder().state_dict()
    else:
        state = get_peft_model_state_dict(role.model, save_embedding_layers=False)
    return {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}


def load_role_tensors(role: Role, tensors: dict[str, Tensor], where: str) -> None:
    """Put saved tensors into a role. Raises CheckpointError on any missing, unexpected or misshapen key."""
    expected = {key: value.shape for key, value in role_tensors(role).items()}
    found = {key: value.shape for key, value in tensors.items()}
    if expected != found:
        missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        shapes = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
        raise CheckpointError(
            f"{where}: does not fit the backbone: {len(missing)} keys missing, {len(extra)} unexpected, "
            f"{len(shapes)} of another shape (first: {(missing + extra + shapes)[0]})"
        )
    if role.bottleneck is not None:
        load_bottleneck_tensors(role.model, tensors)
    elif role.lora is None:
        role.causal_lm.get_decoder().load_state_dict(tensors)
    else:
        set_peft_model_state_dict(role.model, tensors)


def role_weights(role: Role) -> dict[str, Tensor]:
    """Copies of all that is trained in a role: `role_tensors` and, where there is a head, its weight as "head"."""
    weights = role_tensors(role)
    return weights if role.head is None else weights | {"head": role.head.weight.detach().cpu().clone()}


def load_role_weights(role: Role, weights: dict[str, Tensor], where: str) -> None:
    """Put back what `role_weights` gave. Raises CheckpointError where it does not fit."""
    weights = dict(weights)
    if role.head is not None:
        head = weights.pop("head", None)
        if head is None or head.shape != role.head.weight.shape:
            raise CheckpointError(f"{where}: holds no head of the shape {tuple(role.head.weight.shape)}")
        role.head.weight.data.copy_(head)
    load_role_tensors(role, weights, where)


def save_policy(role: Role, folder: Path, backbone: Backbone) -> None:
    """A causal adapter, and its value head beside it where it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(role_tensors(role), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    _save_config(role, folder, backbone.name, task_type="CAUSAL_LM", modules_to_save=None)
    if role.head is not None:
        head = {name: value.detach().cpu().contiguous() for name, value in role.head.state_dict().items()}
        save_file(head, folder / VALUE_HEAD_FILE, metadata={"format": "pt"})


def save_reward(role: Role, folder: Path, backbone: Backbone) -> None:
    """A sequence-classification adapter with its score head. Raises ModelError when transformers has no such
    head for the architecture."""
    if role.head is None or role.head.out_features != 1:
        raise ValueError(f"role {role.name!r} has no scalar head")
    settings, _ = classifier_config(backbone)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = role_tensors(role)
    tensors[SCORE_KEY] = role.head.weight.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    _save_config(role, folder, backbone.name, task_type="SEQ_CLS", modules_to_save=["score"])
    (folder / "config.json").write_text(json.dumps(settings, indent=2, default=str) + "\n", encoding="utf-8")
    save_tokenizer(backbone, folder)


def classifier_config(backbone: Backbone) -> tuple[dict[str, Any], Any]:
    """(settings, class) of the backbone's architecture as a sequence-classification model with one label.

    Raises ModelError when transformers has none."""
    config = backbone.model.config
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(
            f"{backbone.name}: transformers has no sequence classification for {config.model_type}"
        )
    classifier = AutoModelForSequenceClassification._model_mapping[type(config)]
    settings = config.to_dict() | {
        "architectures": [classifier.__name__],
        "num_labels": 1,
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "pad_token_id": backbone.codec.pad_token_id,
        "use_cache": False,
    }
    return settings, classifier


def save_tokenizer(backbone: Backbone, folder: Path) -> None:
    """The tokenizer with a pad token that ends no completion."""
    tokenizer = backbone.codec.tokenizer
    before = tokenizer.pad_token
    try:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(backbone.codec.pad_token_id)
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.pad_token = before


def _save_config(role: Role, folder: Path, base_name: str, *, task_type: str, modules_to_save: Any) -> None:
    if role.lora is None:
        assert role.bottleneck is not None
        settings: dict[str, Any] = {
            "peft_type": PEFT_TYPE,
            "width": role.bottleneck,
            "first_layer": role.first_adapted_layer,
        }
    else:
        settings = role.lora.to_dict()
        settings |= {"inference_mode": True}
        if "modules_to_save" in settings:
            settings["modules_to_save"] = modules_to_save
    settings |= {"task_type": task_type, "base_model_name_or_path": base_name}
    text = json.dumps(settings, indent=2, sort_keys=True, default=sorted)  # sets have no order of their own
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read_adapter_config(folder: Path, kinds: Sequence[str] = LORA_ONLY) -> dict[str, Any]:
    """adapter_config.json of one of these peft_types, refused where it would make peft fetch or import something.

    Raises CheckpointError."""
    path = folder / CONFIG_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: not an adapter directory (no {CONFIG_FILE})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({first_line(error)})") from error
    if not isinstance(settings, dict) or settings.get("peft_type") not in kinds:
        kind = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise CheckpointError(f"{path}: peft_type is {kind!r}; expected {' or '.join(map(repr, kinds))}")
    base = settings.get("base_model_name_or_path") or ""
    if (
        not isinstance(base, str)
        or "://" in base
        or base.startswith(("/", "\\", "~"))
        or re.match(r"[A-Za-z]:", base)
    ):
        raise CheckpointError(
            f"{path}: base_model_name_or_path is {base!r}; expected a hub id or a path relative to the workspace"
        )
    for key, value in settings.items():
        if value and (key == "auto_mapping" or key.startswith("megatron_config")):
            raise CheckpointError(f"{path}: {key} is not accepted; expected a plain configuration")
    return settings


def base_path(folder: Path, launch: Launch) -> str:
    """Where the base that an adapter names is: a path in the workspace first, as it was written, else a hub id.

    Raises CheckpointError when the adapter names none.
    """
    base = read_adapter_config(folder, ALL_KINDS).get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{folder / CONFIG_FILE}: names no base model")
    local = launch.workspace / base
    return str(local) if local.exists() else base


def load_adapter(
    backbone: Backbone, name: str, folder: Path, *, base_name: str | None, scalar_head: bool
) -> Role:
    """Attach a saved adapter as a new role of the backbone, frozen. With `scalar_head` its score head too.

    base_name: what the adapter must name as its base; None accepts any (the shapes are checked all the same).
    """
    settings = read_adapter_config(folder, LORA_ONLY if scalar_head else ALL_KINDS)
    base = settings.get("base_model_name_or_path")
    if base_name is not None and base != base_name:
        raise CheckpointError(f"{folder}: was trained on the backbone {base!r}; expected {base_name!r}")
    tensors = load_tensors(folder / WEIGHTS_FILE)
    head = None
    if scalar_head:
        weight = tensors.pop(SCORE_KEY, None)
        if weight is None or tuple(weight.shape) != (1, backbone.hidden_size):
            shape = None if weight is None else tuple(weight.shape)
            raise CheckpointError(
                f"{folder}: score.weight has shape {shape}; expected (1, {backbone.hidden_size})"
            )
        head = nn.Linear(backbone.hidden_size, 1, bias=False, device=backbone.device, dtype=torch.float32)
        head.weight.data.copy_(weight)
    try:
        role = _empty_role(backbone, name, settings, head)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: does not fit the backbone ({first_line(error)})") from error
    load_role_tensors(role, tensors, str(folder))
    for parameter in role.parameters():
        parameter.requires_grad_(False)
    return role


def _empty_role(backbone: Backbone, name: str, settings: dict[str, Any], head: nn.Linear | None) -> Role:
    """A role as its adapter_config.json describes it, its weights still to be loaded."""
    kind = settings["peft_type"]
    if kind == PEFT_TYPE:
        return add_bottlenecks(
            backbone, name, width=settings["width"], first_layer=settings["first_layer"], seed=0
        )
    known = set(CONFIGS[kind].__dataclass_fields__)
    config = CONFIGS[kind](**{k: v for k, v in settings.items() if k in known and k != "runtime_config"})
    config.task_type, config.inference_mode = "CAUSAL_LM", False
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = None
    if kind == "LORA":
        config.lora_dropout = 0.0
    return backbone.attach_role(name, config, head=head)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises CheckpointError when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({first_line(error)})") from error
