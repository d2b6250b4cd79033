"""The state machine of a round: do the next step, note it, until the round has a result.

Whatever a step finds out goes into the database in the one transaction that notes the step, so a process that is
killed anywhere leaves a round that the next one takes up. A step whose inputs cannot work, or that a guard stopped,
ends the round with the reason; one that was begun too often without an end does too, so that nothing is tried
forever. A signal leaves the round as it is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, text

from feedback_app.store.engine import Store
from feedback_app.store.registry_schema import artifact_parents
from feedback_app.store.registry_schema import rounds as rounds_table
from rlhf.core.errors import BusyError, ConfigError, RlhfError, Stopped, StoreError
from rlhf.core.inputs import find_model, find_path
from rlhf.core.run import Launch, Workspace, code_version, content_sha256, is_finished
from rlhf.loop.gates.verdict import Verdict, reasons
from rlhf.loop.registry import CANDIDATE as CANDIDATE_ALIAS
from rlhf.loop.registry import CHAMPION as CHAMPION_ALIAS
from rlhf.loop.registry import Artifact, Registry, check_usable, lock_names, move_in, promote_in
from rlhf.loop.retrain import rounds as steps
from rlhf.loop.retrain.canary import try_candidate
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.judging import (
    PolicyFiles,
    data_verdicts,
    people_verdict,
    policy_verdicts,
    reward_verdicts,
)
from rlhf.loop.retrain.late_verdict import settings_of, settle
from rlhf.loop.retrain.leader import Leader
from rlhf.loop.retrain.news import news
from rlhf.loop.retrain.rounds import Round, Rounds
from rlhf.loop.retrain.stages import ACTOR, Stages
from rlhf.loop.retrain.trigger import look

MakeStages = Callable[[RetrainConfig, Launch, Store, Round], Stages]
_SAME_WORK = text("SELECT number, state FROM rounds WHERE work_key = :key AND round_id <> :round")


class WaitingError(Exception):
    """A step cannot end yet: people or users have not said enough. The round stays open."""


@dataclass(frozen=True)
class Outcome:
    """What one look led to. kind: nothing (no round was due), waiting, or the round's end. alerts: what drifts."""

    kind: str
    text: str
    round: Round | None = None
    alerts: tuple[str, ...] = ()


