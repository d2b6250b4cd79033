"""`rlhf compare` as a command: on one's own data where it is named, else in the embedded world.

The world is the one of `rlhf demo`: the same stages up to the reward model, in the same workspace, so a demo that was
run there is used and the other way round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.core.run import Launch
from rlhf.core.settings import LoraSettings
from rlhf.demo import rubric, world
from rlhf.demo.config import DemoConfig
from rlhf.demo.run import PROJECT, Demo, Stage
from rlhf.loop.compare.config import CompareConfig
from rlhf.loop.compare.run import run as compare
from rlhf.preference.config import OFFLINE

# The stages of the demo that a comparison stands on.
LAST_STAGE = "reward"
# Settings for the small model, found by trying on its training prompts; what is given on the command line wins.
SETTINGS = (
    "all.optim.lr=1e-3",
    "all.optim.schedule=linear",
    "all.optim.warmup_steps=8",
    # Offline steps are small and many here: with 64 examples and 1e-3 dpo had hardly moved when its budget was spent.
    "all.batch_size=16",
    *(f"{method}.optim.lr=3e-3" for method in OFFLINE),
    "ppo.num_prompts=64",
    "ppo.kl_coef=0.05",
    "ppo.num_epochs=2",
    "ppo.num_minibatches=2",
)


def run(config: CompareConfig, launch: Launch) -> None:
    """Compare; without --backbone in the embedded world, which is made first."""
    if launch.dry_run and not config.backbone:
        stages = missing(Demo(DemoConfig(seed=config.seed), launch))
        if stages:
            names = ", ".join(stage.name for stage in stages)
            print(f"compare: would make the embedded world in {launch.workspace} first: {names}")
            return
    compare(config if config.backbone else in_the_world(config, launch), launch)


def missing(demo: Demo) -> list[Stage]:
    """What of the world a comparison stands on and is not there yet."""
    last = [stage.name for stage in demo.stages].index(LAST_STAGE)
    return [stage for stage in demo.stages[: last + 1] if stage.name not in demo.seconds]


def in_the_world(config: CompareConfig, launch: Launch) -> CompareConfig:
    """The comparison with everything that the world has for it. Makes what of the world is missing."""
    demo = Demo(DemoConfig(seed=config.seed), launch)
    for stage in missing(demo):
        demo.do(stage)
    runs, data = demo.workspace.runs, demo.data
    there: dict[str, Any] = {
        "backbone": str(runs / "sft"),
        "snapshot": str(demo.workspace.snapshots / PROJECT),
        "reward": str(runs / "reward"),
        "prompts": str(data / world.PPO),
        "eval_prompts": str(data / world.PPO_EVAL),
        "heldout": str(data / world.HELDOUT),
        "judge": f"{Path(rubric.__file__)}:gold",
    }
    changes = {name: value for name, value in there.items() if getattr(config, name) is None}
    untouched = CompareConfig()
    if config.sampling == untouched.sampling:
        changes["sampling"] = demo.sampling.model_dump()
    if config.lora == untouched.lora:
        changes["lora"] = LoraSettings(r=16, alpha=32, adapter_layers=0.5).model_dump()
    # A setting of ours for one method would win over one of theirs for all.
    theirs = {_key(text) for text in config.overrides if text.startswith("all.")}
    own = [t for t in SETTINGS if t.split(".")[0] in (*config.names, "all") and _key(t) not in theirs]
    changes["overrides"] = (*own, *config.overrides)
    return CompareConfig.model_validate(config.model_dump(mode="json") | changes)


def _key(text: str) -> str:
    """KEY of METHOD.KEY=VALUE."""
    return text.partition("=")[0].strip().partition(".")[2]
