"""trl's DPOTrainer and KTOTrainer under our run directories: the reference that the native engine is compared with.

They get token rows of `ChatCodec` instead of texts (left to themselves they tokenise prompt and completion together and
append `tokenizer.eos_token`, which some models have never seen at the end of an answer), the frozen backbone as the
reference model, and the supervised stage's `Watch`: validation by our own measure, atomic checkpoints, resume, the NaN
guard. Ties, weights, margins and budgets, which they have no place for, are refused by the settings. Passes are not
halved when memory runs out, as the native engine does.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from rlhf.core.backbone import Backbone
from rlhf.core.checkpoint import newest_valid
from rlhf.core.decoder import share_clone
from rlhf.core.guards import SignalGuard, require_finite_parameters
from rlhf.core.metrics import progress
from rlhf.core.randomness import derived_seed
from rlhf.core.run import CHECKPOINTS, Run
from rlhf.preference.config import PreferConfig
from rlhf.preference.data import PreferenceData
from rlhf.preference.save import finish
from rlhf.preference.trainer import OfflineTrainer
from sft.methods import load_trained
from sft.watch import Validation, Watch

TRL = ".trl"  # where trl writes what Watch makes a checkpoint of
LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "robust": "robust", "kto": "kto"}
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class PairTrainer(DPOTrainer):
    """DPOTrainer on rows that are tokens already, without a model card (which would ask the hub about the base)."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the manifest says where the model comes from."""


class VerdictTrainer(KTOTrainer):
    """KTOTrainer on rows that are tokens already; completions for the KL estimate are turned within each batch."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the manifest says where the model comes from."""


def train(backbone: Backbone, data: PreferenceData, config: PreferConfig, record: Run) -> None:
    """Train the policy's adapter through trl and leave the run as the native engine does."""
    checkpoints = record.path / CHECKPOINTS
    written = checkpoints / TRL
    shutil.rmtree(written, ignore_errors=True)  # what a kill left of a save
    with SignalGuard() as guard:
        with progress("reference", len(data.rows), stage="prefer") as tracker:
            native = OfflineTrainer(backbone, data, config, check=guard.check, on_reference=tracker.advance)
        trainer = make_trainer(native, written)
        per_epoch = math.ceil(len(trainer.train_dataset) / config.batch_size)
        num_steps = per_epoch * config.num_epochs
        with progress("steps", num_steps, stage=f"prefer {config.method} (trl)") as tracker:
            watch = Watch(
                native.role,
                validate=lambda: Validation(native.measure(native.validation, guard.check)["loss"], {}),
                metrics=record.metrics,
                checkpoints=checkpoints,
                num_steps=num_steps,
                eval_steps=per_epoch,
                patience=config.patience,
                guard=guard,
                advance=tracker.advance,
                budget=native.budget,
            )
            trainer.add_callback(watch)
            folder = newest_valid(checkpoints, warn=lambda text: print(f"prefer: {text}"))
            folder = folder if record.resuming else None
            if folder is not None:
                watch.load(folder)
                tracker.advance(watch.step)
            record.metrics.truncate_after(watch.step if folder is not None else -1)
            started = time.perf_counter()
            if not watch.done:  # the trainer would add a step to a run that has had them all
                with warnings.catch_warnings():
                    # peft looks for the base from the current directory; ours is named relative to the workspace
                    warnings.filterwarnings("ignore", message="Could not find a config file")
                    trainer.train(resume_from_checkpoint=str(folder) if folder is not None else None)
            native.spent.seconds += time.perf_counter() - started
        guard.check()
        shutil.rmtree(written, ignore_errors=True)  # trl makes it again even where nothing is left to train
        load_trained(native.role, watch.best, "the best step")
        require_finite_parameters("the best step", native.role.parameters())
        native.role.model.eval()
        test = native.measure(data.examples["test"], guard.check)
    native.best_loss, native.epoch = watch.best_loss, math.ceil(watch.step / per_epoch)
    native.best_epoch = math.ceil(watch.best_step / per_epoch)
    finish(native, test, record)


