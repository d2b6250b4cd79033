"""Runs `rlhf prepare` on the planted problems and says what it missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preparing.problems import Planted
from rlhf.core.run import Launch
from sft.prepare.config import PrepareConfig
from sft.prepare.run import run

MIN_RECALL = 0.95


def judge(found: Planted) -> tuple[dict[str, str], list[str]]:
    """(figures, complaints); without complaints everything that was planted was found and every good row kept."""
    out = found.folder / "out"
    config = PrepareConfig(
        data=tuple(str(found.folder / name) for name in found.data),
        check=(str(found.folder / found.check),),
        validation_fraction=0.2,
        test_fraction=0.2,
    )
    run(config, Launch(workspace=found.folder, db="", out=out))
    splits = {name: _rows(out / f"{name}.jsonl") for name in ("train", "validation", "test")}
    written = "\n".join(json.dumps(row, ensure_ascii=False) for rows in splits.values() for row in rows)
    quarantine = _rows(out / "quarantine.jsonl")
    report = json.loads((out / "report.json").read_text())
    complaints: list[str] = []
    figures = {
        "good rows kept": _good(found, written, complaints),
        "faults in quarantine with their reason": _faults(found, quarantine, complaints),
        "copies taken out": _copies(found, report, quarantine, complaints),
        "near prompts in one split": _near_prompts(found, splits, complaints),
        "leaks taken out": _leaks(found, written, complaints),
        "personal items masked": _personal(
            found, written + (out / "quarantine.jsonl").read_text(), complaints
        ),
    }
    if any(item in (out / "report.html").read_text() for item in found.items):
        complaints.append("the report shows a personal item")
    return figures, complaints


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _good(found: Planted, written: str, complaints: list[str]) -> str:
    wanted = [marker for markers in found.good.values() for marker in markers]
    lost = [marker for marker in wanted if marker not in written]
    complaints += [f"a good row is lost: {marker}" for marker in lost]
    return f"{len(wanted) - len(lost)} of {len(wanted)}"


def _faults(found: Planted, quarantine: list[dict[str, Any]], complaints: list[str]) -> str:
    missed = []
    for name, reason in found.faults:
        listed = (row for row in quarantine if row["file"].endswith(name) and reason in row["reason"])
        if not any(isinstance(row["line"], int) and row["line"] > 0 for row in listed):
            missed.append(f"{name}: '{reason}' is not in quarantine")
    complaints += missed
    return f"{len(found.faults) - len(missed)} of {len(found.faults)}"


def _copies(
    found: Planted, report: dict[str, Any], quarantine: list[dict[str, Any]], complaints: list[str]
) -> str:
    number = 0
    for kind in ("exact duplicate", "near duplicate"):
        wanted = sum(copy.endswith(kind) for copy in found.copies)
        listed = sum(
            row["file"].endswith("duplicates.jsonl") and row["reason"].startswith(kind) for row in quarantine
        )
        number += min(wanted, listed)
        if listed != wanted or report["rows"]["reasons"].get(kind, 0) < wanted:
            complaints.append(f"{wanted} {kind}s were planted, {listed} were found")
    return f"{number} of {len(found.copies)}"


def _near_prompts(found: Planted, splits: dict[str, list[dict[str, Any]]], complaints: list[str]) -> str:
    split_of = {row["messages"][0]["content"]: name for name, rows in splits.items() for row in rows}
    apart = [pair for pair in found.near_prompts if split_of.get(pair[0]) != split_of.get(pair[1])]
    complaints += [f"near prompts are in different splits: {pair[0][:40]}" for pair in apart]
    if len({split_of.get(pair[0]) for pair in found.near_prompts}) < 2:
        complaints.append("all near prompts are in one split, so nothing was shown")
    return f"{len(found.near_prompts) - len(apart)} of {len(found.near_prompts)}"


def _leaks(found: Planted, written: str, complaints: list[str]) -> str:
    left = [marker for marker in found.leaked if marker in written]
    complaints += [f"a leaked row is left: {marker}" for marker in left]
    return f"{len(found.leaked) - len(left)} of {len(found.leaked)}"


def _personal(found: Planted, written: str, complaints: list[str]) -> str:
    left = [item for item in found.items if json.dumps(item, ensure_ascii=False)[1:-1] in written]
    if len(left) > (1 - MIN_RECALL) * len(found.items):
        complaints.append(f"{len(left)} of {len(found.items)} personal items are left, such as {left[0]!r}")
    return f"{len(found.items) - len(left)} of {len(found.items)}"
