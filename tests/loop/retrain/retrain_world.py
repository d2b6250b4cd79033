"""A world with ratings whose rounds train nothing: stages that leave finished runs behind, with figures made up."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retraining import tiny

from feedback_app.auth import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, ensure_project, lease_next
from rlhf.core.config import Settings
from rlhf.core.files import write_json, write_jsonl
from rlhf.core.records import Completion, Prompt
from rlhf.core.run import Launch, Run, Workspace
from rlhf.loop.registry import Registry
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.leader import Leader
from rlhf.loop.retrain.machine import Machine, Outcome
from rlhf.loop.retrain.rounds import Rounds
from rlhf.loop.retrain.stages import Stages


@dataclass
class Script:
    """What the stages of a test do. raises: step -> what it raises instead (once for each entry of the list)."""

    win: float = 0.8
    kl: float = 3.0
    length: float = 10.0
    accuracy: float = 0.7
    alarm: bool = False
    raises: dict[str, list[BaseException]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    num_pairs: int = 24

    def enter(self, step: str) -> None:
        self.calls.append(step)
        if self.raises.get(step):
            raise self.raises[step].pop(0)


def fake_stages(script: Script) -> type[Stages]:
    """Stages whose runs are finished at once, with the figures of the script."""

    class Fake(Stages):
        def _finish(self, name: str, stage: str, metrics: dict[str, Any], **parents: Path) -> Path:
            script.enter(name)
            launch = self.into(name)
            with Run.start(
                self.path(name),
                stage=stage,
                settings=Settings(),
                launch=launch,
                parents=parents,
                seed=self.seed,
            ) as run:
                if not run.finished:
                    (run.path / "weights").write_text(f"{self.round.name} {name}")
                    run.finish(metrics)
            return self.path(name)

        def _reward(self, name: str, ratings: Path, part: str) -> Path:
            a = script.accuracy
            metrics = {
                "heldout_accuracy": a,
                "heldout_accuracy_low": a - 0.1,
                "heldout_accuracy_high": a + 0.1,
            }
            return self._finish(name, "reward", metrics, snapshot=ratings)

        def reward_eval(self, reward: Path) -> Path:
            metrics = {"ece": 0.05, "num_pairs": 40, "num_ties": 4}
            metrics |= {"bias_gap": 0.1, "bias_gap_low": 0.05, "bias_gap_high": 0.2}
            write_json(
                self.path("reward-eval") / "reward_eval.json",
                {"metrics": metrics, "bias": [], "bias_gap_kind": None},
            )
            return self.path("reward-eval")

        def ppo(self, reward: Path, judge: Path, champion: Any, earlier_snapshot: str | None) -> Path:
            out = self._finish("ppo", "ppo", {"best_iteration": 4}, reward=reward, eval_reward=judge)
            rows = [{"step": step, "eval_alarm": float(script.alarm and step == 4)} for step in (0, 4)]
            write_jsonl(out / "metrics.jsonl", rows)
            return out

        def evaluate(self, candidate: Path, champion: Any, judge: Path) -> Path:
            script.enter("evaluate")
            out, n = self.path("evaluate"), script.num_pairs
            prompts = [json.loads(line) for line in self.find("heldout.jsonl").read_text().splitlines()][:n]
            wins = [float(i < round(script.win * n)) for i in range(n)]
            rows = [
                {
                    "prompt_id": prompt["prompt_id"], "prompt": prompt["prompt"], "baseline": "t5 t6",
                    "candidate": "t3 t3", "win": win,
                }
                for prompt, win in zip(prompts, wins, strict=True)
            ]  # fmt: skip
            write_jsonl(out / "pairs.jsonl", rows)
            figures = {
                "win_rate": script.win,
                "win_rate_low": script.win - 0.1,
                "win_rate_high": script.win + 0.1,
            }
            figures |= {"kl": script.kl, "kl_low": script.kl - 1, "kl_high": script.kl + 1, "num_prompts": n}
            figures |= {"length_before": 10.0, "length_after": script.length}
            write_json(out / "evaluation.json", figures)
            return out

    return Fake


class World:
    """A tiny world with its store open; `once` looks as a new leader does."""

    def __init__(self, config: RetrainConfig, launch: Launch, store: Store) -> None:
        self.config, self.launch, self.store = config, launch, store
        self.workspace = Workspace(launch.workspace)
        self.registry = Registry(store, self.workspace)
        self.rounds = Rounds(store)
        self.script = Script()
        self._seed = 0

    def rate(self, num_pairs: int = 30, **options: Any) -> None:
        self._seed += 1
        tiny.rate(self.store, num_pairs, self._seed, **options)

    def once(self, config: RetrainConfig | None = None) -> Outcome:
        with Leader(self.store) as leader:
            stages = fake_stages(self.script)
            return Machine(config or self.config, self.launch, self.store, leader, make_stages=stages).once()

    def names(self) -> dict[str, str]:
        return {name: artifact.artifact_id for name, artifact in self.registry.aliases().items()}


def ask_people(world: World, num_pairs: int, overlap: int = 1) -> None:
    """What `evaluate --judge people` leaves in the round's directory: pairs in a project, nobody has answered."""
    ensure_project(world.store, "blind", purpose="evaluate")
    prompts = [Prompt.model_validate({"prompt": f"t5 t{i}", "prompt_id": f"q{i}"}) for i in range(num_pairs)]
    sides = [
        [
            Completion.model_validate({"prompt_id": p.prompt_id, "text": text, "model_id": text})
            for p in prompts
        ]
        for text in ("candidate", "champion")
    ]
    add_prompts(world.store, prompts)
    add_completions(world.store, [*sides[0], *sides[1]])
    items = [
        (p.prompt_id, (a.completion_id, b.completion_id)) for p, a, b in zip(prompts, *sides, strict=True)
    ]
    tasks = create_tasks(world.store, project="blind", kind="pairwise", items=items, overlap=overlap)
    rows = [
        {"task_id": task, "group_id": p.prompt_id, "candidate_id": a.completion_id}
        for task, p, a in zip(tasks, prompts, sides[0], strict=True)
    ]
    out = world.workspace.runs / "round-0001" / "people"
    out.mkdir(parents=True, exist_ok=True)
    (out / "people.json").write_text(json.dumps({"project": "blind", "pairs": rows, "figures": {}}))


def people_prefer(world: World, text: str, name: str = "judge") -> None:
    """Somebody answers every pair, for the side with this text."""
    judge = create_annotator(world.store, name, password=None)
    while view := lease_next(world.store, judge, "blind"):
        verdict = "first" if view.completions[0].text == text else "second"
        judgement = answer(view, judge, preference=verdict)
        submit(world.store, judgement, lease_id=view.lease_id, client_key=f"{name} {view.task_id}")
