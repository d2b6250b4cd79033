"""Reward models of other frameworks, as they are: sequence classifiers of plain transformers.

    a directory or hub id with config.json     ...ForSequenceClassification with one label
    a PEFT directory of task type SEQ_CLS      an adapter with its head; its base is a hub id or lies in the workspace

A row is written in the model's own tokens: with its chat template the completion is the last turn of the conversation;
without one the messages and the completion are joined by line breaks.

Decoders are read at their last real token whatever the pad token is: transformers pools at the last token that is not
`pad_token_id`, which is one too early where pad == eos. Every weight must be in the files and every weight in the
files must be used: transformers only warns about a score head that it has drawn at random.

A whole model of ours (`rlhf reward --method full`, or a run that was merged) is such a directory too; it is known by
the reward.json beside it and the name of its label, and is read in this project's tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from peft import LoraConfig, PeftModelForSequenceClassification, set_peft_model_state_dict
from peft import get_peft_model_state_dict as adapter_tensors
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from reward.score import SCALE_FILE, RewardScale, RewardScorer
from rlhf.core.adapters import CONFIG_FILE, WEIGHTS_FILE, base_path, load_tensors, read_adapter_config
from rlhf.core.backbone import resolve_device, right_padded
from rlhf.core.batching import token_budget_batches
from rlhf.core.chat import MAX_TEMPLATE_CHARS, first_line
from rlhf.core.errors import CheckpointError, ConfigError, DataError, ModelError
from rlhf.core.quantization import keep_bytes, loading_options
from rlhf.core.records import Prompt
from rlhf.core.run import MANIFEST, Launch
from rlhf.core.settings import ModelSettings

OnTooLong = Literal["error", "drop", "truncate-left"]

OUR_LABEL = {"0": "score"}
UNSCALED = RewardScale(0.0, 1.0, 1.0)
_HEADS = re.compile(r"\.(score|classifier|v_head)\.(out_proj\.)?weight$")
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier that a person named.

    path: a directory or a hub id. label: the one that was chosen. base: of an adapter. ours: written by this project.
    """

    path: str
    label: str | None = None
    base: str | None = None
    ours: bool = False

    @property
    def folder(self) -> Path | None:
        """The directory; None for a hub id."""
        return Path(self.path) if Path(self.path).is_dir() else None


def find_classifier(text: str, launch: Launch) -> Classifier | None:
    """The classifier that `text` names, or None where it names no such thing (a reward run of ours is none).

    `NAME#LABEL` chooses one label of several, by its name or number. Raises ModelError for a model that is no
    sequence classifier, CheckpointError for an adapter that is none, ConfigError for several labels without a
    choice, DataError where there is neither a directory nor a model of that name on the hub.
    """
    name, label = text, None
    if "#" in text and not _local(text, launch):
        name, _, label = text.partition("#")
    folder = _local(name, launch)
    if folder is None:
        return _on_the_hub(name, label, launch)
    for candidate in (folder, folder / "adapter", folder / "model"):
        if (candidate / CONFIG_FILE).is_file():
            return _adapter(candidate, label, launch)
        if (candidate / "config.json").is_file():
            _check_config(str(candidate), _read_config(candidate / "config.json"), label)
            return Classifier(str(candidate), label, ours=_is_ours(candidate))
    return None


def _local(name: str, launch: Launch) -> Path | None:
    return next((path for path in (Path(name), launch.workspace / name) if path.exists()), None)


