"""One frozen base model, and the named roles that are small adapters over it.

    reference   the base as it is
    policy, reward, value ...   the base with an adapter of their own, some with a scalar head

Each role is a peft model around a structural clone of the base: new module objects, the same weight
tensors. So weights exist once, the base's bytes never change, roles cannot disturb each other, and no
adapter is ever switched (switching under gradient checkpointing gives wrong gradients silently).

Everything below the lowest adapted layer is the trunk: equal for all roles and all epochs. `enable_trunk`
proves on a probe that trunk + top equals the whole decoder and otherwise leaves the cache off.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from rlhf.core.allocator import keep_freed_memory
from rlhf.core.attention import fuse_attention
from rlhf.core.chat import ChatCodec, first_line
from rlhf.core.decoder import decoder_layers, linear_names, share_clone, split_decoder
from rlhf.core.errors import ConfigError, ModelError
from rlhf.core.fused import fuse
from rlhf.core.lora import speed_up
from rlhf.core.merging import MergedCopy
from rlhf.core.processes import Processes
from rlhf.core.quantization import is_quantized, keep_bytes, loading_options
from rlhf.core.randomness import derived_seed
from rlhf.core.settings import LoraSettings, ModelSettings
from rlhf.core.sharding import (
    TOP,
    TRUNK,
    WHOLE,
    Lockstep,
    ShardedLockstep,
    dummy_passes,
    is_sharded,
    shard_linears,
)
from rlhf.core.trimming import Trim, make_trim
from rlhf.core.virtual_tokens import has_virtual_tokens, prompted_hidden
from rlhf.core.vocabulary import OutputHead

REFERENCE = "reference"
# Adapters that change no weight, by peft_type.
UNMERGED = {
    "BOTTLENECK": "adapters (bottlenecks, which are not linear)",
    "PREFIX_TUNING": "prefix-tuning",
    "PROMPT_TUNING": "prompt-tuning",
}


@dataclass
class Role:
    """A base model with one adapter (None for the reference) and, for reward and value, a scalar head.

    lora: the adapter as peft knows it; LoRA, unless supervised tuning chose another method. bottleneck: the width of
    adapters that peft does not know (`rlhf.core.bottleneck`).
    """

    name: str
    model: Any
    lora: PeftConfig | None
    head: nn.Linear | None
    first_adapted_layer: int
    top: Any = None
    # True when the model decodes as fast as a merged copy of it would (see rlhf.core.lora).
    holds_merged: bool = False
    trim: Trim | None = None
    bottleneck: int | None = None

    @property
    def causal_lm(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters: the adapter's and the head's, in a stable order."""
        adapter = [p for p in self.model.parameters() if p.requires_grad]
        return adapter + (list(self.head.parameters()) if self.head is not None else [])

    @property
    def prompted(self) -> bool:
        """Whether trained positions stand before every sequence."""
        return has_virtual_tokens(self.lora)


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"model.device: {name!r} is not a device; expected auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model.device: {name} was asked for, but torch sees no GPU; expected cpu or auto")
    return device


