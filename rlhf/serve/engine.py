"""The thread that decodes: takes waiting jobs into batches, and writes a token for every row, again and again.

There is a batch for each model that has work, so that requests which began before a switch end on the model that they
began with. Jobs are taken in the order in which they came.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.core.chat import first_line
from rlhf.core.errors import BusyError, RlhfError
from rlhf.serve.batch import Batch, Writer
from rlhf.serve.jobs import Job

# Tokens of prompts that are computed between two steps: a long one would keep everybody else waiting.
PREFILL_TOKENS = 4096


class QueueFullError(BusyError):
    """More jobs wait than may."""


class EngineStoppedError(RlhfError, RuntimeError):
    """The thread that decodes has ended."""


@dataclass(frozen=True)
class Load:
    """waiting: jobs that wait for a place; writing: rows at work; steps: taken since the start."""

    waiting: int
    writing: int
    steps: int


class Engine:
    """Decodes in a thread of its own from `start` to `stop`."""

    def __init__(self, *, max_rows: int, max_tokens: int, max_waiting: int) -> None:
        self.max_rows, self.max_tokens, self.max_waiting = max_rows, max_tokens, max_waiting
        self._waiting: deque[Job] = deque()
        self._batches: dict[Writer, Batch] = {}
        self._changed = threading.Condition()
        self._writing = self._steps = 0
        self._stopped = False
        self.fault = ""  # what ended the thread though nobody asked for it
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Fail what is not finished, and end the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all or none. Raises QueueFullError, or EngineStoppedError."""
        with self._changed:
            if self._stopped:
                raise EngineStoppedError(self.fault or "the server is stopping")
            if len(self._waiting) + len(jobs) > self.max_waiting:
                raise QueueFullError(
                    f"{len(self._waiting)} completions wait already, and at most {self.max_waiting} may"
                )
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more; their rows are free after the next step."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._waiting = deque(job for job in self._waiting if not job.cancelled)

    @property
    def load(self) -> Load:
        return Load(len(self._waiting), self._writing, self._steps)

    # ---- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._decode()
        except BaseException as error:  # nobody may wait for a thread that has gone
            traceback.print_exc(file=sys.stderr)
            self.fault = f"decoding has ended: {first_line(error)}"
        finally:
            with self._changed:
                self._stopped = True
                left = [*self._waiting, *(job for batch in self._batches.values() for job in batch.drop())]
                self._waiting.clear()
                self._batches.clear()
                self._writing = 0
            self._fail(left, self.fault or "the server is stopping")

    def _decode(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._batches or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    return
                joining = self._admissible()
            for writer, jobs in joining.items():
                self._join(writer, jobs)
            for writer in list(self._batches):
                self._advance(writer)
            self._writing = sum(batch.num_jobs for batch in self._batches.values())

    def _admissible(self) -> dict[Writer, list[Job]]:
        """The jobs that join now, taken from the queue's front."""
        joining: dict[Writer, list[Job]] = {}
        num_rows = sum(batch.num_jobs for batch in self._batches.values())
        new_tokens = 0
        while self._waiting:
            job = self._waiting[0]
            beside = joining.get(job.model, [])
            batch = self._batches.get(job.model)
            rows = [*beside, job]
            tokens = batch.tokens_with(rows) if batch is not None else _tokens(rows)
            first = num_rows == 0 and not joining
            if not first and (num_rows >= self.max_rows or tokens > self.max_tokens):
                break
            # Completions of one prompt share its computation.
            new_tokens += (
                0 if any(job.prompt_ids == other.prompt_ids for other in beside) else len(job.prompt_ids)
            )
            if joining and new_tokens > PREFILL_TOKENS:
                break
            joining.setdefault(job.model, []).append(self._waiting.popleft())
            num_rows += 1
        return joining

    def _join(self, writer: Writer, jobs: list[Job]) -> None:
        for job in jobs:
            job.times.start()
        batch = self._batches.setdefault(writer, Batch(writer))
        try:
            batch.add(jobs)
        except Exception as error:  # one model's fault must not end the thread that all of them need
            self._give_up(writer, jobs, error)

    def _advance(self, writer: Writer) -> None:
        batch = self._batches[writer]
        try:
            batch.advance()
            self._steps += 1
        except Exception as error:
            self._give_up(writer, [], error)
            return
        if not batch.jobs:
            del self._batches[writer]

    def _give_up(self, writer: Writer, joining: list[Job], error: Exception) -> None:
        """A pass failed (out of memory, a fault of a model): its rows end with an error, the others go on."""
        traceback.print_exc(file=sys.stderr)
        rows = self._batches.pop(writer).drop()
        known = {id(job) for job in rows}
        self._fail([*rows, *(job for job in joining if id(job) not in known)], first_line(error))

    @staticmethod
    def _fail(jobs: Sequence[Job], reason: str) -> None:
        for job in jobs:
            job.fail(reason)


def _tokens(jobs: Sequence[Job]) -> int:
    return len(jobs) * max(job.most_tokens for job in jobs)
