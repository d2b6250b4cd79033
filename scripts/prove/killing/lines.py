"""Every line of Python that is executed inside a save, and the end of the process at one of them."""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

LAYERS = ("checkpoint.py", "the rest of ours", "libraries")
REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGES = tuple(REPOSITORY / name for name in ("rlhf", "reward", "sft"))
HERE = Path(__file__).resolve().parent
# An object or module and the name of its function: patched where it is looked up.
Save = tuple[Any, str]


@functools.cache  # asked for every line
def layer_of(filename: str) -> str:
    """The layer of a source file; empty for this package."""
    path = Path(filename)
    if path.parent == HERE:
        return ""
    if not any(path.is_relative_to(package) for package in PACKAGES):
        return "libraries"
    return "checkpoint.py" if path.name == "checkpoint.py" else "the rest of ours"


class SaveTracer:
    """Watches every line executed inside a save: counts them, or with rates ends the process at one of them.

    saves: the functions that save. rates: the chance per line of each of LAYERS. The last line is noted in `note`.
    """

    def __init__(self, saves: Iterable[Save], note: Path, rates: dict[str, float] | None, seed: int) -> None:
        self.counts = dict.fromkeys(LAYERS, 0)
        self._saves, self._note, self._rates = tuple(saves), note, rates
        self._random = random.Random(seed)

    def install(self) -> None:
        for owner, name in self._saves:
            setattr(owner, name, self._traced(getattr(owner, name)))

    def _traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*args: Any, **options: Any) -> Any:
            before = sys.gettrace()  # a save may be called by a save
            sys.settrace(self._trace)
            try:
                return function(*args, **options)
            finally:
                sys.settrace(before)

        return traced

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and (layer := layer_of(frame.f_code.co_filename)):
            self.counts[layer] += 1
            if self._rates is not None and self._random.random() < self._rates[layer]:
                sys.settrace(None)
                where = (
                    f"{layer}: {Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                )
                self._note.write_text(where, encoding="utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
        return self._trace