def check_model_dir(path: str | Path) -> None:
    """A local path must be a directory with a config.json. Anything else may be a hub id and is left to the loader."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(_not_a_model(folder))
    elif folder.exists():
        raise ModelError(f"{path}: is a file; expected a model directory")
    elif folder.is_absolute() or str(path).count("/") != 1 or str(path).startswith("."):
        raise ModelError(f"{path}: no such model directory")


def _not_a_model(folder: Path) -> str:
    """Why a directory without a config.json is no model; a run of a method that cannot be merged says so."""
    for place in (folder, folder / "adapter"):
        with suppress(OSError, ValueError, AttributeError):
            kind = json.loads((place / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
            if kind in UNMERGED:
                return (
                    f"{folder}: was tuned by {UNMERGED[kind]}, which no weight of a model can hold, so it ends at sft; "
                    "expected a run of lora, dora, rslora, qlora, ia3 or full"
                )
    return f"{folder}: not a model directory (no config.json); expected one of transformers' format"


def load_causal_lm(path: str | Path, settings: ModelSettings) -> tuple[Any, ChatCodec]:
    """A frozen causal language model in eval mode and the codec beside it. Raises ModelError."""
    check_model_dir(path)
    device = resolve_device(settings.device)
    quantization = loading_options(settings, device)
    # Our stages show one progress line of their own; a bar for every loaded tensor would bury it.
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        _require_decoder(path, config)
        model = AutoModelForCausalLM.from_pretrained(
            str(path),
            config=config,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
            **quantization,
        )
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{path}: cannot be loaded as a causal language model ({first_line(error)})"
        ) from error
    try:
        generation = GenerationConfig.from_pretrained(str(path))
    except OSError:
        generation = model.generation_config
    codec = ChatCodec.from_pretrained(path, config, generation)
    model.requires_grad_(False)
    keep_bytes(model)
    return (model.eval() if quantization else model.eval().to(device)), codec


def _require_decoder(path: str | Path, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{path}: is a sequence-to-sequence model ({config.model_type}), which is not supported; expected a "
            "decoder-only causal language model"
        )


class Backbone:
    """The frozen base with its roles. See the module's text.

    name: what `adapter_config.json` calls the base: a hub id, or a path relative to the workspace.
    """

    def __init__(self, model: Any, codec: ChatCodec, name: str) -> None:
        self.model = model
        self.codec = codec
        self.name = name
        self.decoder = model.get_decoder()
        self.num_layers = len(decoder_layers(self.decoder))
        text_config = model.config.get_text_config()
        self.hidden_size = int(text_config.hidden_size)
        self.vocab_size = int(text_config.vocab_size)
        self.head = OutputHead.of(model)
        self._copies: dict[str, MergedCopy] = {}
        self.roles: dict[str, Role] = {REFERENCE: Role(REFERENCE, model, None, None, self.num_layers)}
        self._trunk: Any = None
        # The lowest adapted layer, once `enable_trunk` has found the split exact.
        self.first_top_layer: int | None = None
        self.lockstep = Lockstep()
        self._check_logits()

    @classmethod
    def load(cls, path: str | Path, settings: ModelSettings, *, name: str | None = None) -> Backbone:
        """Load the base once. Raises ModelError for anything that is not a causal language model."""
        if resolve_device(settings.device).type == "cpu":
            keep_freed_memory()
        model, codec = load_causal_lm(path, settings)
        return cls(model, codec, name or str(path))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def shard(self, processes: Processes, mesh: DeviceMesh, trained: Sequence[str]) -> None:
        """Keep only this process's part of the base's linear weights. Call it before there are roles.

        trained: the roles of an update, in the order in which their hidden states are computed.
        """
        shard_linears(decoder_layers(self.decoder), mesh)
        lockstep = ShardedLockstep(processes, dummy_passes(self, trained))
        self.lockstep, processes.leave = lockstep, lambda failed: lockstep.leave(failed=failed)

    # ---- roles -------------------------------------------------------------------------------------------

    def first_layer(self, share: float) -> int:
        """The lowest layer of this share of the layers, counted from the top; at least one layer is in it."""
        return self.num_layers - max(1, math.ceil(self.num_layers * share))

    def add_role(
        self, name: str, lora: LoraSettings, *, seed: int, scalar_head: bool = False, **variant: bool
    ) -> Role:
        """A new role with a fresh adapter: it starts out equal to the base (B = 0), its head at zero.

        variant: `use_dora`, `use_rslora` of peft.
        """
        first = self.first_layer(lora.adapter_layers)
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            # Full names: `layers_to_transform` does not go together with "all-linear".
            target_modules=linear_names(self.model, self.decoder, first),
            # GPT-2's linear modules hold their weight transposed.
            fan_in_fan_out=any(isinstance(m, Conv1D) for m in self.decoder.modules()),
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.name,
            **variant,
        )
        head = None
        if scalar_head:
            head = nn.Linear(self.hidden_size, 1, bias=False, device=self.device, dtype=torch.float32)
            nn.init.zeros_(head.weight)
        return self.attach_role(name, config, head=head, seed=derived_seed(seed, name, "adapter"))

    def attach_role(self, name: str, config: PeftConfig, *, head: nn.Linear | None, seed: int = 0) -> Role:
        """A role from a peft configuration (as read from disk); the caller loads its weights."""
        if name in self.roles:
            raise ValueError(f"role {name!r} exists already")
        if self._trunk is not None:
            raise ValueError(
                "roles are added before enable_trunk, which needs to know the lowest adapted layer"
            )
        # peft draws the A matrices from torch's global generator.
        with torch.random.fork_rng(), warnings.catch_warnings():
            # peft 0.21 asks for a property that transformers 5.23 renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            torch.manual_seed(seed)
            model = PeftModelForCausalLM(share_clone(self.model), config)
        holds_merged = speed_up(model)
        model.eval()
        layers = decoder_layers(model.get_base_model().get_decoder())
        adapted = [
            i for i, layer in enumerate(layers) if any(isinstance(m, BaseTunerLayer) for m in layer.modules())
        ]
        role = Role(
            name, model, config, head, min(adapted, default=self.num_layers), holds_merged=holds_merged
        )
        self.adopt(role)
        return role

    def adopt(self, role: Role) -> None:
        """Take in a role that was made elsewhere around a clone of the base."""
        self._quicken(role)
        self.roles[role.name] = role

    def _quicken(self, role: Role) -> None:
        if not is_sharded(role.model):
            fuse(role.model)
            fuse_attention(role.model)
            last = decoder_layers(role.causal_lm.get_decoder())[-1]
            # Behind virtual tokens a place in the sequence is another one inside of the layer.
            if not role.prompted:
                role.trim = make_trim(last, self.hidden_size, self.device, self.dtype)

    # ---- forward -----------------------------------------------------------------------------------------

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] final hidden states -> [..., V]; the output matrix is the base's in every role."""
        return self.head(hidden)

    @property
    def trunk_enabled(self) -> bool:
        return self._trunk is not None

    def trunk(self, tokens_BS: Tensor) -> Tensor:
        """[B, S, H] hidden states below the lowest adapted layer. Rows are padded on the right.

        No attention mask is needed anywhere: with padding on the right, causal attention never lets a real
        token see it.
        """
        self.lockstep.turn(TRUNK)
        with torch.no_grad():
            return self._trunk(input_ids=tokens_BS, use_cache=False).last_hidden_state

    def hidden_at(
        self,
        role: str,
        tokens_BS: Tensor,
        rows_N: Tensor,
        columns_N: Tensor,
        trunk_BSH: Tensor | None = None,
    ) -> Tensor:
        """[N, H]: `hidden` at the places [rows_N, columns_N], computing no more of the last layer than they need."""
        trim = self.roles[role].trim
        with trim.only(rows_N, columns_N) if trim is not None else nullcontext():
            return self.hidden(role, tokens_BS, trunk_BSH)[rows_N, columns_N]

    def hidden(self, role: str, tokens_BS: Tensor, trunk_BSH: Tensor | None = None) -> Tensor:
        """[B, S, H] final hidden states of a role, from tokens or, where given, from cached trunk states."""
        chosen = self.roles[role]
        self.lockstep.turn(WHOLE if trunk_BSH is None else TOP)
        if trunk_BSH is not None:
            return chosen.top(inputs_embeds=trunk_BSH, use_cache=False).last_hidden_state
        if chosen.prompted:
            return prompted_hidden(chosen.model, tokens_BS)
        return chosen.causal_lm.get_decoder()(input_ids=tokens_BS, use_cache=False).last_hidden_state

    # ---- the trunk ---------------------------------------------------------------------------------------

    def enable_trunk(self, max_tokens: int) -> str:
        """Split below the lowest adapted layer if that is exact. Returns one line that says what was decided.

        The probe is a padded batch as long as the run's longest sequence: sliding-window models differ only
        beyond their window.
        """
        reference = self.roles[REFERENCE]
        if reference.model is self.model:
            reference.model = share_clone(self.model)
            self._quicken(reference)
        first = min(role.first_adapted_layer for role in self.roles.values())
        if not 0 < first < self.num_layers:
            return f"trunk cache off: adapters reach layer {first} of {self.num_layers}"
        length = min(max_tokens, self.codec.max_tokens)
        generator = torch.Generator().manual_seed(0)
        tokens_BS = torch.randint(0, self.vocab_size, (2, length), generator=generator)
        tokens_BS[1, max(1, length // 2) :] = self.codec.pad_token_id
        tokens_BS = tokens_BS.to(self.device)
        whole = {name: self._probe(name, tokens_BS) for name in self.roles}
        self._trunk, _ = split_decoder(self.decoder, first)
        for role in self.roles.values():
            role.top = split_decoder(role.causal_lm.get_decoder(), first)[1]
        trunk_BSH = self.trunk(tokens_BS)
        for name, expected in whole.items():
            with torch.no_grad():
                difference = (self.hidden(name, tokens_BS, trunk_BSH) - expected).abs().max().item()
            scale = expected.abs().max().item()
            if not difference <= torch.finfo(self.dtype).eps * 100 * max(scale, 1.0):
                self._trunk = None
                return (
                    f"trunk cache off: {name} differs by {difference:.1e} from the whole decoder on a probe"
                )
        self.first_top_layer = first
        return f"trunk cache on: layers 0-{first - 1} of {self.num_layers} are computed once and shared"

    @torch.no_grad()
    def _probe(self, name: str, tokens_BS: Tensor) -> Tensor:
        return self.hidden(name, tokens_BS)

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Some architectures scale their logits; ours must be the model's own."""
        tokens = torch.arange(1, 5, device=self.device).remainder(self.vocab_size)[None]
        expected = self.model(input_ids=tokens, use_cache=False).logits
        found = self.logits(self.hidden(REFERENCE, tokens))
        if not torch.allclose(found, expected, atol=1e-2 if self.dtype != torch.float32 else 1e-4, rtol=1e-3):
            raise ModelError(
                f"{self.name}: {type(self.model).__name__} treats its logits in a way that is not supported; "
                "expected an output matrix with optional soft-capping"
            )

    def checkpoint_gradients(self, name: str) -> None:
        """Recompute the adapted layers of a role in its backward pass instead of keeping their activations.

        transformers does so only for layers in training mode, which would also switch dropout on; the flag
        is therefore set on the layer objects alone and their parts stay in eval mode.
        """
        role = self.roles[name]
        for layer in decoder_layers(role.causal_lm.get_decoder())[role.first_adapted_layer :]:
            if not isinstance(layer, GradientCheckpointingLayer):
                raise ModelError(
                    f"{self.name}: {type(layer).__name__} does not support gradient checkpointing"
                )
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.training = True
        if role.trim is not None:  # the recomputation in the backward pass would not know the places
            role.trim.undo()
            role.trim = None
        role.holds_merged = False  # layers in this state cannot use a key/value cache: sampling takes a copy

    # ---- sampling ----------------------------------------------------------------------------------------

    def sampling_model(self, role: str) -> Any:
        """The causal LM to sample a role from: its own where its layers hold merged weights, else a merged copy; with
        virtual tokens the peft model, which knows them."""
        chosen = self.roles[role]
        if chosen.prompted:
            return chosen.model
        return chosen.causal_lm if chosen.holds_merged else self.merged(role)

    @contextmanager
    def sampling(self, role: str) -> Iterator[Any]:
        """`sampling_model` for as long as this lasts; a merged copy gives its memory back and is used again."""
        chosen = self.roles[role]
        if chosen.prompted or chosen.holds_merged or chosen.lora is None or not self._mergeable:
            yield self.sampling_model(role)
            return
        if role not in self._copies:
            self._copies[role] = MergedCopy(chosen.causal_lm)
        with self._copies[role].filled() as model:
            yield model

    def merged(self, role: str) -> Any:
        """A causal LM with the role's adapter folded in, for sampling; throw it away afterwards.

        Only the adapted matrices are new tensors. The base is never merged in place: unmerging by subtraction
        does not give back the same bits. A quantised or sharded base is not merged at all: base and adapter stay
        apart in the copy, which shares every tensor with the role.
        """
        chosen = self.roles[role]
        if chosen.lora is None:
            return chosen.causal_lm
        if chosen.prompted:
            raise ValueError(f"role {role!r} is virtual tokens, which no weight can hold")
        if self._mergeable:
            return MergedCopy(chosen.causal_lm).fill()
        clone = share_clone(chosen.causal_lm).eval()
        if is_sharded(clone):
            clone.get_decoder().register_forward_pre_hook(lambda *_: self.lockstep.turn(WHOLE))
        return clone

    @property
    def _mergeable(self) -> bool:
        return not (is_quantized(self.model) or is_sharded(self.model))


def right_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> Tensor:
    """[B, S] int64 from rows of different length, padded on the right."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return tokens.to(device)
