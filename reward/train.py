"""Training the reward model: what people said becomes an adapter and a score head on the frozen backbone.

    load -> trunk states once -> [search of settings] -> epochs of (examples, loss, step), validation after each
         -> best epoch -> temperature on validation -> figures on test -> adapter directory

`--method full` trains all weights instead and writes a model directory. OUT/reward.png shows how it went,
OUT/conflicts.jsonl which completions raters judged in opposite ways.

Logged per epoch: `train_loss`; `validation_loss` (no dropout, no centring, raters weighed as in training);
`validation_accuracy` on decided comparisons, all raters alike; `grad_norm` before clipping; `lr`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from reward.calibrate import fit_temperature
from reward.config import RewardConfig
from reward.data import RewardData, load_ratings, without_ties
from reward.evaluate import differences, report, weights_of
from reward.full import full_role, save_full
from reward.heads import Heads
from reward.picture import draw
from reward.raters import RaterReport, conflicts, rater_weights
from reward.score import HEADS_FILE, MEMBER_FOLDER, RewardScale
from reward.trainer import RewardTrainer
from rlhf.core.adapters import save_reward
from rlhf.core.backbone import Backbone, Role
from rlhf.core.checkpoint import StateCheckpoints
from rlhf.core.errors import DataError, Stopped
from rlhf.core.extras import extra_module
from rlhf.core.files import atomic_folder, clear_folders, write_jsonl
from rlhf.core.guards import SignalGuard, TokenBudget
from rlhf.core.inputs import find_model, find_path, model_name, require_one_process, required
from rlhf.core.metrics import progress
from rlhf.core.randomness import derived_seed
from rlhf.core.records import Split
from rlhf.core.run import CHECKPOINTS, Launch, Run, Workspace
from rlhf.core.sequences import Sequences

ROLE = "reward"
CONFLICTS = "conflicts.jsonl"


def run(config: RewardConfig, launch: Launch) -> None:
    """`rlhf reward`. Writes OUT/adapter (or OUT/model), metrics, manifest; see `rlhf.core.run` for what OUT may be."""
    require_one_process("reward")
    if config.tune:
        _search()  # what is missing is said before anything is loaded
    backbone_path = find_model(required(config.backbone, "backbone", "the supervised model"), launch)
    snapshot = find_path(
        required(config.snapshot, "snapshot", "a directory written by `rlhf export`"), launch
    )
    out = launch.out or Workspace(launch.workspace).runs / "reward"
    if launch.dry_run:
        backbone, data = _load(backbone_path, snapshot, config, launch)
        print(f"reward: would train on {backbone.name} with {_counts(data)} into {out}")
        return
    parents = {"snapshot": snapshot} | (
        {"backbone": Path(backbone_path)} if Path(backbone_path).exists() else {}
    )
    # Opened before the model is loaded: a second launcher and a finished run are answered at once.
    with Run.open(
        out, stage="reward", settings=config, launch=launch, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"reward: {out} is already finished")
            return
        backbone, data = _load(backbone_path, snapshot, config, launch)
        heads = Heads.of(config, data)
        raters = rater_weights(data.pairs["train"], config.rater_weights)
        record.begin()
        print(f"reward: {_counts(data)}")
        if raters.note:
            print(f"reward: all raters count alike: {raters.note}")
        if data.num_moved:
            print(f"reward: {data.num_moved} answers moved to the split of a near-duplicate prompt")
        train(backbone, data, heads, raters, config, record)


def _load(
    backbone_path: str, snapshot: Path, config: RewardConfig, launch: Launch
) -> tuple[Backbone, RewardData]:
    """The backbone and what raters said in its tokens. Raises ModelError and DataError."""
    backbone = Backbone.load(backbone_path, config.model, name=model_name(backbone_path, launch))
    max_tokens = min(config.max_tokens or backbone.codec.max_tokens, backbone.codec.max_tokens)
    data = load_ratings(snapshot, backbone.codec, config, max_tokens)
    if data.num_too_long:
        print(f"reward: left out {data.num_too_long} answers about texts longer than {max_tokens} tokens")
    pairs = data.pairs["train"]
    others = data.num_ratings("train") - len(pairs)
    if config.ties == "ignore" and pairs and not others and not without_ties(pairs):
        raise DataError(
            f"{snapshot}: all {len(pairs)} training comparisons are ties, which --ties ignore leaves out"
        )
    return backbone, data


def _counts(data: RewardData) -> str:
    """How much of what there is in each split, in words."""
    kinds: dict[str, dict[Split, list[Any]]] = {
        "comparisons": data.pairs,
        "rankings": data.rankings,
        "rated completions": data.scores,
        "thumbs": data.thumbs,
    }
    found = [
        f"{' / '.join(str(len(kind[split])) for split in kind)} {name}"
        for name, kind in kinds.items()
        if any(kind.values())
    ]
    return f"{', '.join(found)} (train / validation / test)"


def make_roles(backbone: Backbone, heads: Heads, config: RewardConfig) -> list[Role]:
    """The role that is trained, or the adapters of an ensemble, with their heads at the start of training."""
    if config.method == "full":
        roles = [full_role(backbone, ROLE)]
    else:
        count = config.ensemble if config.ensemble_of == "adapters" else 1
        names = [ROLE, *(f"{ROLE}.{k}" for k in range(1, count))]
        lora = config.lora
        if config.tune and not lora.dropout:
            # Trials change the share; without any, peft makes no layer whose share could be changed.
            lora = lora.model_copy(update={"dropout": 0.1})
        roles = [backbone.add_role(name, lora, seed=config.seed) for name in names]
    for number, role in enumerate(roles):
        generator = torch.Generator().manual_seed(derived_seed(config.seed, "head", number))
        role.head = heads.make(backbone.hidden_size, backbone.device, generator)
    return roles


def train(
    backbone: Backbone,
    data: RewardData,
    heads: Heads,
    raters: RaterReport,
    config: RewardConfig,
    record: Run,
) -> None:
    """Train, keep the best epoch, calibrate, measure on test, save."""
    roles = make_roles(backbone, heads, config)
    if config.trunk_cache and config.method == "lora":
        print(f"reward: {backbone.enable_trunk(max(map(len, data.rows)))}")
    with SignalGuard() as guard:
        sequences = _with_trunk(backbone, data.rows, config, guard)

        nats = raters.nats if config.rater_labels == "posterior" else None

        def make_trainer(settings: RewardConfig) -> RewardTrainer:
            return RewardTrainer(roles, heads, sequences, data, settings, raters.weight_of, nats)

        if config.tune:
            config = _search().searched(make_trainer, config, record.path, guard.check)
        trainer = make_trainer(config)
        checkpoints = StateCheckpoints(record.path / CHECKPOINTS, "reward")
        if record.resuming and (state := checkpoints.newest()):
            trainer.load_state_dict(state)
        record.metrics.truncate_after(trainer.epoch)
        _epochs(trainer, checkpoints, record, guard)
    trainer.restore_best()
    finish(trainer, data, raters, record)


def _with_trunk(
    backbone: Backbone, rows: Sequence[list[int]], config: RewardConfig, guard: SignalGuard
) -> Sequences:
    """The rows with their trunk states where these fit; passes are halved when memory runs out."""

    def work(max_tokens: int) -> Sequences:
        with progress("trunk states", len(rows), stage="reward") as tracker:

            def advance(count: int) -> None:
                guard.check()
                tracker.advance(count)

            return Sequences(
                backbone,
                rows,
                max_tokens=max_tokens,
                max_bytes=int(config.trunk_cache_gib * 2**30),
                on_batch=advance,
            )

    budget = TokenBudget(config.micro_batch_tokens, shorter="max_tokens")
    return budget.fit(work, [len(row) for row in rows])


def _search() -> Any:
    """`reward.search`, which needs the extra `tune`."""
    return extra_module("reward.search", "--tune", "tune")


def _epochs(trainer: RewardTrainer, checkpoints: StateCheckpoints, record: Run, guard: SignalGuard) -> None:
    """Steps, validation and checkpoints until the trainer is done. Raises Stopped with the state saved."""
    config = trainer.config
    total = config.num_epochs * trainer.steps_per_epoch
    with progress("steps", total, stage="reward") as tracker:
        tracker.advance(trainer.global_step)
        try:
            while not trainer.done:
                if trainer.step < trainer.steps_per_epoch:
                    tracker.advance(loss=trainer.train_step(guard.check))
                    if (
                        trainer.global_step % config.save_steps == 0
                        and trainer.step < trainer.steps_per_epoch
                    ):
                        checkpoints.save(trainer.global_step, trainer.state_dict())
                    continue
                record.metrics.log(trainer.epoch + 1, **trainer.finish_epoch())
                checkpoints.save(trainer.global_step, trainer.state_dict())
        except Stopped:
            # Raised between steps or before one was made: what is in memory is the state of the last one.
            checkpoints.save(trainer.global_step, trainer.state_dict())
            raise


def finish(trainer: RewardTrainer, data: RewardData, raters: RaterReport, record: Run) -> None:
    """Calibrate on validation, measure on test, save, close the run."""
    config, heads = trainer.config, trainer.heads
    scores = trainer.scores(trainer.outputs(range(len(data.rows))))
    learned = trainer.objective.learned(trainer.examples)
    weigh = None if config.rater_weights == "none" else raters.weight_of
    temperature, tie_logit = 1.0, learned.get("tie_logit")
    if validation := data.pairs["validation"]:
        tie = np.array([pair.preference.tie for pair in validation])
        delta = differences(scores, validation)
        counts = weights_of(validation, weigh) if weigh else None
        temperature, tie_logit = fit_temperature(delta, tie, config.pair_loss, tie_logit, counts)
    trained_on = sorted({row for example in trainer.examples for row in example.rows})
    std = float(scores[trained_on].std())
    scale = RewardScale(
        float(scores[trained_on].mean()),
        std if std > 0 else 1.0,
        temperature,
        num_members=config.ensemble,
        num_adapters=len(trainer.roles),
        attributes=tuple((a.name, a.mean, a.std) for a in heads.attributes),
        tie_logit=tie_logit,
        thumb_offset=learned.get("offset"),
        pair_loss=config.pair_loss,
    )
    folder = save(trainer, scale, record.path)
    found = conflicts(data.pairs["train"])
    if found:
        write_jsonl(record.path / CONFLICTS, (conflict.row() for conflict in found))
    splits = {split: report(scores, pairs, scale, config.seed, weigh) for split, pairs in data.pairs.items()}
    test = splits["test"]
    metrics: dict[str, Any] = {
        "heldout_accuracy": test.get("accuracy"),
        "heldout_accuracy_low": test.get("accuracy_low"),
        "heldout_accuracy_high": test.get("accuracy_high"),
        "agreement": test.get("agreement"),
        "calibration_error": test.get("calibration_error"),
        "temperature": temperature,
        "score_mean": scale.mean,
        "score_std": scale.std,
        "best_epoch": trainer.best_epoch,
        "num_examples": len(trainer.examples),
        "num_too_long": data.num_too_long,
        "num_moved": data.num_moved,
        "num_conflicts": len(found),
    }
    draw(record.path, trainer.best_epoch)
    record.finish(metrics, extra={"splits": splits, "raters": raters.rows()})
    print(f"reward: {summary(test)}; saved in {folder}")


def save(trainer: RewardTrainer, scale: RewardScale, out: Path) -> Path:
    """The adapter directory (one inside it for each further adapter), or the model directory, there as a whole or not
    at all. Returns it."""
    name = "model" if trainer.config.method == "full" else "adapter"
    clear_folders(out, name)
    with atomic_folder(out / name) as folder:
        _fill(folder, trainer, scale)
    return out / name


def _fill(folder: Path, trainer: RewardTrainer, scale: RewardScale) -> None:
    backbone, heads = trainer.sequences.backbone, trainer.heads
    for number, role in enumerate(trainer.roles):
        assert role.head is not None
        single = replace(role, head=heads.score_head(role.head))
        if trainer.config.method == "full":
            save_full(single, folder, backbone)
            continue
        place = folder / MEMBER_FOLDER.format(number) if number else folder
        save_reward(single, place, backbone)
        # A member can be used on its own too.
        replace(scale, num_members=1, num_adapters=1, attributes=()).save(place)
    scale.save(folder)
    head = trainer.roles[0].head
    if heads.num_outputs > 1 and head is not None:
        save_file({"heads": head.weight.detach().cpu().contiguous()}, folder / HEADS_FILE)


def summary(test: dict[str, Any]) -> str:
    """One line: accuracy with its interval, and the raters' own agreement where two raters met."""
    if "accuracy" not in test:
        return f"no decided comparison among {test['num_pairs']} held-out ones"
    text = (
        f"held-out accuracy {test['accuracy']:.3f} [{test['accuracy_low']:.3f}, {test['accuracy_high']:.3f}]"
    )
    if "agreement" in test:
        text += f", raters agree with each other on {test['agreement']:.3f}"
    return text
