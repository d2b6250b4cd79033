"""A reward that trains all weights of a model of its own: the role, how it is saved and how it is opened again.

The model that was loaded for the run is the one that is trained, in memory; its files stay as they are. There is no
trunk then, and nothing is shared with the policy: PPO loads the result beside it. What is saved is a plain
sequence-classification model of transformers with one label.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, GenerationConfig

from rlhf.core.adapters import classifier_config, save_tokenizer
from rlhf.core.backbone import Backbone, Role
from rlhf.core.errors import CheckpointError
from rlhf.core.settings import ModelSettings

HEAD_KEY = "score.weight"


def full_role(backbone: Backbone, name: str) -> Role:
    """The backbone's own decoder as a role whose every weight is trained."""
    backbone.model.get_decoder().requires_grad_(True)
    return _role_of(backbone, name)


def _role_of(backbone: Backbone, name: str) -> Role:
    role = Role(name, backbone.model, None, None, first_adapted_layer=0)
    backbone.roles[name] = role
    return role


def save_full(role: Role, folder: Path, backbone: Backbone) -> None:
    """Write the model directory. Raises ModelError where transformers has no such class for the architecture."""
    assert role.head is not None
    settings, classifier = classifier_config(backbone)
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = classifier(config)
    decoder = backbone.model.get_decoder().state_dict()
    tensors = {f"{model.base_model_prefix}.{key}": value for key, value in decoder.items()}
    tensors |= {HEAD_KEY: role.head.weight}
    copies = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    # strict: a head or a layer that goes by another name must not be lost silently
    model.load_state_dict(copies, strict=True, assign=True)
    model.save_pretrained(folder)
    save_tokenizer(backbone, folder)
    # What ends a completion is known by the language model's settings, which a classifier does not have.
    codec = backbone.codec
    ends = GenerationConfig(eos_token_id=list(codec.end_token_ids), pad_token_id=codec.pad_token_id)
    ends.save_pretrained(folder)


def open_full(folder: Path, settings: ModelSettings, name: str) -> tuple[Backbone, Role]:
    """A saved model with its score head. Its decoder is loaded as a language model, whose own output is not used.

    Raises CheckpointError where the score head is missing and ModelError for a directory that cannot be loaded.
    """
    backbone = Backbone.load(folder, settings, name=name)
    role = _role_of(backbone, "reward")
    head = nn.Linear(backbone.hidden_size, 1, bias=False, device=backbone.device, dtype=torch.float32)
    head.weight.data.copy_(_head_weight(folder, backbone.hidden_size))
    role.head = head.requires_grad_(False)
    return backbone, role


def _head_weight(folder: Path, hidden_size: int) -> torch.Tensor:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if HEAD_KEY in file.keys():  # noqa: SIM118 (no mapping)
                weight = file.get_tensor(HEAD_KEY)
                if tuple(weight.shape) == (1, hidden_size):
                    return weight
    raise CheckpointError(f"{folder}: holds no {HEAD_KEY} of the shape (1, {hidden_size})")
