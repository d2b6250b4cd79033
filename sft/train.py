"""`rlhf sft`: trl's SFTTrainer on tokens of our codec, a LoRA adapter, the best step merged into a model directory.

    read -> split by prompt -> validation loss of the base -> train, validating as it goes
         -> best adapter -> merged model directory, the backbone of the round

Departures from SFTTrainer's defaults: tokens come from `ChatCodec`, so that what is trained is what is sampled
later; validation loss is the mean over completion tokens, whatever the batches; a loss that is not finite
stops the run; checkpoints are committed atomically, and nothing is reported to anybody.

Logged per step: `loss` (nats per completion token of the batch), `grad_norm` before clipping, `lr`,
`token_accuracy`. Logged per validation: `validation_loss` (nats per completion token; step 0 is the base).
"""

from __future__ import annotations

import copy
import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig

from rlhf.core.adapters import load_role_tensors, save_policy
from rlhf.core.backbone import Backbone, Role, resolve_device, right_padded
from rlhf.core.batching import token_budget_batches
from rlhf.core.checkpoint import newest_valid
from rlhf.core.errors import ConfigError
from rlhf.core.files import atomic_folder, clear_folders
from rlhf.core.guards import SignalGuard, require_finite_parameters
from rlhf.core.inputs import find_model, find_path, model_name, require_one_process, required
from rlhf.core.logprobs import token_logprobs
from rlhf.core.metrics import progress
from rlhf.core.run import CHECKPOINTS, Launch, Run, Workspace
from sft.config import SFTConfig
from sft.data import Example, load_examples, split_examples
from sft.trainer import make_trainer, pass_budget
from sft.watch import Watch

ROLE = "policy"
TRL = ".trl"  # where trl writes what Watch makes a checkpoint of


def run(config: SFTConfig, launch: Launch) -> None:
    """`rlhf sft`. Writes OUT/model, OUT/adapter, metrics and manifest; see `rlhf.core.run` for OUT."""
    require_one_process("sft")
    if resolve_device(config.model.device).index:
        raise ConfigError(f"model.device is {config.model.device}; for sft set CUDA_VISIBLE_DEVICES instead")
    base_path = find_model(required(config.base, "base", "the model to tune"), launch)
    data_path = find_path(required(config.data, "data", "a JSONL of demonstrations"), launch)
    out = launch.out or Workspace(launch.workspace).runs / "sft"
    if launch.dry_run:
        backbone, train_set, validation_set, _ = _load(base_path, data_path, config, launch)
        counts = f"{len(train_set)} demonstrations and validate on {len(validation_set)}"
        print(f"sft: would tune {backbone.name} on {counts}, into {out}")
        return
    parents = {"data": data_path} | ({"base": Path(base_path)} if Path(base_path).exists() else {})
    # Opened before the model is loaded: a second launcher and a finished run are answered at once.
    with Run.open(
        out, stage="sft", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"sft: {out} is already finished")
            return
        backbone, train_set, validation_set, num_too_long = _load(base_path, data_path, config, launch)
        record.begin()
        role = backbone.add_role(ROLE, config.lora, seed=config.seed)
        watch = train(backbone, role, train_set, validation_set, config, record)
        save_results(backbone, role, record.path)
        metrics = {
            "validation_loss_before": watch.before,
            "validation_loss": watch.best_loss,
            "best_step": watch.best_step,
            "num_steps": watch.step,
            "num_train": len(train_set),
            "num_validation": len(validation_set),
            "num_too_long": num_too_long,
        }
        record.finish(metrics, extra={"base": backbone.name})
        print(
            f"sft: validation loss {watch.before:.4f} -> {watch.best_loss:.4f} nats per token "
            f"at step {watch.best_step} of {watch.step}; saved in {record.path / 'model'}"
        )


def _load(
    base_path: str, data_path: Path, config: SFTConfig, launch: Launch
) -> tuple[Backbone, list[Example], list[Example], int]:
    """(backbone, training and validation examples, how many were too long). Raises ModelError and DataError."""
    backbone = Backbone.load(base_path, config.model, name=model_name(base_path, launch))
    max_tokens = min(config.max_tokens or backbone.codec.max_tokens, backbone.codec.max_tokens)
    examples, num_too_long = load_examples(
        data_path, backbone.codec, max_tokens=max_tokens, drop_too_long=config.on_too_long == "drop"
    )
    train_set, validation_set = split_examples(
        examples, config.validation_fraction, config.seed, str(data_path)
    )
    if num_too_long:
        print(f"sft: left out {num_too_long} demonstrations longer than {max_tokens} tokens")
    return backbone, train_set, validation_set, num_too_long


