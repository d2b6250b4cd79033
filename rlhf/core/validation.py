"""One line out of a pydantic error: which key, what was found and expected, the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

MAX_SHOWN_CHARS = 60


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, else the known names themselves (at most 12)."""
    known = list(known)
    tail = _tail(name)
    close = [k for k in known if _tail(k) == tail][:1]  # 'lr' should find 'optim.lr'
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}" if known else ""


def _tail(name: str) -> str:
    return name.lstrip("-").rsplit(".", 1)[-1]


def shown(value: Any) -> str:
    """A value as it is named in a message: its repr, on one line, cut to MAX_SHOWN_CHARS."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def one_line(text: str) -> str:
    return " ".join(text.split())


def problems(error: ValidationError) -> list[tuple[tuple[str, ...], str]]:
    """Each problem of a pydantic error as (path of keys, message); a whole-object check has no path.

    Unions report one problem per member; the members share one path, so only the first of each path is kept.
    """
    found: dict[tuple[str, ...], str] = {}
    for item in error.errors(include_url=False):
        path = tuple(str(part) for part in item["loc"])
        found.setdefault(path, _message(item))
    return list(found.items())


def _message(item: Any) -> str:
    message = one_line(str(item["msg"]))
    for prefix in ("Value error, ", "Assertion failed, "):
        if message.startswith(prefix):
            return message.removeprefix(prefix)
    if item["type"] == "missing":
        return "is missing"
    if item["type"] == "extra_forbidden":
        return "is not a known name"
    if message.startswith("Input should be "):
        message = "expected " + message.removeprefix("Input should be ")
    return f"{message}; found {shown(item['input'])}"
