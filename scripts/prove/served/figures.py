"""Figures against their targets, printed as they come."""

from __future__ import annotations


class Verdicts:
    """Each figure with its bound; `exit_code` is 1 when one of them was missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def at_most(self, what: str, value: float, bound: float, unit: str = "") -> None:
        """`value` must be at most `bound`; a value that is no number misses it."""
        met = value <= bound
        if not met:
            self.missed.append(what)
        print(
            f"  {what}: {value:.4g} {unit} (at most {bound:g}) {'' if met else 'MISSED'}".rstrip(), flush=True
        )

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def exit_code(self) -> int:
        if self.missed:
            print(f"fell short: {'; '.join(self.missed)}")
        return 1 if self.missed else 0