def train(
    backbone: Backbone,
    role: Role,
    train_set: Sequence[Example],
    validation_set: Sequence[Example],
    config: SFTConfig,
    record: Run,
) -> Watch:
    """Train the role's adapter and leave it at its best step. Raises GuardStop and Stopped."""
    budget = pass_budget(config, [*train_set, *validation_set])
    lengths = [len(e.input_ids) for e in validation_set]

    def validate() -> float:
        return budget.fit(lambda tokens: mean_loss(backbone, role, validation_set, tokens), lengths)

    checkpoints = record.path / CHECKPOINTS
    written = checkpoints / TRL
    shutil.rmtree(written, ignore_errors=True)  # what a kill left of a save
    micro_steps = math.ceil(len(train_set) / config.micro_batch_size)
    per_epoch = math.ceil(micro_steps / (config.batch_size // config.micro_batch_size))
    num_steps = per_epoch * config.num_epochs
    with SignalGuard() as guard, progress("training", num_steps, stage="sft") as tracker:
        watch = Watch(
            role,
            validate=validate,
            metrics=record.metrics,
            checkpoints=checkpoints,
            num_steps=num_steps,
            eval_steps=config.eval_steps or per_epoch,
            patience=config.patience,
            guard=guard,
            advance=tracker.advance,
            budget=budget,
        )
        trainer = make_trainer(backbone, role, train_set, config, written, budget)
        trainer.add_callback(watch)
        folder = (
            newest_valid(checkpoints, warn=lambda text: print(f"sft: {text}")) if record.resuming else None
        )
        if folder is not None:
            watch.load(folder)
            tracker.advance(watch.step)
        record.metrics.truncate_after(watch.step if folder is not None else -1)
        if not watch.done:  # the trainer would add a step to a run that has had them all
            with warnings.catch_warnings():
                # peft looks for the base from the current directory; ours is named relative to the workspace
                warnings.filterwarnings("ignore", message="Could not find a config file")
                trainer.train(resume_from_checkpoint=str(folder) if folder is not None else None)
        guard.check()
    shutil.rmtree(written, ignore_errors=True)  # trl makes it again even where nothing is left to train
    load_role_tensors(role, watch.best, "the best step")
    require_finite_parameters("the best step", role.parameters())
    role.model.eval()
    return watch


@torch.no_grad()
def mean_loss(backbone: Backbone, role: Role, examples: Sequence[Example], max_tokens: int) -> float:
    """Negative log-likelihood per completion token, in nats, without dropout.

    max_tokens: padded tokens per forward pass. The result does not depend on it, nor on the order.
    """
    training, total = role.model.training, 0.0
    role.model.eval()
    try:
        for indices in token_budget_batches([len(e.input_ids) for e in examples], max_tokens):
            rows = [examples[i] for i in indices]
            tokens_BS = right_padded(
                [e.input_ids for e in rows], backbone.codec.pad_token_id, backbone.device
            )
            mask_BS = right_padded([e.completion_mask for e in rows], 0, backbone.device).bool()
            hidden_BSH = backbone.hidden(role.name, tokens_BS)
            counts_BS: Tensor = mask_BS[:, 1:]
            logprobs_N, _ = token_logprobs(
                backbone.head,
                hidden_BSH[:, :-1][counts_BS],
                tokens_BS[:, 1:][counts_BS],
            )
            total -= logprobs_N.double().sum().item()
    finally:
        role.model.train(training)
    return total / sum(e.num_targets for e in examples)


def save_results(backbone: Backbone, role: Role, out: Path) -> None:
    """OUT/adapter and OUT/model, each there as a whole or not at all."""
    clear_folders(out, "adapter", "model")
    with atomic_folder(out / "adapter") as folder:
        save_policy(role, folder, backbone)
    with atomic_folder(out / "model") as folder:
        save_model(backbone, role, folder)


def save_model(backbone: Backbone, role: Role, folder: Path) -> None:
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
    merged.save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)
