"""`rlhf ppo --feedback-every N`: PPO whose reward people renew while it runs (Christiano et al., arXiv:1706.03741).

    N iterations -> pairs of the current policy go to the rating desk -> enough answers
    -> the reward model is trained on all ratings -> N iterations against the new one -> ...

OUT/feedback.json says at which iteration what was asked, how many answers there were and which reward was used from
then on; OUT/feedback/iteration-N/ holds the snapshot and the reward run. On resume the file is followed, so that the
same answers give the same run. A new reward has a scale of its own: the best policy and the alarm begin anew with it.

Logged beside PPO's figures: `reward_number` (0: the one that the run began with).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sqlalchemy import select

from feedback_app.store.engine import Store
from feedback_app.store.schema import projects
from rlhf.core.errors import ConfigError
from rlhf.core.files import write_json
from rlhf.core.inputs import find_model, required
from rlhf.core.processes import start_processes
from rlhf.core.run import Launch, Workspace
from rlhf.loop.ppo_with_people.config import PPOWithPeopleConfig
from rlhf.loop.ppo_with_people.questions import answered, ask
from rlhf.loop.ppo_with_people.renewal import RewardOrigin, put, renew, scorer_of
from rlhf.ppo.prompts import PromptStream
from rlhf.ppo.rewards import RewardSources
from rlhf.ppo.rollout import RolloutBatch
from rlhf.ppo.scores import ScoreNormalizer
from rlhf.ppo.train import PPOTrainer, run_with
from rlhf.ppo.train import run as run_alone
from rlhf.ppo.update import UpdateStats
from rlhf.ppo.watch import Watch

LEDGER = "feedback.json"
STAGE = "ppo"


def run(config: PPOWithPeopleConfig, launch: Launch) -> None:
    """`rlhf ppo`. Without feedback_every it is `rlhf.ppo.train.run`."""
    if not config.feedback_every:
        run_alone(config.without_people(), launch)
        return
    with start_processes(config.model.device) as processes:
        if processes.size > 1:
            raise ConfigError(
                f"feedback_every needs one process (people may take hours); found {processes.size}"
            )
        desk = Desk.open(config, launch)
        run_with(partial(TrainerWithPeople, desk), config, config, launch, processes)


@dataclass
class Question:
    """What was asked at an iteration, and what was decided there.

    answers, wanted: of all questions whose answers were still out. reward: the adapter that is used from this
    iteration on, relative to the run's directory; empty where the old one stayed.
    """

    iteration: int
    task_ids: list[str] = field(default_factory=list)
    answers: int = 0
    wanted: int = 0
    reward: str = ""


@dataclass
class Desk:
    """The people's side of a run: the store, the ledger, and how the reward was made."""

    config: PPOWithPeopleConfig
    launch: Launch
    out: Path
    origin: RewardOrigin
    backbone: str
    questions: list[Question]

    @classmethod
    def open(cls, config: PPOWithPeopleConfig, launch: Launch) -> Desk:
        """Raises ConfigError where the reward is no run that could be trained again."""
        source = RewardSources.find(config, launch).terms["reward"]
        if source.kind != "run" or source.path is None:
            raise ConfigError(f"feedback_every needs a reward run as reward; found {source.text}")
        workspace = Workspace(launch.workspace)
        out = launch.out or workspace.runs / STAGE
        ledger = out / LEDGER
        rows = json.loads(ledger.read_text(encoding="utf-8")) if launch.resume and ledger.exists() else []
        backbone = find_model(required(config.backbone, "backbone", "the supervised model"), launch)
        origin = RewardOrigin.of(source.path, workspace)
        desk = cls(config, launch, out, origin, backbone, [Question(**row) for row in rows])
        desk.check_project()
        return desk

    def check_project(self) -> None:
        """Refuse a project that cannot get the pairs, before anything is trained. Raises ConfigError."""
        with Store.open(self.launch.db, create=False) as store, store.read() as connection:
            query = select(projects.c.purpose).where(projects.c.project_id == self.project)
            purpose = connection.execute(query).scalar()
        if purpose is None:
            raise ConfigError(
                f"--feedback.project: there is no project '{self.project}' in the feedback store"
            )
        if purpose != "collect":
            raise ConfigError(
                f"--feedback.project {self.project}: it holds an evaluation, which is never learned from"
            )

    @property
    def project(self) -> str:
        return self.config.feedback.project or self.origin.snapshot.project

    def number_at(self, iteration: int) -> int:
        """How many rewards had followed the first one when this iteration ended."""
        return sum(bool(q.reward) and q.iteration <= iteration for q in self.questions)

    def reward_at(self, iteration: int) -> Path | None:
        """The reward in use at a checkpoint of `iteration`, whose own question comes after it."""
        renewed = [q.reward for q in self.questions if q.reward and q.iteration < iteration]
        return self.out / renewed[-1] if renewed else None

    def visit(self, trainer: TrainerWithPeople, stream: PromptStream, check: Callable[[], None]) -> bool:
        """Ask about the current policy and renew the reward if there are enough answers. Returns whether it was."""
        iteration = trainer.iteration
        known = next((q for q in self.questions if q.iteration == iteration), None)
        if known is None:
            known = self._decide(trainer, stream, check)
            self.questions.append(known)
            write_json(self.out / LEDGER, [asdict(q) for q in self.questions])
        if not known.reward:
            return False
        put(trainer.reward, self.out / known.reward)
        return True

    def _decide(
        self, trainer: TrainerWithPeople, stream: PromptStream, check: Callable[[], None]
    ) -> Question:
        question = Question(trainer.iteration)
        name = Workspace(self.launch.workspace).relative(self.out)
        with Store.open(self.launch.db) as store:
            question.task_ids = ask(
                store,
                trainer.backbone,
                stream.prompts,
                self.config,
                project=self.project,
                iteration=question.iteration,
                model_id=f"{name}/iteration-{question.iteration}",
            )
            since = max((i for i, q in enumerate(self.questions) if q.reward), default=-1) + 1
            waiting = [*self.questions[since:], question]
            task_ids = [task for q in waiting for task in q.task_ids]
            if task_ids:
                question.answers, question.wanted = self._wait(store, task_ids, check)
        enough = question.wanted and question.answers >= self.config.feedback.min_share * question.wanted
        said = f"{question.answers} of {question.wanted} answers"
        if not enough:
            print(f"{STAGE}: iteration {question.iteration}: {said}; it goes on with the reward it has")
            return question
        print(f"{STAGE}: iteration {question.iteration}: {said}; the reward model is trained on all ratings")
        folder = self.out / "feedback" / f"iteration-{question.iteration:06d}"
        adapter = renew(
            trainer.reward,
            self.origin,
            folder,
            project=self.project,
            backbone=self.backbone,
            launch=self.launch,
        )
        question.reward = adapter.relative_to(self.out).as_posix()
        return question

    def _wait(self, store: Store, task_ids: list[str], check: Callable[[], None]) -> tuple[int, int]:
        """The answers so far, or once there are enough of them."""
        feedback, started, said = self.config.feedback, monotonic(), False
        while True:
            done, wanted = answered(store, task_ids)
            enough = done >= feedback.min_share * wanted
            late = feedback.timeout_s is not None and monotonic() - started >= feedback.timeout_s
            if enough or late or feedback.when_open == "go-on":
                return done, wanted
            if not said:
                print(
                    f"{STAGE}: {wanted - done} answers are open in project {self.project}; rate them with `rlhf app`. "
                    "It waits; stop it at any time and go on with --resume",
                    flush=True,
                )
                said = True
            check()
            sleep(feedback.poll_s)


class TrainerWithPeople(PPOTrainer):
    """PPO's trainer, which visits the desk before every feedback_every-th rollout."""

    def __init__(self, desk: Desk, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.desk = desk
        scorer_of(self.reward)  # refuses what cannot be renewed before anything is trained

    def collect(self, stream: PromptStream, check: Callable[[], None] = lambda: None) -> RolloutBatch:
        due = self.iteration and self.iteration % self.desk.config.feedback_every == 0
        if due and self.desk.visit(self, stream, check):
            self._begin_anew()
        return super().collect(stream, check)

    def _begin_anew(self) -> None:
        """Scores of another reward have another scale: what was best under the old one says nothing."""
        self.scores = ScoreNormalizer(self.reward, self.config)
        self.watch, self.best = Watch(self.config), None

    def figures(
        self, batch: RolloutBatch, targets: Any, stats: UpdateStats, seconds: dict[str, float]
    ) -> dict[str, float]:
        number = self.desk.number_at(self.iteration)
        return super().figures(batch, targets, stats, seconds) | {"reward_number": float(number)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        renewed = self.desk.reward_at(state["iteration"])
        if renewed is not None:
            put(self.reward, renewed)
            self._begin_anew()
        super().load_state_dict(state)
