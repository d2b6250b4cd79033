"""A sequence-classification model of transformers with its tokenizer: loaded, adapted, saved, opened again.

Encoders and decoders alike; texts go through the tokenizer as plain `transformers` would send them, so a saved
directory gives the same answers there:

    config = AutoConfig.from_pretrained("runs/classify/adapter")
    model = AutoModelForSequenceClassification.from_pretrained(BASE, config=config)
    model = PeftModel.from_pretrained(model, "runs/classify/adapter")

peft keeps modules called `classifier` and `score` beside an adapter. What else a base does not bring (DistilBERT's
`pre_classifier`, BERT's pooler) would stay as it was drawn by chance and be drawn anew at every load: here all modules
that the base lacks are trained and saved.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModelForSequenceClassification,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from rlhf.core.adapters import CONFIG_FILE, WEIGHTS_FILE, load_tensors, read_adapter_config
from rlhf.core.backbone import check_model_dir, resolve_device, right_padded
from rlhf.core.batching import token_budget_batches
from rlhf.core.chat import first_line
from rlhf.core.errors import CheckpointError, ConfigError, ModelError
from rlhf.core.files import write_json
from rlhf.core.randomness import derived_seed
from rlhf.core.settings import ModelSettings
from sft.classify.config import ClassifyConfig, ClassifyLora

CLASSIFIER_FILE = "classifier.json"
_PEFT_SAVES = ("classifier", "score")  # by itself, in sequence classification


@dataclass(frozen=True)
class Labelling:
    """What belongs to a classifier beside its weights. temperature: probabilities are softmax(logits / temperature)."""

    labels: tuple[str, ...]
    max_tokens: int
    temperature: float = 1.0
    text_column: str = "text"
    label_column: str = "label"


class TextClassifier:
    """A model, its tokenizer and its labels. new_modules: those that the base did not bring."""

    def __init__(self, model: Any, tokenizer: Any, labelling: Labelling, new_modules: Sequence[str]) -> None:
        self.model, self.tokenizer, self.labelling = model, tokenizer, labelling
        self.new_modules = tuple(new_modules)
        self.pad_id = int(model.config.get_text_config().pad_token_id)
        self.reduced = next(p for p in model.parameters()).dtype == torch.bfloat16

    @property
    def labels(self) -> tuple[str, ...]:
        return self.labelling.labels

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def tokens(self, text: str, *, truncate: bool = False) -> list[int]:
        """Token ids as plain transformers would make them; `truncate` cuts the text off at max_tokens."""
        limit = {"truncation": True, "max_length": self.labelling.max_tokens} if truncate else {}
        return list(self.tokenizer(text, verbose=False, **limit)["input_ids"])

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[B, K] logits in fp32, in whatever mode (training, gradients) the model is."""
        tokens_BS = right_padded(rows, self.pad_id, self.device)
        lengths_B = torch.tensor([len(row) for row in rows], device=self.device)
        mask_BS = torch.arange(tokens_BS.shape[1], device=self.device) < lengths_B[:, None]
        precision = torch.autocast(self.device.type, torch.bfloat16) if self.reduced else nullcontext()
        with precision:
            logits: Tensor = self.model(input_ids=tokens_BS, attention_mask=mask_BS.long()).logits
        return logits.float()

    @torch.no_grad()
    def logits(self, rows: Sequence[Sequence[int]], max_tokens: int) -> Tensor:
        """[N, K] logits on the CPU, without dropout. max_tokens: padded tokens per forward pass."""
        training = self.model.training
        self.model.eval()
        found = torch.zeros(len(rows), len(self.labels))
        try:
            for places in token_budget_batches([len(row) for row in rows], max_tokens):
                found[places] = self.forward([rows[place] for place in places]).cpu()
        finally:
            self.model.train(training)
        return found

    def trained(self) -> dict[str, nn.Parameter]:
        """All that is trained, by name, in a stable order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def head_parameters(self) -> list[nn.Parameter]:
        """Those of the trained ones that lie in modules which the base did not bring."""
        part = re.compile("|".join(rf"(^|\.){re.escape(name)}\." for name in self.new_modules))
        return [p for name, p in self.trained().items() if part.search(name)]


# ---- loading the base -----------------------------------------------------------------------------------


def load_base(
    path: str, labels: Sequence[str], config: ClassifyConfig, *, text_column: str, label_column: str
) -> TextClassifier:
    """The base with a fresh head for these labels, frozen. Raises ModelError."""
    model, new_modules = _load_model(path, labels, config.model, config.seed)
    tokenizer = _load_tokenizer(path, model)
    limit = _context(model, tokenizer)
    labelling = Labelling(
        tuple(labels),
        min(config.max_tokens or limit, limit),
        text_column=text_column,
        label_column=label_column,
    )
    return TextClassifier(model, tokenizer, labelling, new_modules)


def _load_model(
    path: str, labels: Sequence[str], settings: ModelSettings, seed: int
) -> tuple[Any, list[str]]:
    """(model, names of the modules that the base did not bring)."""
    check_model_dir(path)
    device = resolve_device(settings.device)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # its table of missing weights is `new_modules` here
    try:
        known = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if getattr(known, "is_encoder_decoder", False):
            raise ModelError(
                f"{path}: {known.model_type} is a sequence-to-sequence model; expected an encoder or a decoder"
            )
        known.num_labels = len(labels)
        known.id2label = dict(enumerate(labels))
        known.label2id = {label: k for k, label in enumerate(labels)}
        known.problem_type = "single_label_classification"
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(seed, "head"))
            model, found = AutoModelForSequenceClassification.from_pretrained(
                path,
                config=known,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=settings.attn_implementation,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # the head of a classifier with other labels; checked below
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{path}: cannot be loaded for sequence classification ({first_line(error)})"
        ) from error
    model.requires_grad_(False)
    new_modules = _new_modules(path, model, found)
    return model.eval().to(device), new_modules


def _new_modules(path: str, model: Any, found: dict[str, Any]) -> list[str]:
    """The head, and modules in the body (a pooler) that the base's weights do not hold.

    Raises ModelError where more than that is missing: such a base was not read rightly.
    """
    prefix = f"{model.base_model_prefix}."
    absent = {*found["missing_keys"], *(item[0] for item in found["mismatched_keys"])}
    body = sorted(key for key in absent if key.startswith(prefix))
    strange = [key for key in body if "pooler" not in key]
    if strange:
        raise ModelError(f"{path}: {len(strange)} weights are missing or of another shape, as {strange[0]}")
    children = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]
    return [*children, *sorted({key.rpartition(".")[0] for key in body})]


def _load_tokenizer(path: str, model: Any) -> Any:
    """The tokenizer, padding on the right. A base without a pad token gets one, which the model's settings name."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: no usable tokenizer ({first_line(error)})") from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(f"{path}: its tokenizer has no token to pad with (pad, unk or eos)")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _context(model: Any, tokenizer: Any) -> int:
    """The longest text in tokens."""
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = int(min(known or 2**30, tokenizer.model_max_length, 2**30))
    for name, module in model.named_modules():
        # RoBERTa's positions begin behind the pad token's
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return limit