def make_trainer(native: OfflineTrainer, folder: Path) -> Any:
    """trl's trainer of the method on the role's adapter. It writes into `folder` when a callback asks for it."""
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    backbone, config = native.backbone, native.config
    tokenizer = backbone.codec.tokenizer
    # trl writes the tokenizer's pad token into the models' settings, and takes eos where there is none.
    before = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(backbone.codec.pad_token_id)
    shared: dict[str, Any] = {
        "model": native.role.model,
        # A structural copy with the same tensors: trl replaces the forward of what it is given.
        "ref_model": share_clone(backbone.model),
        "processing_class": tokenizer,
    }
    try:
        if config.method == "kto":
            trainer: Any = VerdictTrainer(
                **shared,
                args=KTOConfig(
                    **_arguments(native, folder),
                    beta=config.kl_weight,
                    loss_type="kto",
                    desirable_weight=config.desirable_weight,
                    undesirable_weight=config.undesirable_weight,
                    train_sampling_strategy="sequential",
                ),
                train_dataset=verdict_rows(native),
                data_collator=DataCollatorForUnpairedPreference(backbone.codec.pad_token_id),
            )
        else:
            trainer = PairTrainer(
                **shared,
                args=DPOConfig(
                    **_arguments(native, folder),
                    beta=config.kl_weight,
                    loss_type=[LOSSES[config.method]],
                    label_smoothing=config.flip_rate if config.method == "robust" else 0.0,
                ),
                train_dataset=pair_rows(native),
                data_collator=DataCollatorForPreference(backbone.codec.pad_token_id),
            )
    finally:
        tokenizer.pad_token = before
    trainer.remove_callback(PrinterCallback)
    return trainer


def pair_rows(native: OfflineTrainer) -> Dataset:
    """prompt_ids, chosen_ids, rejected_ids, one row for every answer of a rater."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for example in native.examples:
        first, second = (_cut(native, row) for row in example.rows)
        rows += [(first[0], first[1], second[1])] * _answers(example.weight * example.outcome[0])
        rows += [(first[0], second[1], first[1])] * _answers(example.weight * example.outcome[2])
    return Dataset.from_dict(
        {
            name: [row[k] for row in rows]
            for k, name in enumerate(("prompt_ids", "chosen_ids", "rejected_ids"))
        }
    )


def verdict_rows(native: OfflineTrainer) -> Dataset:
    """prompt_ids, completion_ids, label and the batch neighbour's completion, in a seeded order that stays."""
    generator = torch.Generator().manual_seed(derived_seed(native.config.seed, "trl rows"))
    order = torch.randperm(len(native.examples), generator=generator).tolist()
    rows: list[tuple[list[int], list[int], bool]] = []
    for number in order:
        example = native.examples[number]
        prompt, completion = _cut(native, example.row)
        rows += [(prompt, completion, True)] * _answers(example.weight * example.good)
        rows += [(prompt, completion, False)] * _answers(example.weight * example.bad)
    size = native.config.batch_size
    turned: list[list[int]] = []
    for start in range(0, len(rows), size):
        completions = [row[1] for row in rows[start : start + size]]
        turned += [completions[-1], *completions[:-1]]
    return Dataset.from_dict(
        {
            "prompt_ids": [row[0] for row in rows],
            "completion_ids": [row[1] for row in rows],
            "KL_completion_ids": turned,
            "label": [row[2] for row in rows],
        }
    )


def _answers(weight: float) -> int:
    """How many raters said so: without weights each answer counts 1."""
    return max(1, round(weight)) if weight > 0 else 0


def _cut(native: OfflineTrainer, row: int) -> tuple[list[int], list[int]]:
    """The tokens of a row's prompt and completion."""
    ids, length = native.data.rows[row], native.data.prompt_lengths[row]
    return ids[:length], ids[length:]


def _arguments(native: OfflineTrainer, folder: Path) -> dict[str, Any]:
    """Our settings in trl's words."""
    backbone, config = native.backbone, native.config
    optim = config.optim
    return {
        "output_dir": str(folder),
        "num_train_epochs": config.num_epochs,
        "per_device_train_batch_size": config.batch_size,
        "activation_checkpointing": False,
        "learning_rate": optim.lr,
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "adam_epsilon": optim.eps,
        "weight_decay": optim.weight_decay,
        "warmup_steps": optim.warmup_steps,
        "lr_scheduler_type": SCHEDULES[optim.schedule],
        "max_grad_norm": optim.max_grad_norm,
        "max_length": None,  # nothing is cut: too long rows were refused or left out, and counted
        "disable_dropout": False,
        "bf16": config.model.dtype == "bfloat16" and backbone.device.type == "cuda",
        "fp16": False,
        "use_cpu": backbone.device.type == "cpu",
        "seed": config.seed,
        "data_seed": config.seed,
        "logging_steps": 1,  # every step is looked at for NaN
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # Watch asks for each save and commits it
        "eval_strategy": "no",  # Watch validates
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": backbone.device.type == "cuda",
    }
