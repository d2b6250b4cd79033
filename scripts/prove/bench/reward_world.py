"""The embedded world up to its supervised model, which the proofs of the reward stage start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.core.run import Launch
from rlhf.demo.config import DemoConfig
from rlhf.demo.run import Demo

STAGES = ("world", "base", "sft")


def supervised_world(workspace: Path, **settings: Any) -> Launch:
    """Make in `workspace` what is not there yet; the model is runs/sft/model. settings: of DemoConfig, of seed 0."""
    launch = Launch(workspace=workspace, db=f"sqlite:///{workspace}/feedback.db")
    demo = Demo(DemoConfig(seed=0, **settings), launch)
    for stage in demo.unfinished():
        if stage.name in STAGES:
            demo.do(stage)
    return launch
