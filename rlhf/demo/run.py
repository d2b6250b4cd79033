"""`rlhf demo`: the whole loop in the embedded world, every stage through the door that a user has.

    world -> base -> sft -> sample -> ratings -> export -> reward -> ppo -> evaluate -> report

What is finished is not done again: each finished stage is noted in demo.json with its seconds, so a second
run only says where the report is and an interrupted one goes on where it stopped (training stages from
their last checkpoint).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from feedback_app.config import ExportConfig
from feedback_app.exporting import run as export
from feedback_app.quality.agreement import pairwise_agreement
from feedback_app.store.engine import Store
from feedback_app.store.tasks import ensure_project
from reward.config import RewardConfig
from reward.train import run as train_reward
from rlhf.core.errors import ConfigError
from rlhf.core.files import write_json
from rlhf.core.run import MANIFEST, Launch, Workspace, is_finished
from rlhf.core.settings import LoraSettings, OptimSettings, SamplingSettings
from rlhf.demo import corpus, raters, rubric, truth, world
from rlhf.demo.config import DemoConfig
from rlhf.loop.config import EvaluateConfig, SampleConfig
from rlhf.loop.evaluate import run as evaluate
from rlhf.loop.report import ReportInputs, write_report
from rlhf.loop.sample import run as sample
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.train import run as train_ppo
from sft.config import SFTConfig
from sft.train import run as train_sft

PROJECT = "demo"
STATE = "demo.json"
SIMULATED = (
    "Everything in this run is simulated: the customers' messages and the demonstrations are generated, the "
    "five raters are programs that judge by a written rubric with noise (one of them is careless), and the "
    "base model was pretrained from nothing on the generated texts. No person rated anything. What is real is "
    "the loop: the same commands, store, reward model and PPO that people's ratings would go through."
)


def run(config: DemoConfig, launch: Launch) -> None:
    """Run what is not finished yet. Raises ConfigError when the workspace holds a demo of other settings."""
    demo = Demo(config, launch)
    report = launch.workspace / "report.html"
    if not demo.unfinished() and report.exists():
        print(f"demo: finished already; the report is {report}")
        return
    for stage in demo.unfinished():
        demo.do(stage)
    print(f"\ndemo: done in {clock(sum(demo.seconds.values()))}; the report is {report}")


@dataclass(frozen=True)
class Stage:
    """expected_s: seconds on 2 idle cores with default settings, only to estimate the time left."""

    name: str
    title: str
    expected_s: float
    work: Callable[[], None]


class Demo:
    """The stages of one workspace and which of them are finished."""

    def __init__(self, config: DemoConfig, launch: Launch) -> None:
        self.config, self.launch = config, launch
        self.workspace = Workspace(launch.workspace)
        self.data = self.workspace.root / "data"
        self.snapshot = self.workspace.snapshots / PROJECT
        self.sampling = SamplingSettings(
            temperature=config.temperature, max_completion_tokens=config.max_completion_tokens
        )
        self.seconds = self._read_state()
        c = config
        self.stages = (
            Stage("world", "texts of the simulated support desk", 3, self.world),
            Stage("base", "a small language model, pretrained from nothing", 95, self.base),
            Stage("sft", f"supervised tuning on {c.num_demonstrations} demonstrations", 25, self.sft),
            Stage("sample", f"two completions for each of {c.num_rated_prompts} prompts", 15, self.sample),
            Stage("ratings", "simulated raters judge the pairs in the feedback store", 15, self.ratings),
            Stage("export", "a snapshot of the ratings, split by prompt", 3, self.export),
            Stage("reward", "a reward model from the ratings", 40, self.reward),
            Stage("ppo", f"{c.ppo_iterations} iterations against the reward model", 150, self.ppo),
            Stage(
                "evaluate", f"before and after on {c.num_heldout_prompts} held-out prompts", 15, self.evaluate
            ),
            Stage("report", "report.html and report.json", 5, self.report),
        )

    # ---- which stages, and how they are shown ------------------------------------------------------------

    def unfinished(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.name not in self.seconds]

    def do(self, stage: Stage) -> None:
        number = self.stages.index(stage) + 1
        print(
            f"\n[{number}/{len(self.stages)}] {stage.name}: {stage.title}  ({self._time_left()})", flush=True
        )
        started = time.monotonic()
        stage.work()
        self.seconds[stage.name] = round(time.monotonic() - started, 2)
        print(f"      {stage.name} took {clock(self.seconds[stage.name])}", flush=True)
        self._write_state()
        if stage.name == "report":
            self.report()  # again, now that its own seconds are known

    def _time_left(self) -> str:
        done = [stage for stage in self.stages if stage.name in self.seconds]
        expected = sum(stage.expected_s for stage in done)
        # Until a few seconds have been measured the machine is taken to be the one the figures are from.
        pace = sum(self.seconds[stage.name] for stage in done) / expected if expected > 50 else 1.0
        left = pace * sum(stage.expected_s for stage in self.unfinished())
        return f"{clock(sum(self.seconds.values()))} gone, about {clock(left)} left"

    def _read_state(self) -> dict[str, float]:
        path = self.workspace.root / STATE
        if not path.exists():
            return {}
        state = json.loads(path.read_text(encoding="utf-8"))
        wanted = self.config.model_dump(mode="json")
        changed = [
            f"{key}: {state['settings'].get(key, 'unset')} -> {value}"
            for key, value in wanted.items()
            if state["settings"].get(key, "unset") != value
        ]
        if changed:
            raise ConfigError(
                f"{path}: holds a demo with other settings ({', '.join(changed[:4])}); choose another --workspace"
            )
        return dict(state["seconds"])

    def _write_state(self) -> None:
        state = {"settings": self.config.model_dump(mode="json"), "seconds": self.seconds}
        write_json(self.workspace.root / STATE, state)

    def _into(self, name: str) -> Launch:
        """Launch for a run directory; one that an interruption left unfinished is continued."""
        out = self.workspace.runs / name
        resume = (out / MANIFEST).exists() and not is_finished(out)
        return replace(self.launch, out=out, resume=resume, force=False, dry_run=False)

    # ---- the stages --------------------------------------------------------------------------------------

    def world(self) -> None:
        world.write_files(self.config, self.data)

    def base(self) -> None:
        world.pretrain(self.config, self._into("base"), self.data / world.CORPUS)

    def sft(self) -> None:
        settings = SFTConfig(
            base=str(self.workspace.runs / "base"),
            data=str(self.data / world.DEMONSTRATIONS),
            num_epochs=self.config.sft_epochs,
            batch_size=16,
            micro_batch_size=16,
            lora=LoraSettings(r=16, alpha=32, adapter_layers=1.0),
            optim=OptimSettings(lr=2e-3, schedule="cosine", warmup_steps=10),
            seed=self.config.seed,
        )
        train_sft(settings, self._into("sft"))

    def sample(self) -> None:
        with Store.open(self.launch.db) as store:
            ensure_project(
                store,
                PROJECT,
                title="Simulated support desk",
                rubric=rubric.RUBRIC,
                rubric_title="Which reply is better?",
                simulated=True,
            )
        settings = SampleConfig(
            model_path=str(self.workspace.runs / "sft" / "model"),
            prompts=str(self.data / world.RATED),
            project=PROJECT,
            overlap=self.config.overlap,
            sampling=self.sampling,
            simulated=True,
            seed=self.config.seed,
        )
        sample(settings, self.launch)

    def ratings(self) -> None:
        with Store.open(self.launch.db) as store:
            num_answers = raters.rate_all(store, PROJECT, seed=self.config.seed)
        print(f"ratings: {num_answers} answers by {len(raters.RATERS)} simulated raters")

    def export(self) -> None:
        if not (self.snapshot / MANIFEST).exists():  # else interrupted just after it was written
            settings = ExportConfig(project=PROJECT, seed=self.config.seed, train=0.75, validation=0.1)
            export(settings, replace(self.launch, out=self.snapshot))

    def reward(self) -> None:
        settings = RewardConfig(
            backbone=str(self.workspace.runs / "sft"),
            snapshot=str(self.snapshot),
            num_epochs=self.config.reward_epochs,
            lora=LoraSettings(r=16, alpha=32, adapter_layers=0.5, dropout=0.05),
            optim=OptimSettings(lr=3e-3, schedule="cosine", warmup_steps=10, weight_decay=0.01),
            seed=self.config.seed,
        )
        train_reward(settings, self._into("reward"))

    def ppo(self) -> None:
        settings = PPOConfig(
            backbone=str(self.workspace.runs / "sft"),
            reward=str(self.workspace.runs / "reward"),
            prompts=str(self.data / world.PPO),
            eval_prompts=str(self.data / world.PPO_EVAL),
            num_iterations=self.config.ppo_iterations,
            num_prompts=self.config.ppo_batch,
            sampling=self.sampling,
            num_epochs=2,
            num_minibatches=2,
            kl_coef=0.05,
            lora=LoraSettings(r=16, alpha=32, adapter_layers=0.5),
            optim=OptimSettings(lr=1e-3, schedule="linear", warmup_steps=8),
            eval_every=10,
            save_every=20,
            seed=self.config.seed,
        )
        train_ppo(settings, self._into("ppo"))

    def evaluate(self) -> None:
        settings = EvaluateConfig(
            candidate=str(self.workspace.runs / "ppo"),
            prompts=str(self.data / world.HELDOUT),
            judge=f"{Path(rubric.__file__)}:gold",
            sampling=self.sampling,
            seed=self.config.seed,
        )
        evaluate(settings, self._into("evaluate"))

    def report(self) -> None:
        runs = self.workspace.runs
        with Store.open(self.launch.db) as store:
            agreement = pairwise_agreement(store, PROJECT)
        against_truth = truth.accuracy_against_truth(
            self.snapshot, runs / "reward", self.data, replace(self.launch, out=None)
        )
        write_report(
            ReportInputs(
                title="From ratings to a better policy: the embedded demo",
                workspace=self.workspace.root,
                base=runs / "base",
                sft=runs / "sft",
                reward=runs / "reward",
                ppo=runs / "ppo",
                evaluation=runs / "evaluate",
                agreement=agreement,
                seconds=dict(self.seconds),
                simulated=SIMULATED,
                rubric=rubric.RUBRIC,
                against_truth=against_truth,
                facts=self._facts(),
            )
        )

    def _facts(self) -> dict[str, Any]:
        groups = {kept: len(corpus.groups_of_split(self.config.seed, heldout=kept)) for kept in (True, False)}
        return {
            "seed": self.config.seed,
            "settings": self.config.model_dump(mode="json"),
            "heldout_groups": groups[True],
            "training_groups": groups[False],
            "raters": [rater.name for rater in raters.RATERS],
        }


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