class Machine:
    """One leader's work on one project. make_stages: who does the steps; a proof may put its own in. check: called
    between steps, to raise Stopped where a signal has come."""

    def __init__(
        self,
        config: RetrainConfig,
        launch: Launch,
        store: Store,
        leader: Leader,
        *,
        make_stages: MakeStages = Stages,
        on_round: Callable[[Round], None] = lambda found: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.launch, self.store, self.leader = config, launch, store, leader
        self.workspace = Workspace(launch.workspace)
        self.registry = Registry(store, self.workspace)
        self.rounds = Rounds(store, leader)
        self._make_stages, self._on_round, self._check = make_stages, on_round, check

    def once(self) -> Outcome:
        """Go on with the round that is open, or begin one if one is due, and bring it to its end."""
        settled = settle(self.config.project, self.rounds, self.registry, self.launch, self._people_of)
        if settled is not None:
            self._on_round(settled)
        current = self.rounds.unfinished(self.config.project)
        if current is None:
            due = look(self.store, self.config, self.rounds)
            if not due.is_due:
                return Outcome("nothing", due.reason, alerts=due.alerts)
            champion = self._first_champion()
            details = {"alerts": list(due.alerts), "trigger": due.reason, "num_new": due.news.num_new}
            values = self.config.model_dump(mode="json")
            current = self.rounds.begin(self.config.project, values, champion, details)
            print(f"retrain: round {current.number}: {due.reason}", flush=True)
        else:
            print(f"retrain: round {current.number} goes on after '{current.state}'", flush=True)
        return self._drive(current)

    def _drive(self, current: Round) -> Outcome:
        try:
            config = settings_of(current)
        except ConfigError as error:
            current = self._failed(current, current.following, error)
            self._on_round(current)
            return Outcome("rejected", f"round {current.number} was rejected: {current.error}", current)
        if config.work() != self.config.work():
            print(f"retrain: round {current.number} keeps the settings that it began with", flush=True)
        while current.is_open:
            self._check()
            following = current.following
            if current.attempts >= config.max_attempts:
                reason = f"begun {current.attempts} times without an end (max_attempts)"
                current = self._failed(current, following, StoreError(reason))
                break
            current = self.rounds.attempt(current)
            stages = self._make_stages(config, self.launch, self.store, current)
            work = _Work(self, config, stages, current)
            try:
                current = work.do(following)
            except WaitingError as waiting:
                # To look in vain is no attempt that failed, however often it happens.
                current = self.rounds.note(current, attempts={})
                return Outcome("waiting", f"round {current.number} waits: {waiting}", current)
            except Stopped:
                self.rounds.note(current, attempts={})
                raise
            except BusyError:
                raise
            except RlhfError as error:
                current = self._failed(current, following, error)
            print(f"retrain: round {current.number}: {current.state}", flush=True)
        self._make_stages(config, self.launch, self.store, current).tidy()
        self._on_round(current)
        said, alerts = f"round {current.number} ", tuple(current.details.get("alerts", ()))
        if current.state == steps.CHAMPION:
            return Outcome("champion", f"{said}made {current.candidate_id} the champion", current, alerts)
        return Outcome("rejected", f"{said}was rejected: {current.error}", current, alerts)

    def _failed(self, current: Round, step: str, error: RlhfError) -> Round:
        fresh = self.rounds.get(current.round_id)
        if not fresh.is_open:
            return fresh
        also = None
        if fresh.candidate_id is not None:
            also = _clears_candidate(fresh.candidate_id, f"round {fresh.number}: {step} failed")
        return self.rounds.reject(fresh, f"{step}: {error}", also=also)

    def _people_of(self, config: RetrainConfig, found: Round) -> Path:
        return self._make_stages(config, self.launch, self.store, found).path("people")

    def _first_champion(self) -> str | None:
        """The champion's id. Before there is one, the supervised model becomes it: what the first round has to beat."""
        champion = self.registry.alias(CHAMPION_ALIAS)
        if champion is not None:
            return champion.artifact_id
        backbone = Path(find_model(self.config.backbone or "", self.launch))
        run = next((path for path in (backbone, backbone.parent) if is_finished(path)), None)
        if run is None:
            return None
        artifact = self.registry.register(run)
        check_usable(artifact)

        def unit(connection: Connection) -> str:
            self.leader.check(connection)
            lock_names(connection)
            if (now := self.registry.alias_in(connection, CHAMPION_ALIAS)) is not None:
                return now.artifact_id  # somebody has named one meanwhile
            reason = "the supervised model, before the first round"
            promote_in(connection, artifact.artifact_id, ACTOR, reason)
            return artifact.artifact_id

        return self.store.run(unit)


class _Work:
    """The steps of one round, each of them from what is on disk and in the database to the note that it is done."""

    def __init__(self, machine: Machine, config: RetrainConfig, stages: Stages, current: Round) -> None:
        self.machine, self.config, self.stages, self.round = machine, config, stages, current
        self.rounds, self.registry = machine.rounds, machine.registry
        self.store, self.launch = machine.store, machine.launch

    def do(self, step: str) -> Round:
        """Do one step and note it. Raises WaitingError where it cannot end yet."""
        methods: dict[str, Callable[[], Round]] = {
            steps.SNAPSHOT: self.snapshot,
            steps.REWARD: self.reward,
            steps.REWARD_GATES: self.reward_gates,
            steps.PPO: self.ppo,
            steps.EVALUATE: self.evaluate,
            steps.GATES: self.gates,
            steps.CANDIDATE: self.candidate,
            steps.CANARY: self.canary,
            steps.CHAMPION: self.champion,
        }
        return methods[step]()

    def snapshot(self) -> Round:
        manifest = self.stages.export()
        key = self._work_key(manifest.content_hash)
        with self.store.read() as connection:
            same = connection.execute(_SAME_WORK, {"key": key, "round": self.round.round_id}).first()
        known = {"snapshot_id": manifest.snapshot_id}
        details = {
            "snapshot": self.stages.workspace.relative(self.stages.snapshot),
            "num_judgements": manifest.num_judgements,
            "counts": {split: counts.model_dump() for split, counts in manifest.counts.items()},
            "simulated": manifest.simulated,
        }
        if same is not None:
            reason = f"the same ratings, backbone, champion, code and settings as round {same.number}, which ended "
            return self.rounds.reject(self.round, f"{reason}{same.state}", details=details, **known)
        found = news(self.store, self.config.project, self._champions_snapshot())
        agreed = found.agreement()
        details |= {"num_new": found.num_new, "agreement": agreed.raw, "alpha": agreed.alpha}
        verdicts = data_verdicts(found, manifest, self.config)
        return self._judged(steps.SNAPSHOT, verdicts, None, details=details, work_key=key, **known)

    def reward(self) -> Round:
        manifest = self.stages.export()
        ratings = self.stages.ratings(manifest)
        reward = self.stages.reward(ratings)
        judge = self.stages.judge(ratings)
        self.stages.reward_eval(reward)
        ids = {
            name: self.registry.register(path, snapshot_id=manifest.snapshot_id).artifact_id
            for name, path in (("reward", reward), ("judge", judge))
        }
        details = {"judge_id": ids["judge"]}
        return self.rounds.advance(self.round, steps.REWARD, details=details, reward_id=ids["reward"])

    def reward_gates(self) -> Round:
        champion = self._champions_reward()
        verdicts = reward_verdicts(
            self.stages.path("reward"),
            self.stages.path("reward-eval"),
            champion.path if champion is not None else None,
            self.stages.snapshot,
            self.config,
            self.launch,
        )
        return self._judged(steps.REWARD_GATES, verdicts, self.round.reward_id)

    def ppo(self) -> Round:
        reward, judge = self._artifact(self.round.reward_id), self._artifact(self.round.details["judge_id"])
        champion = self._champion()
        out = self.stages.ppo(reward.path, judge.path, champion, self._champions_snapshot())
        parents = {"reward": reward.artifact_id, "judge": judge.artifact_id}
        if champion is not None:
            parents["champion"] = champion.artifact_id
        candidate = self.registry.register(out, parents=parents)
        return self.rounds.advance(self.round, steps.PPO, candidate_id=candidate.artifact_id)

    def evaluate(self) -> Round:
        judge = self._artifact(self.round.details["judge_id"])
        candidate = self._artifact(self.round.candidate_id)
        champion = self._champion()
        self.stages.evaluate(candidate.path, champion, judge.path)
        if self.config.gates.safety_rules or self.config.gates.safety_classifier:
            self.stages.safety(candidate.path, champion, judge.path)
        if self.config.gates.people:
            self.stages.ask_people(candidate.path, champion)
        return self.rounds.advance(self.round, steps.EVALUATE)

    def gates(self) -> Round:
        config = self.config
        people = None
        if config.gates.people:
            people = people_verdict(self.stages.path("people"), config, self.launch)
            if people.provisional and config.gates.wait_for_people:
                raise WaitingError(f"for people: {people.reason}")
            people = None if people.provisional else people
        verdicts = policy_verdicts(self._files(), config, self.launch, people)
        return self._judged(steps.GATES, verdicts, self.round.candidate_id)

    def candidate(self) -> Round:
        artifact = self._artifact(self.round.candidate_id)
        check_usable(artifact)
        reason = f"round {self.round.number} passed its gates"

        def also(connection: Connection) -> None:
            move_in(connection, CANDIDATE_ALIAS, artifact.artifact_id, ACTOR, reason)

        return self.rounds.advance(self.round, steps.CANDIDATE, also=also)

    def canary(self) -> Round:
        since = self.rounds.steps(self.round.round_id)[steps.CANDIDATE]
        trial = try_candidate(self.store, self.config.canary, since, time.time())
        if trial.state == "waiting":
            raise WaitingError(f"for the canary: {trial.reason}")
        verdicts = [trial.verdict] if trial.verdict is not None else []
        return self._judged(steps.CANARY, verdicts, self.round.candidate_id, details={"canary": trial.reason})

    def champion(self) -> Round:
        artifact = self._artifact(self.round.candidate_id)
        check_usable(artifact)
        expected = self.round.champion_id
        reason = f"round {self.round.number} passed its gates"

        def also(connection: Connection) -> None:
            lock_names(connection)  # before the look, or it might move between the look and the promotion
            now = self.registry.alias_in(connection, CHAMPION_ALIAS)
            if now is not None and now.artifact_id not in (expected, artifact.artifact_id):
                raise StoreError(
                    f"the champion is {now.artifact_id} now, and the candidate was compared with {expected}"
                )
            promote_in(connection, artifact.artifact_id, ACTOR, reason)

        return self.rounds.advance(self.round, steps.CHAMPION, also=also)

    # ---- helpers -----------------------------------------------------------------------------------------

    def _judged(
        self,
        step: str,
        verdicts: list[Verdict],
        artifact_id: str | None,
        *,
        details: dict[str, object] | None = None,
        **columns: Any,
    ) -> Round:
        """Keep the verdicts with the step, or with the end of the round where one of them says no."""
        failed = reasons(verdicts)
        if not failed:
            return self.rounds.advance(
                self.round, step, verdicts=verdicts, artifact_id=artifact_id, details=details, **columns
            )
        also = None
        if self.round.state in (steps.CANDIDATE, steps.CANARY) and self.round.candidate_id:
            also = _clears_candidate(self.round.candidate_id, f"round {self.round.number}: {failed}")
        return self.rounds.reject(
            self.round,
            failed,
            verdicts=verdicts,
            artifact_id=artifact_id,
            details=details,
            also=also,
            **columns,
        )

    def _work_key(self, content_hash: str) -> str:
        backbone = find_model(self.config.backbone or "", self.launch)
        path = Path(backbone)
        parts = {
            "snapshot": content_hash,
            "backbone": content_sha256(path) if path.exists() else backbone,
            "champion": self.round.champion_id,
            "code": code_version(),
            "config": self.config.work(),
            # A file that was mended under the same name is other work.
            "files": {name: content_sha256(find_path(name, self.launch)) for name in self.config.files()},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _artifact(self, artifact_id: str | None) -> Artifact:
        if artifact_id is None:
            raise StoreError(f"round {self.round.number} has lost what its step before had made")
        return self.registry.artifact(artifact_id)

    def _champion(self) -> Artifact | None:
        return None if self.round.champion_id is None else self.registry.artifact(self.round.champion_id)

    def _champions_reward(self) -> Artifact | None:
        """The reward model that the champion was trained against."""
        if self.round.champion_id is None:
            return None
        with self.store.read() as connection:
            query = select(artifact_parents.c.parent_id).where(
                artifact_parents.c.artifact_id == self.round.champion_id, artifact_parents.c.role == "reward"
            )
            found = connection.execute(query).scalar()
        reward = None if found is None else self.registry.artifact(found)
        return reward if reward is not None and is_finished(reward.path) else None

    def _champions_snapshot(self) -> str | None:
        """The ratings that the champion's round learned from: what has come since is new."""
        if self.round.champion_id is None:
            return None
        with self.store.read() as connection:
            query = select(rounds_table.c.snapshot_id).where(
                rounds_table.c.candidate_id == self.round.champion_id, rounds_table.c.state == steps.CHAMPION
            )
            return connection.execute(query.order_by(rounds_table.c.number.desc())).scalar()

    def _files(self) -> PolicyFiles:
        gates, path = self.config.gates, self.stages.path
        asked = gates.safety_prompts is not None
        heldout = self.stages.find(self.config.heldout or "")
        return PolicyFiles(
            ppo=path("ppo"),
            judge=path("judge"),
            evaluation=path("evaluate"),
            safety=path("safety") if asked else path("evaluate"),
            heldout=heldout,
            safety_prompts=self.stages.find(gates.safety_prompts) if gates.safety_prompts else heldout,
        )


def _clears_candidate(artifact_id: str, reason: str) -> Callable[[Connection], None]:
    """Take the name `candidate` away from an artifact, if it has it."""

    def also(connection: Connection) -> None:
        query = text("SELECT 1 FROM aliases WHERE name = :name AND artifact_id = :artifact")
        if connection.execute(query, {"name": CANDIDATE_ALIAS, "artifact": artifact_id}).first() is not None:
            move_in(connection, CANDIDATE_ALIAS, None, ACTOR, reason)

    return also
