"""Attempts at runs, each in a fork; their kills and stops; and what went wrong."""

from __future__ import annotations

import collections
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killing.compare import difference
from killing.forks import fork, wait
from killing.lines import Save, SaveTracer
from rlhf.core.checkpoint import load_state, newest_valid
from rlhf.core.metrics import read_metrics
from rlhf.core.run import CHECKPOINTS, METRICS, Launch, is_finished

RANDOM, IN_SAVE, STOP = "at a random moment", "inside a save", "stops by SIGTERM"
MAX_ATTEMPTS = 60


@dataclass(frozen=True)
class Subject:
    """A stage whose runs are killed.

    run: its `run` with the settings bound. saves: the functions in which every line may be the last. position: how
    far a checkpoint's state has come, in `unit`. save_every: the most that a kill may cost, in `unit`. folders: what
    a run leaves. skipped: files of a checkpoint that name the run's own directory.
    """

    run: Callable[[Launch], None]
    saves: Sequence[Save]
    position: Callable[[dict[str, Any]], int]
    unit: str
    save_every: int
    folders: Sequence[str]
    skipped: Sequence[str] = ()


class Killer:
    """Starts attempts at runs, kills them, and keeps the figures."""

    def __init__(self, root: Path, subject: Subject, seed: int) -> None:
        self.root, self.subject = root, subject
        self.random = random.Random(seed)
        self.log, self.note = root / "log.txt", root / "note.txt"
        self.rates: dict[str, float] | None = None
        self.seconds = 1.0  # of a run that nobody traces
        self.kills = dict.fromkeys((RANDOM, IN_SAVE, STOP), 0)
        self.guarded = 0
        self.places: collections.Counter[str] = collections.Counter()
        self.largest_loss = 0
        self.failures: list[str] = []

    def attempt(self, out: Path, kind: str | None, *, traced: bool = False) -> int:
        """Run or resume `out` in a fork. Returns its exit code, minus the signal that ended it."""
        self.note.unlink(missing_ok=True)
        seed, moment = self.random.randrange(2**32), self.random.uniform(0, self.seconds)
        number = {RANDOM: signal.SIGKILL, STOP: signal.SIGTERM}.get(kind or "")
        tracer = SaveTracer(self.subject.saves, self.note, self.rates if kind == IN_SAVE else None, seed)
        traced = traced or kind == IN_SAVE
        child = fork(lambda: self._child(out, tracer, traced=traced), self.log)
        return wait(child, None) if number is None else wait(child, moment, number)

    def _child(self, out: Path, tracer: SaveTracer, *, traced: bool) -> None:
        if traced:
            tracer.install()
        self.subject.run(Launch(workspace=self.root, db="", out=out, resume=True))
        if traced and self.rates is None:
            self.note.write_text(json.dumps(tracer.counts), encoding="utf-8")

    def measure(self) -> Path:
        """The run that is never stopped, twice: lines per save, seconds, and that two such runs are equal."""
        first, second = self.root / "whole", self.root / "whole-2"
        for out, traced in ((first, False), (second, True)):
            started = time.monotonic()
            if self.attempt(out, None, traced=traced) != 0:
                raise SystemExit(f"the run that was never stopped failed:\n{self.log.read_text()}")
            if not traced:
                self.seconds = time.monotonic() - started
        counts = json.loads(self.note.read_text(encoding="utf-8"))
        # Three kills are expected in the saves of a whole run, one in each layer.
        self.rates = {layer: 1 / count for layer, count in counts.items()}
        print(f"a run takes {self.seconds:.1f} s; lines that its saves execute: {counts}", flush=True)
        if found := self.difference(first, second):
            raise SystemExit(f"two runs that were never stopped differ: {found}")
        shutil.rmtree(second)
        return first

    def difference(self, one: Path, two: Path) -> str:
        return difference(one, two, self.subject.folders, skipped=self.subject.skipped)

    def one_run(self, out: Path, quota: dict[str, int]) -> None:
        """End and resume one run until it is finished, and note every end and everything that went wrong."""
        newest = 0
        for _ in range(MAX_ATTEMPTS):
            open_kinds = [kind for kind, wanted in quota.items() if self.kills[kind] < wanted]
            kind = self.random.choice(open_kinds) if open_kinds else None
            code = self.attempt(out, kind)
            if code == 0:
                return
            if kind is None or code not in self._expected(kind):
                raise RuntimeError(f"{out.name} ended with {code}: {last_line(self.log)}")
            if is_finished(out) and kind == STOP and code > 0:
                raise RuntimeError(f"{out.name} is finished and ended with {code}")
            self.kills[kind] += 1
            if kind == IN_SAVE:
                self.places[self.note.read_text(encoding="utf-8")] += 1
            saved_at_the_end = code == 128 + signal.SIGTERM
            self.guarded += saved_at_the_end
            before, newest = newest, self._newest(out, may_lose=0 if saved_at_the_end else None)
            if newest < before:
                raise RuntimeError(f"{out.name} fell back from {before} to {newest} {self.subject.unit}")
        raise RuntimeError(f"{out.name} was not finished after {MAX_ATTEMPTS} attempts")

    @staticmethod
    def _expected(kind: str) -> tuple[int, ...]:
        """Outside of the training loop nobody waits for SIGTERM, and it ends the process by itself: a shell says
        143 as well."""
        if kind == STOP:
            return (128 + signal.SIGTERM, -signal.SIGTERM)
        return (-signal.SIGKILL,)

    def _newest(self, out: Path, *, may_lose: int | None) -> int:
        """What a resume would begin with; notes how much of what was logged lies behind it."""
        damaged: list[str] = []
        folder = newest_valid(out / CHECKPOINTS, warn=damaged.append)
        if damaged:
            self.failures.append(f"{out.name} holds {damaged[0]}")
        newest = self.subject.position(load_state(folder)) if folder is not None else 0
        rows = read_metrics(out / METRICS) if (out / METRICS).exists() else []
        lost = rows[-1]["step"] - newest if rows else 0
        self.largest_loss = max(self.largest_loss, lost)
        allowed = self.subject.save_every if may_lose is None else may_lose
        if lost > allowed:
            self.failures.append(f"{out.name} lost {lost} {self.subject.unit}; allowed are {allowed}")
        return newest


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    return lines[-1] if lines else "no output"