def _on_the_hub(name: str, label: str | None, launch: Launch) -> Classifier | None:
    """A hub id is ORG/NAME; what begins with a folder that is here is a mistyped path and is not asked for."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or _local(name.partition("/")[0], launch):
        return None
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict()
    except _LOADING_ERRORS as error:
        raise DataError(
            f"{name}: no such file or directory (looked in . and in {launch.workspace}), and no model of that "
            f"name from the hub ({first_line(error)})"
        ) from error
    _check_config(name, config, label)
    return Classifier(name, label)


def _adapter(folder: Path, label: str | None, launch: Launch) -> Classifier | None:
    if _is_ours(folder) or (folder.parent / MANIFEST).is_file():
        return None
    task = read_adapter_config(folder).get("task_type")
    if task != "SEQ_CLS":
        raise CheckpointError(
            f"{folder}: a {task} adapter, which does not score; expected SEQ_CLS (`rlhf reward` trains one)"
        )
    return Classifier(str(folder), label, base_path(folder, launch))


def _is_ours(folder: Path) -> bool:
    config = folder / "config.json"
    known = (folder / SCALE_FILE).is_file() and config.is_file()
    return known and _read_config(config).get("id2label") == OUR_LABEL


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({first_line(error)})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: a {type(config).__name__}; expected the configuration of a model")
    return config


def _check_config(where: str, config: dict[str, Any], label: str | None) -> None:
    """Refuse what is not a sequence classifier, or has several labels and none was chosen."""
    architectures = config.get("architectures") or []
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        found = ", ".join(map(str, architectures)) or "no architecture in config.json"
        raise ModelError(
            f"{where}: {found}; expected a reward run or a sequence-classification model with one label "
            "(`rlhf reward` trains one)"
        )
    # transformers writes no labels where there are the usual two
    names = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    label_index(where, names or {0: "LABEL_0", 1: "LABEL_1"}, label)


def label_index(where: str, labels: dict[int, str], wanted: str | None) -> int:
    """Which output is the score. Raises ConfigError that lists the labels where that is not clear."""
    if wanted is None:
        if len(labels) == 1:
            return 0
    else:
        for number, name in labels.items():
            if wanted in (name, str(number)):
                return number
    listed = ", ".join(labels[number] for number in sorted(labels))
    problem = f"no label {wanted!r} among" if wanted is not None else f"{len(labels)} labels:"
    raise ConfigError(f"{where}: {problem} {listed}; name the one that is the score, as in {where}#LABEL")


class ForeignScorer:
    """A sequence classifier with its own tokenizer. Scores are its raw outputs.

    scale: from reward.json where there is one, otherwise mean 0, deviation 1, temperature 1. max_tokens: the longest
    row that the model reads, prompt and completion together.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, label: int = 0, scale: RewardScale = UNSCALED
    ) -> None:
        self.model, self.tokenizer, self.name, self.label, self.scale = model, tokenizer, name, label, scale
        config = model.config
        self.reads_last_token = (
            type(config) in AutoModelForCausalLM._model_mapping
            and type(config) not in AutoModelForMaskedLM._model_mapping
        )
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.max_tokens = min(int(longest or 2**30), int(min(tokenizer.model_max_length, 2**30)))
        self.vocab_size = int(config.get_text_config().vocab_size)

    @classmethod
    def load(cls, classifier: Classifier, settings: ModelSettings) -> ForeignScorer:
        """Load a classifier, frozen. Raises ModelError for what cannot be loaded, CheckpointError where weights are
        missing, left over or of another shape, ConfigError for a label that is not clear."""
        model, labels = (_load_adapter if classifier.base else _load_whole)(classifier, settings)
        model.requires_grad_(False)
        keep_bytes(model)
        tokenizer = _tokenizer(classifier)
        folder = classifier.folder
        scale = RewardScale.load(folder) if folder and (folder / SCALE_FILE).is_file() else UNSCALED
        label = label_index(classifier.path, labels, classifier.label)
        return cls(model.eval(), tokenizer, name=classifier.path, label=label, scale=scale)

    # ---- rows ----------------------------------------------------------------------------------------------

    def row(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of a prompt with its completion; they may be more than `max_tokens`. Raises DataError where the
        chat template refuses the prompt."""
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        if self.tokenizer.chat_template is None:
            whole = "\n".join([*(turn["content"] for turn in turns), text])
            return list(self.tokenizer(whole, verbose=False)["input_ids"])
        try:
            ids = self.tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": text}], tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise DataError(
                f"the chat template of {self.name} refuses prompt {prompt.prompt_id}: {first_line(error)}"
            ) from error
        return list(ids)

    def cut(self, row: list[int]) -> list[int]:
        """The row without so much of its beginning as does not fit; a first token that marks the beginning stays."""
        if len(row) <= self.max_tokens:
            return row
        marks = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id} - {None}
        start = row[:1] if row[0] in marks else []
        return [*start, *row[len(row) - self.max_tokens + len(start) :]]

    # ---- scores --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score_rows(self, rows: Sequence[Sequence[int]], *, max_tokens: int) -> Tensor:
        """Scores [N] of token rows that fit, on the CPU. max_tokens: padded tokens per forward pass."""
        scores_N = torch.zeros(len(rows))
        for indices in token_budget_batches([len(row) for row in rows], max_tokens):
            scores_N[indices] = self._score_batch([rows[i] for i in indices])
        return scores_N

    def _score_batch(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[B] in one forward pass, padded on the right."""
        pad_id = self.tokenizer.pad_token_id or 0
        if self.reads_last_token:
            # An id that no row holds: none of a row's own tokens counts as padding, so its last one is what is read.
            used = set().union(*rows)
            free = next((i for i in range(self.vocab_size) if i not in used), None)
            if free is None and len(rows) > 1:
                return torch.cat([self._score_batch([row]) for row in rows])
            self.model.config.get_text_config().pad_token_id = free
            pad_id = free or 0
        tokens_BS = right_padded(rows, pad_id, self.model.device)
        lengths_B = torch.tensor([len(row) for row in rows], device=tokens_BS.device)
        mask_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device) < lengths_B[:, None]
        logits_BL = self.model(input_ids=tokens_BS, attention_mask=mask_BS.long()).logits
        return logits_BL[:, self.label].float().cpu()

    def score_texts(self, prompts: Sequence[Prompt], texts: Sequence[str], *, max_tokens: int) -> list[float]:
        """Scores of finished completions given as text. Raises DataError, with the count, where some do not fit."""
        rows = [self.row(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        num_too_long = sum(len(row) > self.max_tokens for row in rows)
        if num_too_long:
            raise DataError(
                f"{self.name}: {num_too_long} of {len(rows)} completions with their prompts are longer than its "
                f"context of {self.max_tokens} tokens"
            )
        return self.score_rows(rows, max_tokens=max_tokens).tolist()


def open_classifier(classifier: Classifier, settings: ModelSettings) -> RewardScorer | ForeignScorer:
    """What scores with a classifier. Raises what `ForeignScorer.load` and `RewardScorer.open_model` raise."""
    if classifier.ours:
        return RewardScorer.open_model(Path(classifier.path), settings, name=classifier.path)
    return ForeignScorer.load(classifier, settings)


# ---- loading -------------------------------------------------------------------------------------------------


def _load_whole(classifier: Classifier, settings: ModelSettings) -> tuple[Any, dict[int, str]]:
    model, info = _from_pretrained(classifier.path, settings)
    _refuse_faults(classifier.path, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    return model, {int(number): str(name) for number, name in model.config.id2label.items()}


def _load_adapter(classifier: Classifier, settings: ModelSettings) -> tuple[Any, dict[int, str]]:
    """A base with an adapter of another framework over it. What the base lacks, the adapter has to hold."""
    folder, base = Path(classifier.path), str(classifier.base)
    tensors = load_tensors(folder / WEIGHTS_FILE)
    heads = [value for key, value in tensors.items() if _HEADS.search(key)]
    if len(heads) != 1:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: holds {len(heads)} score heads; expected one")
    num_labels = heads[0].shape[0]
    model, info = _from_pretrained(base, settings, num_labels=num_labels)
    held = {key.removeprefix("base_model.model.") for key in tensors}
    # A base is a causal model mostly: its output matrix is not used, and it has no head.
    left_over = [key for key in info["unexpected_keys"] if key.startswith(f"{model.base_model_prefix}.")]
    _refuse_faults(base, set(info["missing_keys"]) - held, left_over, info["mismatched_keys"])
    known = set(LoraConfig.__dataclass_fields__)
    config = LoraConfig(
        **{k: v for k, v in read_adapter_config(folder).items() if k in known and k != "runtime_config"}
    )
    config.inference_mode, config.lora_dropout = True, 0.0
    try:
        adapted = PeftModelForSequenceClassification(model, config)
        wanted = set(adapter_tensors(adapted, save_embedding_layers=False))
        _refuse_faults(str(folder), wanted - tensors.keys(), tensors.keys() - wanted, [])
        set_peft_model_state_dict(adapted, tensors)
    except (ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: does not fit {base} ({first_line(error)})") from error
    return adapted, {number: f"LABEL_{number}" for number in range(num_labels)}


def _from_pretrained(path: str, settings: ModelSettings, **changes: Any) -> tuple[Any, dict[str, Any]]:
    device = resolve_device(settings.device)
    quantization = loading_options(settings, device)
    if quantization:
        quantization["quantization_config"].llm_int8_skip_modules = ["score", "classifier", "v_head"]
    transformers_logging.disable_progress_bar()
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it warns of is an error of ours, in one line
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **changes)
        if type(config) not in AutoModelForSequenceClassification._model_mapping:
            raise ModelError(f"{path}: transformers has no sequence classification for {config.model_type}")
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **quantization,
        )
    except _LOADING_ERRORS as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{path}: cannot be loaded as a sequence-classification model ({first_line(error)})"
        ) from error
    finally:
        transformers_logging.set_verbosity(before)
    return (model if quantization else model.to(device)), info


def _refuse_faults(where: str, missing: Any, unexpected: Any, mismatched: Any) -> None:
    """CheckpointError unless the files and the model hold the same weights."""
    faults = [sorted(map(str, keys)) for keys in (missing, unexpected, mismatched)]
    if any(faults):
        counts = ", ".join(
            f"{len(keys)} {kind}"
            for keys, kind in zip(faults, ("missing", "unexpected", "of another shape"), strict=True)
        )
        raise CheckpointError(
            f"{where}: weights {counts} (first: {next(keys[0] for keys in faults if keys)})"
        )


def _tokenizer(classifier: Classifier) -> Any:
    """The classifier's own; an adapter may leave it with its base."""
    error: Exception | None = None
    for place in (classifier.path, classifier.base):
        if place is None:
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except _LOADING_ERRORS as fault:
            error = error or fault
            continue
        template = tokenizer.chat_template
        if isinstance(template, str) and len(template) > MAX_TEMPLATE_CHARS:
            raise ModelError(
                f"{place}: chat template of {len(template)} characters; expected at most {MAX_TEMPLATE_CHARS}"
            )
        return tokenizer
    raise ModelError(f"{classifier.path}: no usable tokenizer ({first_line(error or OSError())})") from error
