"""metrics.jsonl, one row per step, and progress that shows stage, steps and time left.

On a terminal progress is a bar; elsewhere (CI, a log file) it is one plain line about every five seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlhf.core.errors import DataError
from rlhf.core.files import to_json, write_text

PLAIN_EVERY_S = 5.0


class MetricsLog:
    """Appends {"step": n, name: float, ...} rows; each is flushed, so a killed run keeps what it logged.

    NaN and Infinity are not JSON: they are written as null and come back as None.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._drop_torn_row()

    def log(self, step: int, **values: Any) -> None:
        """Append one row. Values are numbers or 0-d tensors/arrays; the row's order of names is kept."""
        row: dict[str, Any] = {"step": int(step)}
        row.update((name, _number(value)) for name, value in values.items())
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop rows past `step`: a resumed run writes them again, exactly once."""
        if not self.path.exists():
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(to_json(row) + "\n" for row in kept))

    def _drop_torn_row(self) -> None:
        """A row cut off by a crash has no newline; without this the next row would be glued to it."""
        if self.path.exists() and (text := self.path.read_bytes()) and not text.endswith(b"\n"):
            whole = text[: text.rfind(b"\n") + 1]
            write_text(self.path, whole.decode("utf-8"))


def _number(value: Any) -> float | int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def finite(value: Any) -> Any:
    """The same nested value in plain Python numbers, with None for those that JSON does not know."""
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, without a last row that a crash cut off. Raises DataError for a broken row."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: broken JSON") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(f"{path}:{number}: expected an object with an integer 'step'")
        rows.append(row)
    return rows


class Tracker:
    """What `progress` yields: call `advance` once per unit of work, with values worth showing."""

    def __init__(self, advance: Callable[[int, dict[str, Any]], None]) -> None:
        self._advance = advance

    def advance(self, n: int = 1, **shown_values: Any) -> None:
        self._advance(n, shown_values)


_live: Progress | None = None  # rich allows one live display; nested calls add their bar to it


@contextlib.contextmanager
def progress(
    description: str, total: int | None, *, stage: str = "", silent: bool = False
) -> Iterator[Tracker]:
    """Show the progress of `total` units (None: unknown) while the block runs, on standard error.

    silent: show nothing, as for all but one of several processes.
    """
    if silent:
        yield Tracker(lambda n, values: None)
        return
    title = f"{stage}: {description}" if stage else description
    show = _bar if sys.stderr.isatty() else _plain_lines
    with show(title, total) as tracker:
        yield tracker


@contextlib.contextmanager
def _bar(title: str, total: int | None) -> Iterator[Tracker]:
    global _live
    outer, owner = _live, None
    if outer is None:
        outer = owner = _live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[values]}", style="dim"),
            console=Console(stderr=True),
        )
        owner.start()
    task = outer.add_task(title, total=total, values="")
    try:
        yield Tracker(lambda n, values: outer.update(task, advance=n, values=_values(values)))
    finally:
        if owner is not None:
            owner.stop()
            _live = None
        else:
            outer.remove_task(task)


@contextlib.contextmanager
def _plain_lines(title: str, total: int | None) -> Iterator[Tracker]:
    start = last = time.monotonic()
    done, values = 0, ""

    def advance(n: int, shown_values: dict[str, Any]) -> None:
        nonlocal done, values, last
        done += n
        values = _values(shown_values) or values
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_S:
            last = now
            left = f"  {_clock((now - start) / done * (total - done))} left" if total and done else ""
            _say(f"{title}  {done}{f'/{total}' if total else ''}{left}  {values}")

    finished = False
    try:
        yield Tracker(advance)
        finished = True
    finally:
        how = "done" if finished else "stopped"
        count = f"{done}{f'/{total}' if total and done != total else ''}"
        _say(f"{title}  {count} {how} in {_clock(time.monotonic() - start)}  {values}")


def _say(line: str) -> None:
    print(line.rstrip(), file=sys.stderr, flush=True)


def _values(values: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