# ---- what is trained ------------------------------------------------------------------------------------


def make_trainable(classifier: TextClassifier, config: ClassifyConfig, base_name: str) -> None:
    """An adapter beside the new modules, or all weights. Raises ConfigError for target modules that are not there."""
    if config.method == "full":
        classifier.model.requires_grad_(True)
        return
    targets = lora_targets(classifier.model, config.lora, classifier.new_modules, base_name)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets,
        modules_to_save=[name for name in classifier.new_modules if name not in _PEFT_SAVES],
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in classifier.model.modules()),
        task_type="SEQ_CLS",
        base_model_name_or_path=base_name,
    )
    _wrap(classifier, lora, derived_seed(config.seed, "adapter"))


def _wrap(classifier: TextClassifier, lora: LoraConfig, seed: int) -> None:
    with torch.random.fork_rng(), warnings.catch_warnings():  # peft draws from the global generator
        # peft 0.21 asks for a property that transformers 5.23 renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        torch.manual_seed(seed)
        classifier.model = PeftModelForSequenceClassification(classifier.model, lora)
    for parameter in classifier.trained().values():  # small updates would be rounded away in bf16
        parameter.data = parameter.data.float()
    classifier.model.eval()


def lora_targets(model: Any, lora: ClassifyLora, new_modules: Sequence[str], base_name: str) -> list[str]:
    """Full names of the linear layers that get adapters: those of the top share of the blocks whose names end as asked.

    Raises ConfigError that lists the linear layers where a name is none of them.
    """
    heads = re.compile("|".join(rf"^{re.escape(name)}(\.|$)" for name in new_modules))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not heads.search(name)
    ]
    numbered = {name: int(found[1]) for name in linear if (found := re.search(r"\.(\d+)\.", name))}
    if not numbered:
        raise ModelError(f"{base_name}: found no linear layers in numbered blocks; expected a transformer")
    first = (max(numbered.values()) + 1) * (1 - lora.adapter_layers)
    blocks = [name for name, number in numbered.items() if number + 1 > first]
    if not lora.target_modules:
        return blocks
    for wanted in lora.target_modules:
        if not any(_ends(name, wanted) for name in linear):
            kinds = dict.fromkeys(re.sub(r"^.*\.\d+\.", "", name) for name in linear)
            raise ConfigError(
                f"lora.target_modules: {base_name} has no linear layer {wanted!r}; it has {', '.join(kinds)}"
            )
    return [
        name
        for name in linear
        if (name in blocks or name not in numbered) and any(_ends(name, w) for w in lora.target_modules)
    ]


