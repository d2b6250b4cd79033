"""Does the training of a reward model survive SIGKILL at any moment, and go on to the very same bits?

    python scripts/prove/kills_reward.py [--kills 100] [--stops 20] [--seed 0]

As `kills.py`, for `rlhf reward`: half of the kills come at a random moment, the other half at any line of Python
inside a checkpoint, the saved adapters and the finished marker. The runs have two adapters that vote, dropout, weight
decay, a schedule, ties, a learned weight of ties, several raters, three epochs with a validation after each and a
checkpoint every few steps within. Compared bit for bit: adapters with heads and scale, metrics, and the whole training
state with the optimizer.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from killing.killer import Subject
from killing.model import write_model
from killing.proof import prove

import reward.train as reward_train
import rlhf.core.checkpoint as checkpoint_module
from reward.config import RewardConfig
from rlhf.core.run import Run


def make_config(root: Path) -> RewardConfig:
    """A model and comparisons in `root`: the answer with more of t3 is preferred, mostly."""
    write_model(root / "base")
    rng = random.Random(0)
    rows = []
    for i in range(90):
        better, worse = (["t3"] * n + [f"t{rng.randrange(5, 24)}" for _ in range(5 - n)] for n in (3, 1))
        rows.append(
            {
                "prompt": f"t{i % 19 + 5} t{i // 19 + 5} t{rng.randrange(5, 24)}",
                "chosen": " ".join(rng.sample(better, 5)),
                "rejected": " ".join(rng.sample(worse, 5)),
                "annotator_id": f"rater-{i % 3}",
            }
            | ({"tie": True, "margin": 0} if i % 7 == 0 else {})
        )
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return RewardConfig.model_validate(
        {
            "backbone": "base",
            "snapshot": "pairs.jsonl",
            "num_epochs": 3,
            "batch_pairs": 8,
            "micro_batch_tokens": 64,
            "patience": 3,
            "pair_loss": "davidson",
            "ensemble": 2,
            "ensemble_of": "adapters",
            "near_duplicates": 0,
            "lora": {"r": 4, "alpha": 8, "dropout": 0.2},
            "optim": {"lr": 1e-2, "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.01},
            "model": {"device": "cpu"},
            "save_steps": 3,
        }
    )


def make_subject(root: Path) -> Subject:
    config = make_config(root)
    return Subject(
        run=lambda launch: reward_train.run(config, launch),
        saves=((checkpoint_module, "commit_checkpoint"), (reward_train, "save"), (Run, "finish")),
        # A state within an epoch has all the epochs before it, and metrics have a row an epoch.
        position=lambda state: state["epoch"],
        unit="epochs",
        save_every=1,
        folders=("adapter",),
    )


if __name__ == "__main__":
    sys.exit(prove(make_subject, sys.argv[1:], __doc__))
