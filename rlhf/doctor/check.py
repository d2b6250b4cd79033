"""What one look found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "absent", "broken"]
STATES: tuple[State, ...] = ("ok", "note", "absent", "broken")


@dataclass(frozen=True)
class Check:
    """One line. state: ok; note, it works but somebody should know; absent, optional and not here; broken, required
    and not usable. advice: what to do about anything but ok."""

    group: str
    name: str
    state: State
    found: str
    advice: str = ""


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks and how many there are of each state."""
    counts = {state: sum(check.state == state for check in checks) for state in STATES}
    return {"ok": not counts["broken"], "counts": counts, "checks": [asdict(check) for check in checks]}


def as_text(checks: Sequence[Check]) -> str:
    """A table with one group after the other; advice stands below its line."""
    width = max(len(check.name) for check in checks)
    lines: list[str] = []
    for group in dict.fromkeys(check.group for check in checks):
        lines += ["", group]
        for check in checks:
            if check.group != group:
                continue
            lines.append(f"  {check.state:<7} {check.name:<{width}}  {check.found}")
            if check.advice:
                lines.append(f"  {'':<7} {'':<{width}}  -> {check.advice}")
    return "\n".join(lines[1:])