def _ends(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


# ---- on disk --------------------------------------------------------------------------------------------


def save(classifier: TextClassifier, folder: Path, base_name: str) -> None:
    """Fill a folder: a standard peft adapter with the settings of its model, or a model directory."""
    model = classifier.model
    if hasattr(model, "peft_config"):
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        copies = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        save_file(copies, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        lora = model.peft_config["default"]
        settings = lora.to_dict() | {
            "base_model_name_or_path": base_name,
            "inference_mode": True,
            "target_modules": sorted(lora.target_modules),
            "modules_to_save": sorted({*lora.modules_to_save}),
        }
        text = json.dumps(settings, indent=2, sort_keys=True, default=list)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        config = model.get_base_model().config
        config.architectures = [type(model.get_base_model()).__name__]
        config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    write_json(folder / CLASSIFIER_FILE, asdict(classifier.labelling))


def read_labelling(folder: Path) -> Labelling:
    """classifier.json of a saved folder. Raises CheckpointError."""
    path = folder / CLASSIFIER_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Labelling(**{**values, "labels": tuple(values["labels"])})
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; expected a folder that `rlhf classify` saved") from error
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged ({first_line(error)})") from error


def open_saved(folder: Path, base: str | None, settings: ModelSettings) -> TextClassifier:
    """A saved classifier, frozen. base: the model under an adapter. Raises CheckpointError and ModelError."""
    labelling = read_labelling(folder)
    is_adapter = (folder / CONFIG_FILE).is_file()
    model, new_modules = _load_model(
        base if is_adapter and base else str(folder), labelling.labels, settings, 0
    )
    classifier = TextClassifier(model, _load_tokenizer(str(folder), model), labelling, new_modules)
    if is_adapter:
        _load_adapter(classifier, folder)
    classifier.model.requires_grad_(False)
    return classifier


def _load_adapter(classifier: TextClassifier, folder: Path) -> None:
    """Put a saved adapter on the base. Raises CheckpointError where a key is missing, unexpected or misshapen."""
    values = read_adapter_config(folder)
    known = {
        k: v for k, v in values.items() if k in LoraConfig.__dataclass_fields__ and k != "runtime_config"
    }
    lora = LoraConfig(**known | {"inference_mode": False})
    tensors = load_tensors(folder / WEIGHTS_FILE)
    try:
        _wrap(classifier, lora, 0)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: does not fit the base ({first_line(error)})") from error
    expected = get_peft_model_state_dict(classifier.model, save_embedding_layers=False)
    shapes = {key: value.shape for key, value in expected.items()}
    if shapes != {key: value.shape for key, value in tensors.items()}:
        different = sorted(
            key for key in {*shapes, *tensors} if key not in tensors or shapes.get(key) != tensors[key].shape
        )
        raise CheckpointError(
            f"{folder}: does not fit the base: {len(different)} weights differ, as {different[0]}"
        )
    set_peft_model_state_dict(classifier.model, tensors)
