"""Does a PPO run survive SIGKILL at any moment, and go on to the very same bits?

    python scripts/prove/kills.py [--kills 100] [--stops 20] [--seed 0]

Short PPO runs of a tiny random model are killed over and over. Half of the kills come at a random moment of
the run's seconds. The other half fall inside a save: every line of Python that is executed between the start
and the end of a checkpoint, of the saved adapters and of the finished marker may be the last one. The lines of
checkpoint.py, of the rest of this project and of the libraries beneath share the chance equally; otherwise
nearly all kills would fall into torch.save. Further runs are asked to stop, by SIGTERM at a random moment: they
have to end with 143. After each of these the run is resumed, and killed again or finished; a finished run is
compared with one that was never stopped, bit for bit: adapters, value head, samples, metrics without times, and
the whole training state with the optimizer. Ends with 1 when a run could not be resumed, came out different, or
lost more than one save interval.

One process imports torch; each attempt is a fork of it, which makes an attempt cost a second instead of ten.
`kills_sft.py` and `kills_reward.py` do the same to the other stages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from killing.killer import Subject
from killing.model import write_model
from killing.proof import prove

import rlhf.core.checkpoint as checkpoint_module
import rlhf.ppo.train as ppo_train
from rlhf.core.run import Run
from rlhf.ppo.config import PPOConfig

REWARD = """
def threes(prompts, completions):
    return [text.count("t3") / 8 for text in completions]

def fours(prompts, completions):
    return [text.count("t4") / 8 for text in completions]
"""


def make_config(root: Path) -> PPOConfig:
    """A model, prompts and a reward in `root`, and settings with every kind of state that a run can have."""
    write_model(root / "base")
    for name, first in (("prompts", 3), ("eval", 15)):
        rows = [json.dumps({"prompt": f"t{i} t{i + 1} t{i % 5}"}) for i in range(first, first + 8)]
        (root / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (root / "reward.py").write_text(REWARD, encoding="utf-8")
    return PPOConfig.model_validate(
        {
            "backbone": "base",
            "prompts": "prompts.jsonl",
            "eval_prompts": "eval.jsonl",
            "reward": f"{root}/reward.py:threes",
            "eval_reward": f"{root}/reward.py:fours",
            "score_normalization": "running",
            "num_iterations": 6,
            "num_prompts": 4,
            "samples_per_prompt": 2,
            "sampling": {"max_completion_tokens": 8},
            "lora": {"r": 4, "alpha": 8},
            "optim": {"lr": 5e-3, "schedule": "cosine", "warmup_steps": 2},
            "kl_target": 0.05,
            "kl_horizon": 20,
            "value_adapter": True,
            "model": {"device": "cpu"},
            "eval_every": 2,
            "save_every": 2,
        }
    )


def make_subject(root: Path) -> Subject:
    config = make_config(root)
    return Subject(
        run=lambda launch: ppo_train.run(config, launch),
        saves=((checkpoint_module, "commit_checkpoint"), (ppo_train, "save_policy"), (Run, "finish")),
        position=lambda state: state["iteration"],
        unit="iterations",
        save_every=config.save_every,
        folders=("adapter", "value", "samples"),
    )


if __name__ == "__main__":
    sys.exit(prove(make_subject, sys.argv[1:], __doc__))
