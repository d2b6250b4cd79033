"""One measurement of this project's reward training, in a process of its own: python -m bench.reward_ours ...

What `reward.train` does with its data once it is read: trunk states, every step, validation and the best epoch. On the
clock is all of it; loading the model and reading the pairs is off the clock on both sides.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bench.cases import Case, Result, load_case, save
from bench.measure import PeakMemory, Phases, now
from bench.pairs import accuracy, num_steps, pairs_of
from reward.config import RewardConfig
from reward.data import Pair, RewardData
from reward.heads import Heads
from reward.train import make_roles
from reward.trainer import RewardTrainer
from rlhf.core.backbone import Backbone
from rlhf.core.records import Preference
from rlhf.core.sequences import Sequences
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings


def settings(case: Case) -> RewardConfig:
    return RewardConfig(
        num_epochs=case.epochs,
        batch_pairs=case.batch,
        patience=case.epochs,
        near_duplicates=0,
        lora=LoraSettings(r=case.rank, alpha=2 * case.rank, dropout=0.0, adapter_layers=case.share),
        optim=OptimSettings(lr=case.lr, schedule="constant"),
        model=ModelSettings(device=case.device, dtype=case.dtype),  # type: ignore[arg-type]
        seed=case.seed,
    )


def read(case: Case) -> RewardData:
    """The comparisons as `reward.data` hands them on: held-out ones are its validation split."""
    data = RewardData()
    for split, kind in (("train", "train"), ("validation", "held-out")):
        for number, rows in enumerate(pairs_of(case, kind)):
            name = f"{kind} {number}"
            data.family[name] = name
            first = len(data.rows)
            data.rows += rows
            # The texts are never read: what counts are the rows.
            preference = Preference.model_validate(
                {"prompt": name, "group_id": name, "chosen": "chosen", "rejected": "rejected"}
            )
            data.pairs[split].append(Pair(first, first + 1, preference))  # type: ignore[index]
    return data


def train(case: Case, backbone: Backbone, data: RewardData, phases: Phases) -> RewardTrainer:
    """As `reward.train.train` does it, without files."""
    config = settings(case)
    heads = Heads.of(config, data)
    roles = make_roles(backbone, heads, config)
    if config.trunk_cache:
        backbone.enable_trunk(max(map(len, data.rows)))
    sequences = Sequences(backbone, data.rows, max_tokens=config.micro_batch_tokens)
    trainer = RewardTrainer(roles, heads, sequences, data, config, lambda annotator: 1.0)
    phases.watch_optimizer(trainer.optimizer)
    while not trainer.done:
        for _ in range(trainer.steps_per_epoch):
            trainer.train_step(lambda: None)
        trainer.finish_epoch()
    return trainer


def measure(case: Case, model_dir: Path) -> Result:
    torch.set_num_threads(case.threads)
    torch.manual_seed(case.seed)
    memory, phases = PeakMemory(case.device), Phases()
    backbone = Backbone.load(model_dir, settings(case).model)
    data = read(case)
    started = now()
    trainer = train(case, backbone, data, phases)
    seconds = now() - started
    peak = memory.peak_mb()
    scores = trainer.scores(trainer.outputs(range(len(data.rows))))
    pairs = data.pairs["validation"]
    mean, half = accuracy(
        [float(scores[pair.chosen]) for pair in pairs], [float(scores[pair.rejected]) for pair in pairs]
    )
    adapter = [p for role in trainer.roles for n, p in role.model.named_parameters() if "lora_" in n]
    assert phases.steps == num_steps(case)
    return Result(
        seconds=[seconds],
        tokens=[
            case.epochs * sum(len(data.rows[i]) for p in data.pairs["train"] for i in (p.chosen, p.rejected))
        ],
        memory_mb=peak,
        phases={},
        steps=phases.steps,
        adapter_parameters=sum(p.numel() for p in adapter),
        trained_parameters=sum(p.numel() for p in trainer.parameters),
        curve=[(case.epochs, seconds, mean, half)],
    )


if __name__ == "__main__":
    case_path, model_path, result_path = map(Path, sys.argv[1:])
    save(measure(load_case(case_path), model_path), result_path)
