"""`rlhf prefer`: a policy adapter from ratings or from scored samples, without a critic.

    offline   load -> trunk states and reference log-probabilities once -> epochs of (examples, loss, step), validation
              after each -> best epoch -> adapter
              dpo, ipo, robust, kto, orpo, cpo, simpo: rlhf.preference.losses
    online    the rollouts of PPO -> advantages of groups -> updates -> adapter
              grpo, rloo, online-dpo, raft: rlhf.preference.online

What comes out is a run directory like PPO's: OUT/adapter, a manifest, metrics.jsonl, prefer.png.

Logged per step of an offline run: `loss` (its imitation included), `accuracy` of the implicit reward on decided
comparisons, `margin` between the two sides in the units of the loss, `log_ratio` mean log(policy / reference) of the
completions trained on, in nats, `kl_estimate` (kto: z), `grad_norm` before clipping, `lr`. Per epoch the same of the
validation split, as `validation_*`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from rlhf.core.backbone import Backbone
from rlhf.core.checkpoint import StateCheckpoints
from rlhf.core.errors import GuardStop, Stopped
from rlhf.core.guards import SignalGuard
from rlhf.core.inputs import find_model, find_path, model_name, require_one_process, required
from rlhf.core.metrics import progress
from rlhf.core.run import CHECKPOINTS, Launch, Run, Workspace
from rlhf.preference import online
from rlhf.preference.config import PreferConfig
from rlhf.preference.data import PreferenceData, load
from rlhf.preference.save import finish
from rlhf.preference.trainer import OfflineTrainer


def run(config: PreferConfig, launch: Launch) -> None:
    """`rlhf prefer`. Writes OUT/adapter, metrics and manifest; see `rlhf.core.run` for what OUT may be."""
    require_one_process("prefer")
    if config.is_online:
        online.run(config, launch)
        return
    backbone_path = find_model(required(config.backbone, "backbone", "the supervised model"), launch)
    snapshot = find_path(
        required(config.snapshot, "snapshot", "a directory written by `rlhf export`"), launch
    )
    out = launch.out or Workspace(launch.workspace).runs / config.method
    if launch.dry_run:
        backbone, data = _load(backbone_path, snapshot, config, launch)
        print(f"prefer: would train {config.method} on {backbone.name} with {_counts(data)} into {out}")
        return
    parents = {"snapshot": snapshot} | (
        {"backbone": Path(backbone_path)} if Path(backbone_path).exists() else {}
    )
    # Opened before the model is loaded: a second launcher and a finished run are answered at once.
    with Run.open(
        out, stage="prefer", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"prefer: {out} is already finished")
            return
        backbone, data = _load(backbone_path, snapshot, config, launch)
        record.begin()
        print(f"prefer: {config.method} on {_counts(data)}")
        if config.engine == "trl":
            _trl().train(backbone, data, config, record)
        else:
            train(backbone, data, config, record)


def _load(
    backbone_path: str, snapshot: Path, config: PreferConfig, launch: Launch
) -> tuple[Backbone, PreferenceData]:
    """The backbone and what raters said in its tokens. Raises ModelError and DataError."""
    backbone = Backbone.load(backbone_path, config.model, name=model_name(backbone_path, launch))
    max_tokens = min(config.max_tokens or backbone.codec.max_tokens, backbone.codec.max_tokens)
    data = load(snapshot, backbone.codec, config, max_tokens)
    if data.num_too_long:
        print(f"prefer: left out {data.num_too_long} answers about texts longer than {max_tokens} tokens")
    if data.num_moved:
        print(f"prefer: {data.num_moved} answers moved to the split of a near-duplicate prompt")
    if data.raters is not None and data.raters.note:
        print(f"prefer: all raters count alike: {data.raters.note}")
    return backbone, data


def _trl() -> Any:
    """`rlhf.preference.trl_engine`, which imports trl and datasets: seconds that the native engine does not need."""
    return importlib.import_module("rlhf.preference.trl_engine")


def _counts(data: PreferenceData) -> str:
    counts = " / ".join(str(len(data.examples[split])) for split in data.examples)
    text = f"{counts} examples (train / validation / test)"
    return text + (f", {data.num_demonstrations} of them demonstrations" if data.num_demonstrations else "")


def train(backbone: Backbone, data: PreferenceData, config: PreferConfig, record: Run) -> None:
    """Train, keep the best epoch, measure it on the test split, save. Raises GuardStop and Stopped."""
    with SignalGuard() as guard:
        with progress("reference", len(data.rows), stage="prefer") as tracker:
            trainer = OfflineTrainer(backbone, data, config, check=guard.check, on_reference=tracker.advance)
        print(f"prefer: {trainer.trunk_note}")
        checkpoints = StateCheckpoints(record.path / CHECKPOINTS, "prefer")
        state = checkpoints.newest() if record.resuming else None
        if state is not None:
            trainer.load_state_dict(state)
        elif trainer.spent.used_up:
            raise GuardStop(
                f"nothing was learned: {trainer.spent.why()} before the first step, on the reference's "
                f"log-probabilities ({trainer.spent.tokens} tokens in {trainer.spent.seconds:.1f} s); expected more"
            )
        record.metrics.truncate_after(trainer.global_step if state is not None else -1)
        _epochs(trainer, checkpoints, record, guard)
        trainer.restore_best()
        test = trainer.measure(data.examples["test"], guard.check)
    finish(trainer, test, record)


def _epochs(trainer: OfflineTrainer, checkpoints: StateCheckpoints, record: Run, guard: SignalGuard) -> None:
    """Steps, validation and checkpoints until the trainer is done. Raises Stopped with the state saved."""
    config = trainer.config
    bounded = trainer.spent.is_bounded
    total = None if bounded else config.num_epochs * trainer.steps_per_epoch
    with progress("steps", total, stage=f"prefer {config.method}") as tracker:
        tracker.advance(trainer.global_step)
        try:
            while not trainer.done:
                if not trainer.epoch_is_over:
                    figures = trainer.train_step(guard.check)
                    record.metrics.log(trainer.global_step, **figures)
                    tracker.advance(loss=figures["loss"])
                    if trainer.global_step % config.save_steps == 0 and not trainer.epoch_is_over:
                        checkpoints.save(trainer.global_step, trainer.state_dict())
                    continue
                figures = trainer.finish_epoch(guard.check)
                record.metrics.log(trainer.global_step, **figures)
                checkpoints.save(trainer.global_step, trainer.state_dict())
        except Stopped:
            # Raised between steps or before one was made: what is in memory is the state of the last one.
            checkpoints.save(trainer.global_step, trainer.state_dict())
            raise
    if trainer.spent.used_up:
        print(f"prefer: ended in epoch {trainer.epoch} because {trainer.spent.why()}")
