"""Retrainers and raters that are killed, and what must hold after every kill."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from killing.forks import fork, wait
from killing.lines import Save, SaveTracer
from sqlalchemy import text

from feedback_app.store import audit, snapshots
from feedback_app.store.engine import Store
from retraining import tiny
from rlhf.core.errors import RlhfError
from rlhf.core.run import Workspace, is_finished
from rlhf.loop.lineage import annotations_of, used_in
from rlhf.loop.registry import CHAMPION, Registry, check_usable
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.rounds import Rounds
from rlhf.loop.retrain.run import run as run_retrain

RANDOM, IN_TRANSACTION, RATER = (
    "at a random moment of a round",
    "inside a transaction of a round",
    "of a rater",
)
FIRST_PAIRS, FURTHER_PAIRS = 140, 40
MAX_STARTS = 200
# In these every line may be the last, those of libraries too.
TRANSACTIONS: tuple[Save, ...] = (
    (Rounds, "begin"),
    (Rounds, "attempt"),
    (Rounds, "advance"),
    (Registry, "_insert"),
    (Registry, "promote"),
    (snapshots, "_record"),
)


class Killed:
    """One world, its kills, and everything that went wrong."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.config, self.launch = tiny.make_world(root)
        self.log = root / "log.txt"
        self.kills: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.failures: list[str] = []
        self.round_seconds = 0.0
        self.note = root / "note.txt"
        self.rates: dict[str, float] = {}
        self.ended: Counter[str] = Counter()
        self.notes: list[str] = []
        self.acknowledged: set[str] = set()
        self.batch = 0

    # ---- processes ---------------------------------------------------------------------------------------

    def _fork(self, work: Callable[[], None]) -> int:
        return fork(work, self.log)

    def _retrain(self, config: RetrainConfig | None = None) -> None:
        run_retrain(config or self.config, self.launch)

    def _traced(self, rates: dict[str, float] | None, seed: int) -> None:
        """A retrainer that ends itself at a random line of what it does inside the transactions of a round."""
        tracer = SaveTracer(TRANSACTIONS, self.note, rates, seed)
        tracer.install()
        self._retrain()
        if rates is None:
            self.note.write_text(json.dumps(tracer.counts), encoding="utf-8")

    # ---- the proof ---------------------------------------------------------------------------------------

    def run(self, kills: int, seconds: float) -> None:
        """Rounds with kills until there were enough of them, then one that nobody disturbs."""
        began = time.monotonic()
        self._measure()
        while sum(self.kills.values()) < kills and time.monotonic() - began < seconds and not self.failures:
            self._rate(killed=self.random.random() < 0.3)
            self._one_round(kills)
            print(f"{sum(self.kills.values())} kills, {dict(self.ended)}", flush=True)

    def _measure(self) -> None:
        """A first round that is not killed: its seconds, and how many lines move rounds and names in it."""
        self._rate(killed=False, pairs=FIRST_PAIRS)
        started = time.monotonic()
        code = wait(self._fork(lambda: self._traced(None, 0)), None)
        self.round_seconds = time.monotonic() - started
        if code != 0:
            raise SystemExit(f"the round that was never killed ended with {code}:\n{self._tail()}")
        counts = json.loads(self.note.read_text(encoding="utf-8"))
        # Three kills are expected in the transactions of a whole round, one in each layer that has lines there.
        self.rates = {layer: 1 / max(1, count) for layer, count in counts.items()}
        self._check()
        self._check_round()
        print(
            f"a round takes {self.round_seconds:.1f} s; lines inside its transactions: {counts}", flush=True
        )

    def _rate(self, *, killed: bool, pairs: int = FURTHER_PAIRS) -> None:
        """New answers; with `killed` the raters' process dies among them and others finish the work."""
        self.batch += 1
        batch = self.batch

        def work() -> None:
            with Store.open(self.launch.db) as store:
                tiny.rate(store, pairs, batch)

        if killed:
            code = wait(self._fork(work), self.random.uniform(0.02, 0.5))
            if code == -signal.SIGKILL:
                self.kills[RATER] += 1
                self._check()
                # what the dead raters held is free again when their leases have run out; here at once
                with Store.open(self.launch.db) as store, store.write() as connection:
                    connection.execute(text("UPDATE leases SET expires_at = 0 WHERE state = 'active'"))
        if wait(self._fork(work), None) != 0:
            self.failures.append(f"raters ended with an error: {self._tail()}")
        self._check()

    def _one_round(self, kills: int) -> None:
        """Start retrainers until the round has an end, and kill them on the way."""
        before = self._num_ended()
        for start in range(MAX_STARTS):
            self.note.unlink(missing_ok=True)
            kind = None
            if sum(self.kills.values()) < kills and start < 12:
                kind = self.random.choice((RANDOM, IN_TRANSACTION))
            if kind == IN_TRANSACTION:
                seed = self.random.randrange(2**32)
                code = wait(self._fork(lambda seed=seed: self._traced(self.rates, seed)), None)  # type: ignore[misc]
            else:
                moment = self.random.uniform(0, self.round_seconds) if kind == RANDOM else None
                code = wait(self._fork(self._retrain), moment)
            self._check()
            if code == -signal.SIGKILL and kind is not None:
                self.kills[kind] += 1
                if kind == IN_TRANSACTION:
                    self.places[self.note.read_text(encoding="utf-8")] += 1
                continue
            if code != 0:
                self.failures.append(f"a retrainer ended with {code}: {self._tail()}")
                return
            if self._num_ended() == before + 1:
                self._check_round()
                return
            self.failures.append(f"a retrainer ended without a result: {self._tail()}")
            return
        self.failures.append(f"a round had no end after {MAX_STARTS} starts")

    # ---- what must hold ----------------------------------------------------------------------------------

    def _num_ended(self) -> int:
        with Store.open(self.launch.db) as store:
            return sum(not found.is_open for found in Rounds(store).all())

    def _check(self) -> None:
        """After every kill: names are whole, at most one round is open, the audit chain holds, no rating is lost."""
        with Store.open(self.launch.db) as store:
            registry = Registry(store, Workspace(self.root))
            for name, artifact in registry.aliases().items():
                try:
                    check_usable(artifact)
                except RlhfError as error:
                    self.failures.append(f"{name} points at what cannot be used: {error}")
            with store.read() as connection:
                last = {
                    row.name: row.to_artifact
                    for row in connection.execute(
                        text("SELECT name, to_artifact FROM alias_moves ORDER BY move_id")
                    )
                }
                names = dict(connection.execute(text("SELECT name, artifact_id FROM aliases")).tuples().all())
                given = set(connection.execute(text("SELECT annotation_id FROM annotations")).scalars())
                broken = audit.first_broken(connection)
            if {name: to for name, to in last.items() if to is not None} != names:
                self.failures.append(f"names {names} are not where their last moves say: {last}")
            if lost := self.acknowledged - given:
                self.failures.append(f"{len(lost)} ratings are lost")
            self.acknowledged = given
            if broken is not None:
                self.failures.append(f"the audit log is broken at {broken}")
            open_rounds = [found.number for found in Rounds(store).all() if found.is_open]
            if len(open_rounds) > 1:
                self.failures.append(f"rounds {open_rounds} are open at once")

    def _check_round(self) -> None:
        """After every round: one end, one promotion, and lineage both ways."""
        with Store.open(self.launch.db) as store:
            found = Rounds(store).all()[-1]
            self.ended[found.state] += 1
            steps = list(Rounds(store).steps(found.round_id))
            registry = Registry(store, Workspace(self.root))
            with store.read() as connection:
                moves = connection.execute(
                    text(
                        "SELECT count(*) FROM alias_moves WHERE name = 'champion' AND to_artifact = :candidate"
                    ),
                    {"candidate": found.candidate_id},
                ).scalar_one()
                if moves != (found.state == "champion"):
                    self.failures.append(f"round {found.number} ended {found.state} with {moves} promotions")
                if len(set(steps)) != len(steps) or steps[-1] != found.state:
                    self.failures.append(f"round {found.number} went {steps}")
                champion = registry.alias_in(connection, CHAMPION)
                if found.state != "champion" or champion is None:
                    return
                rests_on = set(annotations_of(connection, champion.artifact_id))
                members = set(
                    connection.execute(
                        text("SELECT annotation_id FROM snapshot_members WHERE snapshot_id = :snapshot"),
                        {"snapshot": found.snapshot_id},
                    ).scalars()
                )
                if not members or not members <= rests_on:
                    self.failures.append(f"champion {champion.artifact_id} does not trace to its ratings")
                for annotation_id in self.random.sample(sorted(members), 5):
                    users = used_in(connection, annotation_id)
                    if not {champion.artifact_id, found.reward_id} <= set(users):
                        self.failures.append(
                            f"rating {annotation_id} does not trace to the runs that used it"
                        )

    # ---- beside the kills --------------------------------------------------------------------------------

    def together(self) -> None:
        """Two retrainers at once: one works, the other says who does."""
        self._rate(killed=False)
        first = self._fork(self._retrain)
        time.sleep(min(1.0, self.round_seconds / 4))
        self.log.write_text("", encoding="utf-8")
        second = wait(self._fork(self._retrain), None)
        said = next((line for line in self.log.read_text().splitlines() if line.startswith("error:")), "")
        code = wait(first, None)
        if (code, second) != (0, 2) or f"process {first} has been retraining since" not in said:
            self.failures.append(f"two at once ended with {code} and {second}: {said}")
        self._check()
        self._check_round()
        self.notes.append(
            f"two retrainers at once: the first ended with {code}, the second with {second} ({said})"
        )

    def rollback(self) -> None:
        """The seconds of a rollback by the command of a user in a new process, and the same answers as before it."""
        with Store.open(self.launch.db) as store:
            registry = Registry(store, Workspace(self.root))
            names = registry.aliases()
        before, previous = names[CHAMPION], names["previous"]
        said = tiny.greedy(previous.path, self.launch)
        started = time.monotonic()
        command = [sys.executable, "-m", "rlhf.cli", "rollback", "--workspace", str(self.root)]
        code = os.spawnv(os.P_WAIT, sys.executable, command)
        seconds = time.monotonic() - started
        with Store.open(self.launch.db) as store:
            now = Registry(store, Workspace(self.root)).aliases()
        if code or now[CHAMPION] != previous or now["previous"] != before or seconds > 5:
            self.failures.append(f"rollback ended with {code} after {seconds:.1f} s")
        if tiny.greedy(now[CHAMPION].path, self.launch) != said or not is_finished(now[CHAMPION].path):
            self.failures.append("after the rollback the champion answers otherwise than before")
        self._check()
        self.notes.append(
            f"rollback took {seconds:.2f} s with the start of its process; the answers are the same"
        )

    def report(self) -> None:
        for kind in (RANDOM, IN_TRANSACTION, RATER):
            print(f"{self.kills[kind]} kills {kind}")
        print(f"  on {len(self.places)} different lines")
        print(f"rounds: {dict(self.ended)}; {len(self.acknowledged)} ratings, none lost")
        print("\n".join(self.notes))
        print(f"{len(self.failures)} failures")
        for failure in self.failures:
            print(f"FAILED: {failure}")

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8").strip().splitlines()
        return lines[-1] if lines else "no output"
