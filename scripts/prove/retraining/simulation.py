"""The steps of `simulate_rounds.py`: each may be done again, and is noted by the script when it is done."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from feedback_app.store.engine import Store
from feedback_app.store.tasks import ensure_project
from rlhf.core.adapters import SCORE_KEY, WEIGHTS_FILE
from rlhf.core.files import read_rows, write_jsonl
from rlhf.core.run import MANIFEST, Launch, Workspace, is_finished, read_manifest
from rlhf.core.settings import LoraSettings, OptimSettings, SamplingSettings
from rlhf.core.stats import bootstrap_mean
from rlhf.demo import corpus, raters, rubric, world
from rlhf.demo.config import DemoConfig
from rlhf.loop.config import EvaluateConfig, SampleConfig
from rlhf.loop.evaluate import run as run_evaluate
from rlhf.loop.registry import CHAMPION, Registry
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.leader import Leader
from rlhf.loop.retrain.machine import Outcome
from rlhf.loop.retrain.rounds import Rounds
from rlhf.loop.retrain.run import once
from rlhf.loop.retrain.stages import Stages
from rlhf.loop.sample import run as run_sample
from sft.config import SFTConfig
from sft.train import run as train_sft

PROJECT = "demo"
TRUTH = "truth_prompts.jsonl"
NUM_TRUTH = 400
FIRST_PROMPTS, FURTHER_PROMPTS, FEW_PROMPTS = 900, 450, 12
MIN_WIN_RATE = 0.65
FLIPPED = "simulated careful"
# injected fault -> what the reason of its round must name
INJECTED = {
    "flipped rater": f"contradicts the others: {FLIPPED}",
    "too little data": "data: too little data",
    "broken reward": "reward accuracy:",
    "KL explosion": "kl:",
}


@dataclass(frozen=True)
class Turned(raters.Rater):
    """A rater who means the opposite of what they say."""

    def judge(
        self, prompt: str, first: str, second: str, rng: random.Random, *, first_on_top: bool = True
    ) -> Any:
        verdict, strength = super().judge(prompt, first, second, rng, first_on_top=first_on_top)
        return {"first": "second", "second": "first"}.get(verdict, verdict), strength


class UpsideDown(Stages):
    """A reward model whose head came out with the wrong sign."""

    def reward(self, ratings: Path) -> Path:
        path = super().reward(ratings)
        mark = path / "turned"
        if not mark.exists():
            weights = load_file(path / "adapter" / WEIGHTS_FILE)
            weights[SCORE_KEY] = -weights[SCORE_KEY]
            save_file(weights, path / "adapter" / WEIGHTS_FILE, metadata={"format": "pt"})
            mark.write_text("the head's sign was turned on purpose\n", encoding="utf-8")
        return path


class Simulation:
    """One workspace of the embedded world, and its rounds."""

    def __init__(self, root: Path, seed: int, demo: Path | None) -> None:
        self.root, self.seed, self.demo = root, seed, demo
        self.config = DemoConfig(seed=seed)
        self.sampling = SamplingSettings(temperature=0.85, max_completion_tokens=64)

    def launch(self, root: Path | None = None) -> Launch:
        root = root or self.root
        return Launch(workspace=root, db=f"sqlite:///{root}/feedback.db")

    def _into(self, name: str) -> Launch:
        out = self.root / "runs" / name
        return replace(self.launch(), out=out, resume=(out / MANIFEST).exists() and not is_finished(out))

    def retrain_config(self, **changes: Any) -> RetrainConfig:
        """The settings of every round; a fault changes some of them."""
        values: dict[str, Any] = {
            "once": True,
            "project": PROJECT,
            "backbone": "runs/sft",
            "heldout": f"data/{world.HELDOUT}",
            "eval_prompts": f"data/{world.PPO_EVAL}",
            "trigger": {"min_new": 200, "cooldown_s": 0},
            "snapshot": {"train": 0.75, "validation": 0.1},
            "reward": {
                "num_epochs": 2,
                "judge_share": 0.5,
                "lora": LoraSettings(dropout=0.05).model_dump(),
                "optim": {"lr": 3e-3, "schedule": "cosine", "warmup_steps": 10, "weight_decay": 0.01},
            },
            "ppo": {
                "num_iterations": 15,
                "num_prompts": 64,
                "sampling": self.sampling.model_dump(),
                "lora": LoraSettings().model_dump(),
                "optim": {"lr": 7e-4, "schedule": "linear", "warmup_steps": 2},
                "kl_coef": 0.05,
                "eval_every": 5,
                "save_every": 10,
            },
            "sampling": self.sampling.model_dump(),
            "gates": {"max_kl": 15.0},
            "num_probes": 40,
            "seed": self.seed,
        }
        for key, value in changes.items():
            values[key] = values[key] | value if isinstance(value, dict) else value
        return RetrainConfig.model_validate(values)

    # ---- before the rounds -------------------------------------------------------------------------------

    def setup(self) -> dict[str, Any]:
        """The world's files, the base model and the supervised model, as `rlhf demo` makes them."""
        data = self.root / "data"
        if self.demo is not None:
            for name in ("data", "runs/base", "runs/sft"):
                if not (self.root / name).exists():
                    shutil.copytree(
                        self.demo / name, self.root / name, ignore=shutil.ignore_patterns("*.lock")
                    )
        else:
            world.write_files(self.config, data)
            world.pretrain(self.config, self._into("base"), data / world.CORPUS)
            settings = SFTConfig(
                base=str(self.root / "runs" / "base"),
                data=str(data / world.DEMONSTRATIONS),
                num_epochs=self.config.sft_epochs,
                batch_size=16,
                micro_batch_size=16,
                lora=LoraSettings(r=16, alpha=32, adapter_layers=1.0),
                optim=OptimSettings(lr=2e-3, schedule="cosine", warmup_steps=10),
                seed=self.seed,
            )
            train_sft(settings, self._into("sft"))
        # Prompts that only the truth is asked on: of groups that no training has seen, and not those of the gates.
        taken = {row["messages"][-1]["content"] for _, row in read_rows(data / world.HELDOUT)}
        prompts = corpus.make_prompts(self.seed, NUM_TRUTH, name="truth", heldout=True, taken=taken)
        write_jsonl(data / TRUTH, prompts)
        with Store.open(self.launch().db) as store:
            ensure_project(store, PROJECT, rubric=rubric.RUBRIC, rubric_title="Which reply?", simulated=True)
        return {"seed": self.seed}

    # ---- a round -----------------------------------------------------------------------------------------

    def ratings(
        self, number: int, root: Path | None = None, count: int | None = None, people: Any = raters.RATERS
    ) -> dict[str, Any]:
        """The champion answers new prompts in pairs, and two of five simulated raters judge each pair."""
        launch = self.launch(root)
        count = count or (FIRST_PROMPTS if number == 1 else FURTHER_PROMPTS)
        path = launch.workspace / "data" / f"asked_{number}.jsonl"
        taken = {
            row["messages"][-1]["content"]
            for other in sorted((launch.workspace / "data").glob("*_prompts.jsonl"))
            for _, row in read_rows(other)
        }
        prompts = corpus.make_prompts(self.seed, count, name=f"asked-{number}", heldout=False, taken=taken)
        write_jsonl(path, prompts)
        settings = SampleConfig(
            model_path=str(self._champion(launch) or launch.workspace / "runs" / "sft"),
            prompts=str(path),
            project=PROJECT,
            overlap=2,
            sampling=self.sampling,
            simulated=True,
            seed=self.seed + number,
        )
        run_sample(settings, launch)
        with Store.open(launch.db) as store:
            return {"answers": raters.rate_all(store, PROJECT, seed=self.seed, raters=people)}

    def retrain(
        self, root: Path | None = None, config: RetrainConfig | None = None, stages: type[Stages] = Stages
    ) -> dict[str, Any]:
        """`rlhf retrain --once`."""
        launch = self.launch(root)
        with Store.open(launch.db, create=False) as store, Leader(store) as leader:
            outcome: Outcome = once(config or self.retrain_config(), launch, store, leader, stages)
            if outcome.round is None:
                return {"ended": outcome.kind, "reason": outcome.text}
            verdicts = {v.name: v.shown() for v in Rounds(store).verdicts(outcome.round.round_id)}
        return {"ended": outcome.kind, "reason": outcome.round.error, "verdicts": verdicts}

    def truth(self, number: int) -> dict[str, Any]:
        """What the true rubric says of the champion after a round, and of its change from the round before."""
        champion = self._champion(self.launch()) or self.root / "runs" / "sft"
        out = self._gold(f"truth-{number}", champion, self.root / "runs" / "sft")
        figures = read_manifest(out).metrics
        scores = self._scores(number)
        before = self._scores(number - 1) if number > 1 else self._scores(1, "score_before")
        change = bootstrap_mean([a - b for a, b in zip(scores, before, strict=True)])
        return {
            "champion": Workspace(self.root).relative(champion),
            "true_score": figures["score_after"],
            "supervised": figures["score_before"],
            "win_rate_over_supervised": figures["win_rate"],
            "kl": figures["kl"],
            "change": list(change[:3]),
        }

    def _scores(self, number: int, key: str = "score_after") -> list[float]:
        path = self.root / "runs" / f"truth-{number}" / "pairs.jsonl"
        return [float(row[key]) for _, row in read_rows(path)]

    def last_against_first(self) -> dict[str, Any]:
        """The last champion against that of round 1, by the true rubric."""
        with Store.open(self.launch().db) as store:
            promoted = [r for r in Rounds(store).all(PROJECT) if r.state == "champion"]
            registry = Registry(store, Workspace(self.root))
            first, last = (registry.artifact(r.candidate_id or "").path for r in (promoted[0], promoted[-1]))
        figures = read_manifest(self._gold("last-against-first", last, first)).metrics
        return {key: figures[key] for key in ("win_rate", "win_rate_low", "win_rate_high", "kl")}

    def _gold(self, name: str, candidate: Path, baseline: Path) -> Path:
        settings = EvaluateConfig(
            candidate=str(candidate),
            baseline=str(baseline),
            prompts=str(self.root / "data" / TRUTH),
            judge=f"{Path(rubric.__file__)}:gold",
            sampling=self.sampling,
            seed=self.seed,
        )
        run_evaluate(settings, self._into(name))
        return self.root / "runs" / name

    def _champion(self, launch: Launch) -> Path | None:
        with Store.open(launch.db) as store:
            champion = Registry(store, Workspace(launch.workspace)).alias(CHAMPION)
        return None if champion is None else champion.path

    # ---- faults ------------------------------------------------------------------------------------------

    def injected(self, name: str) -> dict[str, Any]:
        """A copy of the workspace with new ratings, and a round in it with one thing wrong."""
        root = self.root.with_name(f"{self.root.name}-{name.replace(' ', '-')}")
        people = raters.RATERS
        if name == "flipped rater":
            people = tuple(Turned(**vars(r)) if r.name == FLIPPED else r for r in raters.RATERS)
        ready = root / "ready"
        if not ready.exists():  # else the round in it was interrupted, and goes on
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("*.lock", "checkpoints"))
            count = FEW_PROMPTS if name == "too little data" else FURTHER_PROMPTS
            self.ratings(99, root, count, people)
            ready.touch()
        before = self._champion(self.launch(root))
        changes: dict[str, Any] = {"now": True} if name == "too little data" else {}
        if name == "KL explosion":
            changes["ppo"] = {"kl_coef": 0.0, "num_epochs": 4, "clip_range": 0.5, "optim": {"lr": 5e-3}}
        stages = UpsideDown if name == "broken reward" else Stages
        found = self.retrain(root, self.retrain_config(**changes), stages)
        found["champion_moved"] = self._champion(self.launch(root)) != before
        shutil.rmtree(root)
        return found


def verdict_lines(done: dict[str, Any], rounds: int) -> tuple[list[str], list[str]]:
    """(the figures in lines, what falls short of the targets)."""
    lines = ["round  ended      true score  change [95 %]              KL     seconds"]
    failures = []
    promoted = 0
    for number in range(1, rounds + 1):
        ended, truth = done[f"round {number}"], done[f"truth {number}"]
        mean, low, high = truth["change"]
        seconds = sum(done[f"{what} {number}"]["seconds"] for what in ("ratings", "round", "truth"))
        lines.append(
            f"{number:5d}  {ended['ended']:<9}  {truth['true_score']:.3f}       {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            f"    {truth['kl'] or 0:5.2f}  {seconds:.0f}"
        )
        promoted += ended["ended"] == "champion"
        if ended["reason"]:
            lines.append(f"       {ended['reason']}")
        if high < 0:
            failures.append(
                f"round {number}: the champion's true score fell by {-mean:.3f}, beyond its interval"
            )
    needed = -(-4 * rounds // 5)
    lines.append(f"{promoted} of {rounds} clean rounds promoted; {needed} are needed")
    if promoted < needed:
        failures.append(f"{promoted} of {rounds} clean rounds promoted")
    win = done["last against first"]
    shown = f"{win['win_rate']:.3f} [{win['win_rate_low']:.3f}, {win['win_rate_high']:.3f}]"
    lines.append(
        f"the last champion beats round 1's with {shown} by the true rubric; {MIN_WIN_RATE} is needed"
    )
    if win["win_rate"] < MIN_WIN_RATE:
        failures.append(f"win rate of the last champion over round 1's: {shown}")
    for name, wanted in INJECTED.items():
        found = done[f"injected {name}"]
        lines.append(f"injected {name}: {found['ended']}: {found['reason']}")
        # A trigger may refuse to begin the round at all, or a gate end it.
        refused = found["ended"] in ("rejected", "nothing") and not found["champion_moved"]
        if not refused or wanted not in (found["reason"] or ""):
            failures.append(f"injected {name}: expected no champion, because of '{wanted}'")
    return lines, failures
