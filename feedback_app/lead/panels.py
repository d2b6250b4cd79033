"""A panel is one table with, where it helps, one plot of it; the page draws it, the same table leaves as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from feedback_app.csv_safe import csv_lines
from rlhf.core.stats import Interval

Kind = Literal["text", "count", "share", "number", "seconds", "day", "time", "flag"]


@dataclass(frozen=True)
class Column:
    """key: where rows keep it. ranged: rows also hold KEY_low and KEY_high, an interval around the value."""

    key: str
    label: str
    kind: Kind = "text"
    ranged: bool = False
    help: str = ""

    def cells(self) -> list[str]:
        """The keys of its cells in a row."""
        return [self.key, f"{self.key}_low", f"{self.key}_high"] if self.ranged else [self.key]


@dataclass(frozen=True)
class Panel:
    """chart: {"kind": bars | lines | dots | stack | matrix, ...}, naming columns. empty: said without rows."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    chart: dict[str, Any] | None = None
    note: str = ""
    empty: str = "Nothing to show yet."
    action: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "note": self.note,
            "empty": self.empty,
            "action": self.action,
            "columns": [
                {"key": c.key, "label": c.label, "kind": c.kind, "ranged": c.ranged, "help": c.help}
                for c in self.columns
            ],
            "rows": self.rows,
            "chart": self.chart,
        }

    def to_csv(self) -> Iterator[str]:
        """The table with intervals in columns of their own, line by line."""
        keys = [key for column in self.columns for key in column.cells()]
        return csv_lines(keys, ([row.get(key) for key in keys] for row in self.rows))


@dataclass(frozen=True)
class View:
    """One page of the dashboard: figures on top, then panels."""

    tiles: list[dict[str, Any]] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"tiles": self.tiles, "panels": [panel.to_json() for panel in self.panels]}

    def panel(self, name: str) -> Panel | None:
        return next((panel for panel in self.panels if panel.name == name), None)


def tile(label: str, value: float | str | None, kind: Kind = "count", note: str = "") -> dict[str, Any]:
    return {"label": label, "value": value, "kind": kind, "note": note}


def ranged(key: str, interval: Interval | None, digits: int = 4) -> dict[str, float | None]:
    """The three cells of a value with its interval; empty where it is undefined."""
    if interval is None:
        return {key: None, f"{key}_low": None, f"{key}_high": None}
    return {
        key: round(interval.mean, digits),
        f"{key}_low": round(interval.low, digits),
        f"{key}_high": round(interval.high, digits),
    }
