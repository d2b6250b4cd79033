"""The panel about each person's quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feedback_app.lead.panels import Column, Panel, ranged
from feedback_app.quality.people import PersonQuality
from rlhf.core.stats import Interval

MIN_FOR_A_WARNING = 20

COLUMNS = (
    Column("name", "name"),
    Column("note", "look at"),
    Column("answers", "answers", "count"),
    Column("last_at", "last answer", "time"),
    Column("median_s", "median time", "seconds"),
    Column(
        "reliability",
        "reliability",
        "share",
        True,
        "Dawid-Skene: how often this person names the likely truth",
    ),
    Column(
        "agreement", "agrees with others", "share", True, "share of other raters of an item who said the same"
    ),
    Column("gold", "gold right", "share", True, "first answers to items with a known answer"),
    Column("self", "says the same again", "share", True, "tasks that were given twice"),
    Column("left", "chose left", "share", True, "50 % without a side bias"),
    Column("longer", "chose longer", "share", True, "of two answers of different length"),
    Column("even", "tie or both bad", "share"),
    Column(
        "weight", "Crowd-BT weight", "number", False, "1 follows the consensus, 0.5 is a coin, 0 the reverse"
    ),
    Column("too_fast", "too fast", "count", False, "below the project's min_seconds"),
    Column("unusual", "unusually fast", "count", False, "3 robust deviations below the person's own median"),
    Column("skips", "skips", "count"),
)
FACETS = (
    {"key": "reliability", "label": "reliability", "from": 0.25, "to": 1},
    {"key": "agreement", "label": "agrees with others", "from": 0.25, "to": 1, "zero": 0.5, "alarm": "below"},
    {"key": "gold", "label": "gold right", "from": 0, "to": 1},
    {"key": "left", "label": "chose left", "from": 0, "to": 1, "zero": 0.5, "alarm": "both"},
)


def people_panel(
    people: Sequence[PersonQuality],
    names: Mapping[str, str],
    gold: Mapping[str, Interval | None],
    consistency: Mapping[str, Interval],
    skips: Mapping[str, int],
) -> Panel:
    """One row per person, those with most answers first."""
    rows = []
    for person in sorted(people, key=lambda p: -p.num_answers):
        row: dict[str, Any] = {
            "name": names.get(person.annotator_id, person.annotator_id),
            "answers": person.num_answers,
            "last_at": person.last_at,
            "median_s": round(person.timing.median_s, 1) if person.timing else None,
            "even": round(person.even.mean, 4) if person.even else None,
            "weight": person.eta,
            "too_fast": person.timing.too_fast if person.timing else 0,
            "unusual": person.timing.unusual if person.timing else 0,
            "skips": skips.get(person.annotator_id, 0),
            "note": "; ".join(warnings(person, gold.get(person.annotator_id))),
        }
        for key, interval in (
            ("reliability", person.reliability),
            ("agreement", person.agreement),
            ("gold", gold.get(person.annotator_id)),
            ("self", consistency.get(person.annotator_id)),
            ("left", person.side.left if person.side else None),
            ("longer", person.longer),
        ):
            row |= ranged(key, interval)
        rows.append(row)
    return Panel(
        "annotators",
        "Each person",
        COLUMNS,
        rows,
        {"kind": "dots", "label": ["name"], "facets": list(FACETS)},
        "Bars are 95 % intervals. Few answers mean wide bars: talk to people before drawing conclusions.",
        "Nobody has answered yet.",
    )


def warnings(person: PersonQuality, gold: Interval | None) -> list[str]:
    """What a lead should look at, only where the interval leaves little doubt."""
    found = []
    if person.agreement and person.agreement.n >= MIN_FOR_A_WARNING and person.agreement.high < 0.5:
        found.append("answers the reverse of others")
    elif person.reliability and person.reliability.n >= MIN_FOR_A_WARNING and person.reliability.high < 0.55:
        found.append("close to guessing")
    if gold and gold.n >= 5 and gold.high < 0.7:
        found.append("misses gold items")
    if person.side and person.side.p < 0.001:
        found.append(f"prefers the {'left' if person.side.left.mean > 0.5 else 'right'} side")
    if person.timing and person.timing.too_fast > 0.2 * person.timing.n:
        found.append("often too fast")
    return found
