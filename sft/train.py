"""`rlhf sft`: trl's SFTTrainer on tokens of our codec, one of nine methods, the best step saved.

    read -> split by prompt -> validation loss of the base -> train, validating as it goes
         -> best step -> merged model directory, the backbone of the round; and a report

Departures from SFTTrainer's defaults: tokens come from `ChatCodec`, so that what is trained is what is sampled
later; validation loss is the mean over completion tokens, whatever the batches; a loss that is not finite
stops the run; checkpoints are committed atomically, and nothing is reported to anybody.

Logged per step: `loss` (nats per completion token of the batch), `grad_norm` before clipping, `lr`,
`token_accuracy`. Logged per validation: `validation_loss` (nats per completion token; step 0 is the base, with
virtual tokens what they begin as) and, of several tasks, `validation_loss_NAME`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.core.adapters import load_adapter
from rlhf.core.backbone import REFERENCE, Backbone, Role, resolve_device, right_padded
from rlhf.core.batching import token_budget_batches
from rlhf.core.checkpoint import newest_valid
from rlhf.core.errors import ConfigError
from rlhf.core.extras import extra_module
from rlhf.core.guards import SignalGuard, TokenBudget, require_finite_parameters
from rlhf.core.inputs import find_model, find_path, model_name, require_one_process, required
from rlhf.core.logprobs import token_logprobs
from rlhf.core.metrics import progress
from rlhf.core.run import CHECKPOINTS, Launch, Run, Workspace
from sft.config import SFTConfig
from sft.data import Example
from sft.methods import (
    add_method,
    count_parameters,
    let_go,
    load_trained,
    merges,
    save_adapter,
    save_merged,
)
from sft.packing import require_separation, to_rows
from sft.privacy.train import forget_key, train_privately
from sft.privacy.trainer import PrivateTrainer
from sft.remedies import REPLAY, load_replay
from sft.report import Samples, draw_samples, write_report
from sft.tasks import Task, find_data, load_tasks, mean_of_tasks, parents_of
from sft.trainer import make_trainer, pass_budget, room_of
from sft.watch import Validation, Watch

ROLE = "policy"
TRL = ".trl"  # where trl writes what Watch makes a checkpoint of


def run(config: SFTConfig, launch: Launch) -> None:
    """`rlhf sft`. Writes OUT/model, OUT/adapter, report, metrics and manifest; see `rlhf.core.run` for OUT."""
    require_one_process("sft")
    if resolve_device(config.model.device).index:
        raise ConfigError(f"model.device is {config.model.device}; for sft set CUDA_VISIBLE_DEVICES instead")
    base_path = find_model(required(config.base, "base", "the model to tune"), launch)
    files = find_data(config, launch)
    replay = find_path(config.replay, launch) if config.replay else None
    out = launch.out or Workspace(launch.workspace).runs / "sft"
    # What is missing is said before anything is loaded.
    tuning = extra_module("sft.search", "--tune", "tune") if config.tune else None

    def load() -> tuple[Backbone, list[Task]]:
        backbone = Backbone.load(base_path, config.base_settings, name=model_name(base_path, launch))
        if config.packing:
            require_separation(backbone)
        tasks = load_tasks(files, backbone.codec, config)
        if replay is not None:
            tasks.append(Task(REPLAY, load_replay(replay, backbone.codec, config), []))
        return backbone, tasks

    if launch.dry_run:
        backbone, tasks = load()
        num_train, num_held_out = (
            sum(len(getattr(t, part)) for t in tasks) for part in ("train", "validation")
        )
        print(
            f"sft: would tune {backbone.name} ({config.method}) on {num_train} demonstrations and validate on "
            f"{num_held_out}, into {out}"
        )
        return
    parents = parents_of(files) | ({"base": Path(base_path)} if Path(base_path).exists() else {})
    parents |= {REPLAY: replay} if replay is not None else {}
    # Opened before the model is loaded: a second launcher and a finished run are answered at once.
    with Run.open(
        out, stage="sft", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            if config.privacy.on:  # a kill may have come between the end and this
                forget_key(record.path)
            print(f"sft: {out} is already finished")
            return
        backbone, tasks = load()
        record.begin()
        chosen = config
        if tuning is not None:
            let_go(backbone)
            chosen = tuning.searched(config, record, parents, launch, load)
            backbone, tasks = load()
        result = tune(backbone, tasks, chosen, record, base_path)
        record.finish(
            result.metrics(tasks),
            extra={"base": backbone.name, "method": config.method, "merged": merges(config)}
            | ({"privacy": result.privacy} if result.privacy is not None else {}),
        )
        if result.privacy is not None:
            forget_key(record.path)
        print(result.told(record.path / ("model" if merges(config) else "adapter")))


@dataclass(frozen=True)
class Tuned:
    """What a run came to. before: validation of the untouched base; merged: of a model merged into another base."""

    before: Validation
    best: Validation
    best_step: int
    num_steps: int
    num_trained: int
    num_parameters: int
    merged_loss: float | None = None
    privacy: dict[str, Any] | None = None

    def metrics(self, tasks: Sequence[Task]) -> dict[str, float | int]:
        """The figures for the manifest."""
        figures: dict[str, float | int] = {
            "validation_loss_before": self.before.loss,
            "validation_loss": self.best.loss,
            "best_step": self.best_step,
            "num_steps": self.num_steps,
            "num_train": sum(len(task.train) for task in tasks),
            "num_validation": sum(len(task.validation) for task in tasks),
            "num_too_long": sum(task.num_too_long for task in tasks),
            "num_trained_parameters": self.num_trained,
            "share_trained": self.num_trained / self.num_parameters,
        }
        for name, loss in self.best.parts.items():
            figures |= {
                f"validation_loss_before_{name}": self.before.parts[name],
                f"validation_loss_{name}": loss,
            }
        if self.merged_loss is not None:
            figures["validation_loss_merged"] = self.merged_loss
        if self.privacy is not None:
            figures["epsilon"] = self.privacy["epsilon"]
        return figures

    def told(self, saved: Path) -> str:
        merged = (
            ""
            if self.merged_loss is None
            else f" (merged into the base in full precision: {self.merged_loss:.4f})"
        )
        return (
            f"sft: validation loss {self.before.loss:.4f} -> {self.best.loss:.4f}{merged} nats per token "
            f"at step {self.best_step} of {self.num_steps}; saved in {saved}"
        )


def tune(backbone: Backbone, tasks: Sequence[Task], config: SFTConfig, record: Run, base_path: str) -> Tuned:
    """Train, save and report. Raises GuardStop and Stopped."""
    train_set = [example for task in tasks for example in task.train]
    asked = [example for task in tasks for example in task.validation]
    samples = Samples.choose(asked, config, config.room(backbone.codec.max_tokens))
    # Before any weight changes: method full trains the loaded model itself, also in a run that is resumed.
    samples.before = draw_samples(backbone, REFERENCE, samples, config)
    budget = pass_budget(config, [*train_set, *asked], to_rows(train_set, room_of(config, backbone)))
    role = add_method(backbone, ROLE, config, train_set[0].input_ids)
    before = validation_of(backbone, backbone.roles[REFERENCE], tasks, budget) if role.prompted else None
    watch: Watch | PrivateTrainer
    privacy = None
    if config.privacy.on:
        watch, privacy = train_privately(
            backbone,
            role,
            train_set,
            config,
            record,
            budget,
            lambda: validation_of(backbone, role, tasks, budget),
        )
    else:
        watch = train(backbone, role, tasks, config, record, budget)
    trained, parameters = count_parameters(backbone, role)
    save_adapter(backbone, role, config, record.path)
    merged_loss = None
    if config.method == "qlora":
        backbone, role = whole_base(backbone, base_path, config, record.path / "adapter")
        merged_loss = validation_of(backbone, role, tasks, budget).loss
    samples.after = draw_samples(backbone, role.name, samples, config)
    if merges(config):
        save_merged(backbone, role, config, record.path)
    best = Validation(watch.best_loss, watch.best_parts)
    result = Tuned(
        before or watch.first, best, watch.best_step, watch.step, trained, parameters, merged_loss, privacy
    )
    write_report(record.path, config, tasks, backbone, samples, result.metrics(tasks))
    return result


def whole_base(
    quantized: Backbone, base_path: str, config: SFTConfig, adapter: Path
) -> tuple[Backbone, Role]:
    """The base as it was before it was rounded to 4 bits, with the trained adapter. The rounded one is let go first,
    so that both never lie in memory together. Raises ModelError and CheckpointError."""
    let_go(quantized)
    backbone = Backbone.load(
        base_path, config.model.model_copy(update={"quantization": "none"}), name=quantized.name
    )
    return backbone, load_adapter(backbone, ROLE, adapter, base_name=backbone.name, scalar_head=False)


def train(
    backbone: Backbone,
    role: Role,
    tasks: Sequence[Task],
    config: SFTConfig,
    record: Run,
    budget: TokenBudget,
) -> Watch:
    """Train the role and leave it at its best step. Raises GuardStop and Stopped."""
    train_set = [example for task in tasks for example in task.train]
    checkpoints = record.path / CHECKPOINTS
    written = checkpoints / TRL
    shutil.rmtree(written, ignore_errors=True)  # what a kill left of a save
    trainer = make_trainer(backbone, role, train_set, config, written, budget)
    rows = trainer.train_dataset if trainer.sampler is None else trainer.sampler
    per_epoch = steps_per_epoch(len(rows), config)
    num_steps = per_epoch * config.num_epochs
    with SignalGuard() as guard, progress("training", num_steps, stage="sft") as tracker:
        watch = Watch(
            role,
            validate=lambda: validation_of(backbone, role, tasks, budget),
            metrics=record.metrics,
            checkpoints=checkpoints,
            num_steps=num_steps,
            eval_steps=config.eval_steps or per_epoch,
            patience=config.patience,
            guard=guard,
            advance=tracker.advance,
            budget=budget,
        )
        trainer.add_callback(watch)
        folder = (
            newest_valid(checkpoints, warn=lambda text: print(f"sft: {text}")) if record.resuming else None
        )
        if folder is not None:
            watch.load(folder)
            tracker.advance(watch.step)
        record.metrics.truncate_after(watch.step if folder is not None else -1)
        if not watch.done:  # the trainer would add a step to a run that has had them all
            trainer.train(resume_from_checkpoint=str(folder) if folder is not None else None)
        guard.check()
    shutil.rmtree(written, ignore_errors=True)  # trl makes it again even where nothing is left to train
    load_trained(role, watch.best, "the best step")
    require_finite_parameters("the best step", role.parameters())
    role.model.eval()
    return watch


def steps_per_epoch(num_rows: int, config: SFTConfig) -> int:
    """Optimizer steps of one pass over so many demonstrations or blocks."""
    micro_steps = math.ceil(num_rows / config.micro_batch_size)
    return math.ceil(micro_steps / (config.batch_size // config.micro_batch_size))


def validation_of(backbone: Backbone, role: Role, tasks: Sequence[Task], budget: TokenBudget) -> Validation:
    """The validation loss of a role, with those of the tasks where there are several. Replayed rows have none."""
    tasks, losses = [task for task in tasks if task.validation], []
    for task in tasks:
        lengths = [len(example.input_ids) for example in task.validation]
        losses.append(budget.fit(partial(mean_loss, backbone, role, task.validation), lengths))
    if len(tasks) == 1:
        return Validation(losses[0], {})
    parts = {task.name: loss for task, loss in zip(tasks, losses, strict=True)}
    return Validation(mean_of_tasks(tasks, losses), parts)


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
