"""Rounds in the database: which step each of them has done, and the moves between steps.

    trigger -> snapshot -> reward -> reward-gates -> ppo -> evaluate -> gates -> candidate -> canary -> champion
                                                                        any of them -> rejected, with the reason

A state names the last step that is done. A move is one transaction that checks the leader's token and that the round
is where the move begins; a move that was made before is not made again. So a process may be killed anywhere: what it
was doing is done again by the next one, and everything a step does outside of the database can be done twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from feedback_app.store.engine import Store
from feedback_app.store.registry_schema import gate_verdicts, round_steps, rounds
from rlhf.core.errors import StoreError
from rlhf.core.metrics import finite
from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.registry import new_round_id
from rlhf.loop.retrain.leader import Leader

TRIGGER, SNAPSHOT, REWARD, REWARD_GATES = "trigger", "snapshot", "reward", "reward-gates"
PPO, EVALUATE, GATES, CANDIDATE, CANARY, CHAMPION = (
    *("ppo", "evaluate", "gates", "candidate", "canary"),
    "champion",
)
REJECTED = "rejected"
STATES = (TRIGGER, SNAPSHOT, REWARD, REWARD_GATES, PPO, EVALUATE, GATES, CANDIDATE, CANARY, CHAMPION)
ENDS = (CHAMPION, REJECTED)


@dataclass(frozen=True)
class Round:
    """One round as the database has it. details: figures and paths that nobody searches by."""

    round_id: str
    number: int
    project: str
    state: str
    work_key: str | None
    config: dict[str, Any]
    snapshot_id: str | None
    champion_id: str | None
    reward_id: str | None
    candidate_id: str | None
    details: dict[str, Any]
    error: str | None
    started_at: float
    ended_at: float | None

    @property
    def name(self) -> str:
        """What its folders are called."""
        return f"round-{self.number:04d}"

    @property
    def is_open(self) -> bool:
        return self.state not in ENDS

    @property
    def following(self) -> str:
        """The step that comes next."""
        return STATES[STATES.index(self.state) + 1]

    @property
    def attempts(self) -> int:
        """How often the next step has been begun."""
        return int(self.details.get("attempts", {}).get(self.following, 0))


class Rounds:
    """The rounds of a store. Whoever moves one is a leader."""

    def __init__(self, store: Store, leader: Leader | None = None) -> None:
        self.store, self._leader = store, leader

    # ---- reading -----------------------------------------------------------------------------------------

    def all(self, project: str | None = None) -> list[Round]:
        """The oldest first."""
        query = select(rounds).order_by(rounds.c.number)
        if project is not None:
            query = query.where(rounds.c.project_id == project)
        with self.store.read() as connection:
            return [_round(row) for row in connection.execute(query).all()]

    def get(self, round_id: str) -> Round:
        with self.store.read() as connection:
            return _round(connection.execute(select(rounds).where(rounds.c.round_id == round_id)).one())

    def unfinished(self, project: str) -> Round | None:
        """The one that has not ended; there is never more than one of a project."""
        return next((found for found in self.all(project) if found.is_open), None)

    def last_ended(self, project: str) -> Round | None:
        ended = [found for found in self.all(project) if not found.is_open]
        return ended[-1] if ended else None

    def last_snapshot(self, project: str) -> str | None:
        """The newest snapshot that an ended round has looked at: what it does not hold is new."""
        known = [found.snapshot_id for found in self.all(project) if not found.is_open and found.snapshot_id]
        return known[-1] if known else None

    def steps(self, round_id: str) -> dict[str, float]:
        """step -> when it was done, in the order in which they were."""
        query = select(round_steps).where(round_steps.c.round_id == round_id).order_by(round_steps.c.done_at)
        with self.store.read() as connection:
            return {row.state: row.done_at for row in connection.execute(query).all()}

    def verdicts(self, round_id: str) -> list[Verdict]:
        """What the gates said, in the order in which they were asked."""
        query = select(gate_verdicts).where(gate_verdicts.c.round_id == round_id)
        with self.store.read() as connection:
            rows = connection.execute(query.order_by(gate_verdicts.c.verdict_id)).all()
        return [Verdict.from_row(row) for row in rows]

    # ---- moving ------------------------------------------------------------------------------------------

    def begin(
        self, project: str, config: dict[str, Any], champion_id: str | None, details: dict[str, Any]
    ) -> Round:
        """A new round, at the step that began it. Raises StoreError where one of the project has not ended."""
        now = time.time()

        def unit(connection: Connection) -> str:
            self._check(connection)
            waiting = select(rounds.c.number).where(
                rounds.c.project_id == project, rounds.c.state.not_in(ENDS)
            )
            if (number := connection.execute(waiting).scalar()) is not None:
                raise StoreError(f"round {number} of project '{project}' has not ended yet")
            number = (connection.execute(select(func.max(rounds.c.number))).scalar() or 0) + 1
            round_id = new_round_id(number, project, now)
            row = {
                "round_id": round_id,
                "number": number,
                "project_id": project,
                "state": TRIGGER,
                "config": config,
                "champion_id": champion_id,
                "details": finite(details),
                "holder": self._holder,
                "started_at": now,
                "updated_at": now,
            }
            connection.execute(insert(rounds), row)
            self._note(connection, round_id, TRIGGER, now)
            return round_id

        return self.get(self.store.run(unit))

    def advance(
        self,
        found: Round,
        state: str,
        *,
        also: Callable[[Connection], None] | None = None,
        verdicts: Sequence[Verdict] = (),
        artifact_id: str | None = None,
        details: dict[str, Any] | None = None,
        **columns: Any,
    ) -> Round:
        """Note that a step is done, with what it found: one transaction, and nothing where it was noted before.

        also: what else belongs to this step, such as moving the champion. verdicts: of gates, about `artifact_id`.
        Raises BusyError when another leader has taken over.
        """
        now = time.time()

        def unit(connection: Connection) -> None:
            self._check(connection)
            here = select(rounds).where(rounds.c.round_id == found.round_id).with_for_update()
            row = _round(connection.execute(here).one())
            if not row.is_open or (state in STATES and STATES.index(row.state) >= STATES.index(state)):
                return
            if state != REJECTED and row.following != state:
                raise StoreError(f"round {row.number} is at '{row.state}': '{state}' does not follow")
            if also is not None:
                also(connection)
            for verdict in verdicts:
                keep_verdict(connection, found.round_id, artifact_id, verdict, now)
            values: dict[str, Any] = {"state": state, "updated_at": now, "holder": self._holder, **columns}
            values["details"] = finite(row.details | (details or {}))
            if state in ENDS:
                values["ended_at"] = now
            connection.execute(update(rounds).where(rounds.c.round_id == found.round_id).values(values))
            self._note(connection, found.round_id, state, now)

        self.store.run(unit)
        return self.get(found.round_id)

    def attempt(self, found: Round) -> Round:
        """Count one more beginning of the next step."""

        def unit(connection: Connection) -> None:
            self._check(connection)
            here = select(rounds.c.details).where(rounds.c.round_id == found.round_id).with_for_update()
            details = dict(connection.execute(here).scalar_one())
            attempts = dict(details.get("attempts", {}))
            attempts[found.following] = attempts.get(found.following, 0) + 1
            values = {"details": details | {"attempts": attempts}, "heartbeat_at": time.time()}
            connection.execute(update(rounds).where(rounds.c.round_id == found.round_id).values(values))

        self.store.run(unit)
        return self.get(found.round_id)

    def note(self, found: Round, **details: Any) -> Round:
        """Add to the details of a round, whatever its state."""

        def unit(connection: Connection) -> None:
            self._check(connection)
            _add_details(connection, found.round_id, details)

        self.store.run(unit)
        return self.get(found.round_id)

    def replace_verdict(
        self,
        found: Round,
        artifact_id: str | None,
        verdict: Verdict,
        *,
        also: Callable[[Connection], None] | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """A gate is answered anew, once people have spoken: one transaction, with what follows from it (`also`)."""

        def unit(connection: Connection) -> None:
            self._check(connection)
            if also is not None:
                also(connection)
            keep_verdict(connection, found.round_id, artifact_id, verdict, time.time())
            _add_details(connection, found.round_id, details or {})

        self.store.run(unit)

    def reject(self, found: Round, reason: str, **more: Any) -> Round:
        """End a round with the reason."""
        return self.advance(found, REJECTED, error=reason, **more)

    @property
    def _holder(self) -> str | None:
        return None if self._leader is None else self._leader.holder

    def _check(self, connection: Connection) -> None:
        if self._leader is None:
            raise StoreError("only the leader moves rounds")
        self._leader.check(connection)

    def _note(self, connection: Connection, round_id: str, state: str, now: float) -> None:
        token = 0 if self._leader is None else self._leader.token
        row = {"round_id": round_id, "state": state, "token": token, "done_at": now}
        connection.execute(insert(round_steps), row)


def keep_verdict(
    connection: Connection, round_id: str, artifact_id: str | None, verdict: Verdict, now: float
) -> None:
    """Write down what a gate said, in place of what it said before."""
    here = (gate_verdicts.c.round_id == round_id) & (gate_verdicts.c.gate == verdict.name)
    connection.execute(delete(gate_verdicts).where(here))
    row = {"round_id": round_id, "artifact_id": artifact_id, "decided_at": now, **verdict.row()}
    connection.execute(insert(gate_verdicts), row)


def _add_details(connection: Connection, round_id: str, details: dict[str, Any]) -> None:
    here = select(rounds.c.details).where(rounds.c.round_id == round_id).with_for_update()
    values = {"details": finite(connection.execute(here).scalar_one() | details)}
    connection.execute(update(rounds).where(rounds.c.round_id == round_id).values(values))


def _round(row: Row[Any]) -> Round:
    return Round(
        round_id=row.round_id,
        number=row.number,
        project=row.project_id,
        state=row.state,
        work_key=row.work_key,
        config=dict(row.config),
        snapshot_id=row.snapshot_id,
        champion_id=row.champion_id,
        reward_id=row.reward_id,
        candidate_id=row.candidate_id,
        details=dict(row.details),
        error=row.error,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )
