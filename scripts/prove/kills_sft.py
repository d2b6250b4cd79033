"""Does a supervised run survive SIGKILL at any moment, and go on to the very same bits?

    python scripts/prove/kills_sft.py [--kills 100] [--stops 20] [--seed 0]

As `kills.py`, for `rlhf sft`, whose training loop is trl's: half of the kills come at a random moment, the other
half at any line of Python inside what the trainer writes, the checkpoint that becomes of it, the saved adapter, the
merged model and the finished marker. The runs have dropout, micro-batches, a validation and a save every two steps,
and a best step that is not the last. Compared bit for bit: adapter, merged model, metrics, and every file of the
checkpoints that are left (optimizer, schedule, the trainer's state, random generators), except the trainer's
arguments, which name the run's directory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from killing.killer import Subject
from killing.model import write_model
from killing.proof import prove

import sft.methods as sft_methods
import sft.train as sft_train
import sft.trainer as sft_trainer
import sft.watch as sft_watch
from rlhf.core.run import Run
from sft.config import SFTConfig


def make_config(root: Path) -> SFTConfig:
    """A model and demonstrations in `root`: the answer repeats the word that was asked for."""
    write_model(root / "base")
    rows = [
        {"prompt": f"t{i} t{i % 5 + 3}", "completion": f"t{i} " * n} for i in range(3, 15) for n in (2, 4)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SFTConfig.model_validate(
        {
            "base": "base",
            "data": "data.jsonl",
            "validation_fraction": 0.25,
            "num_epochs": 4,
            "batch_size": 6,
            "micro_batch_size": 3,
            "eval_steps": 2,
            "patience": 10,
            "num_samples": 1,
            "sample_tokens": 3,
            "lora": {"r": 4, "alpha": 8, "dropout": 0.2, "adapter_layers": 1.0},
            "optim": {"lr": 2e-2, "schedule": "cosine", "warmup_steps": 2},
            "model": {"device": "cpu"},
        }
    )


def make_subject(root: Path) -> Subject:
    config = make_config(root)
    assert config.eval_steps is not None
    return Subject(
        run=lambda launch: sft_train.run(config, launch),
        saves=(
            (sft_trainer.Trainer, "_save_checkpoint"),
            (sft_watch, "commit_checkpoint"),
            (sft_methods, "save_policy"),
            (sft_methods, "save_model"),
            (sft_train, "write_report"),
            (Run, "finish"),
        ),
        position=lambda state: state["step"],
        unit="steps",
        save_every=config.eval_steps,
        folders=("adapter", "model"),
        skipped=("training_args.bin",),
    )


if __name__ == "__main__":
    sys.exit(prove(make_subject, sys.argv[1:], __doc__))
