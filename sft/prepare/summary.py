"""The figures of report.json; the same inputs and settings give the same bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from sft.prepare.config import PrepareConfig
from sft.prepare.intake import Intake
from sft.prepare.language import Languages
from sft.prepare.output import Splits
from sft.prepare.pii import masked
from sft.prepare.readers import Source
from sft.prepare.scratch import Scratch
from sft.prepare.select import MAX_EXAMPLES, Selection
from sft.prepare.tally import EXACT, NEAR, length_bin
from sft.prepare.topics import MAX_SAMPLE, topics

EXAMPLE_CHARS = 160


def make_result(
    config: PrepareConfig,
    intake: Intake,
    sources: list[Source],
    scratch: Scratch,
    selection: Selection,
    splits: Splits,
    written: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """What report.json holds; the same inputs and settings give the same bytes."""
    tally = intake.tally
    alive = np.flatnonzero(selection.alive)
    for chars in np.frombuffer(scratch.lengths, dtype=np.int32)[alive].tolist():
        tally.lengths_after[length_bin(chars)] += 1
    kept = Counter(np.frombuffer(scratch.sources, dtype=np.int32)[alive].tolist())
    names = [source.name for source in sources]
    for split in written.values():
        split["sources"] = {names[place]: number for place, number in sorted(split["sources"].items())}
    sample = _sample(splits.rows["train"], config.seed)
    texts = [_masked(text, intake) for text in scratch.texts(sample)]
    guess = Languages()
    languages = tally.languages if config.languages else Counter(guess.of(text) for text in texts)
    personal = intake.personal
    notes = [*tally.notes, *selection.notes]
    notes += [f"A file could not be read to its end: {error}." for error in tally.broken_files]
    if _is_mixed(scratch, alive):
        notes.append(
            "There are conversations and texts without answers in one file; rlhf sft takes one of both."
        )
    notes += [
        f"{name}.jsonl is empty: there are too few prompt families."
        for name in written
        if _lacks(written, name, config)
    ]
    return {
        "rows": {
            "read": sum(tally.read.values()),
            "kept": len(alive),
            "reasons": dict(tally.reasons.most_common()),
        },
        "bad_reasons": dict(tally.bad_reasons.most_common()),
        "inputs": [
            {
                "name": source.name,
                "file": source.shown,
                "layouts": dict(tally.layouts[source.name].most_common()),
                "read": tally.read[source.name],
                "kept": kept[place],
            }
            for place, source in enumerate(sources)
        ],
        "cleaned": dict(intake.cleaner.counts.most_common()),
        "boilerplate": dict(intake.boilerplate.counts.most_common()),
        "personal_data": {
            "mode": config.pii,
            "items": dict(personal.items.most_common()) if personal else {},
            "rows": dict(personal.rows.most_common()) if personal else {},
        },
        "lengths": {"before": tally.lengths_before, "after": tally.lengths_after},
        "duplicates": {
            "examples": _examples(scratch, selection, sources, intake),
            "by_estimate": selection.estimated,
            "templates": selection.templates,
        },
        "leaks": {name: dict(found.most_common()) for name, found in selection.leaks.items()},
        "splits": written,
        "mixture": {"left_out": splits.left_out, "repeated": splits.repeated},
        "languages": dict(languages.most_common()),
        "topics": topics(texts, [names[scratch.sources[row]] for row in sample.tolist()], config.seed),
        "notes": notes,
    }


def _lacks(written: dict[str, dict[str, Any]], name: str, config: PrepareConfig) -> bool:
    wanted = name == "train" or getattr(config, f"{name}_fraction") > 0
    return bool(wanted and not written[name]["rows"])


def _is_mixed(scratch: Scratch, alive: np.ndarray) -> bool:
    """Whether both kinds of rows are kept."""
    kinds = np.frombuffer(scratch.is_text, dtype=np.int8)[alive]
    return bool(len(kinds) and kinds.min() != kinds.max())


def _sample(rows: np.ndarray, seed: int) -> np.ndarray:
    distinct = np.unique(rows)
    if len(distinct) <= MAX_SAMPLE:
        return distinct
    found: np.ndarray = np.sort(np.random.default_rng(seed).choice(distinct, MAX_SAMPLE, replace=False))
    return found


def _examples(
    scratch: Scratch, selection: Selection, sources: list[Source], intake: Intake
) -> list[dict[str, str]]:
    """The first duplicates of each kind, side by side; personal data is masked here in any case."""
    found = []
    for kind in (EXACT, NEAR):
        pairs = [(row, other) for row, reason, _, other in selection.taken_out if reason == kind]
        for row, other in pairs[:MAX_EXAMPLES]:
            found.append(
                {
                    "kind": kind,
                    "kept": location(scratch, sources, other),
                    "kept_text": _shown(scratch.text(other), intake),
                    "taken": location(scratch, sources, row),
                    "taken_text": _shown(scratch.text(row), intake),
                }
            )
    return found


def _masked(text: str, intake: Intake) -> str:
    """For the report, which shows no item in any mode that looks for them."""
    return text if intake.finder is None else masked(text, intake.finder.find(text))


def _shown(text: str, intake: Intake) -> str:
    text = _masked(text, intake)
    return text if len(text) <= EXAMPLE_CHARS else text[: EXAMPLE_CHARS - 1].rstrip() + "…"


def location(scratch: Scratch, sources: list[Source], row: int) -> str:
    """FILE:LINE of a row."""
    return f"{sources[scratch.sources[row]].shown}:{scratch.lines[row]}"
