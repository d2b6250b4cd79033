"""Running `rlhf prepare` on rows given as Python values."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.run import Launch
from sft.prepare.config import PrepareConfig
from sft.prepare.run import run


@dataclass
class Prepared:
    """What a run left behind."""

    out: Path
    splits: dict[str, list[dict[str, Any]]]
    quarantine: list[dict[str, Any]]
    report: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for rows in self.splits.values() for row in rows]

    @property
    def answers(self) -> list[str]:
        return [row["messages"][-1]["content"] if "messages" in row else row["text"] for row in self.rows]


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Prepared]:
    """prepare(rows or files by name, **settings); files are written to the test's folder."""

    def prepared(
        data: list[dict[str, Any]] | dict[str, Any], /, *, out: str = "out", **settings: Any
    ) -> Prepared:
        files = data if isinstance(data, dict) else {"data.jsonl": data}
        for name, rows in files.items():
            text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / name).write_text(text, encoding="utf-8")
        named = settings.pop("data", tuple(str(tmp_path / name) for name in files))
        values = {
            "near_duplicates": 0,
            "validation_fraction": 0.0,
            "test_fraction": 0.0,
            "order": "keep",
        } | settings
        run(PrepareConfig(data=named, **values), Launch(workspace=tmp_path, db="", out=tmp_path / out))
        folder = tmp_path / out
        splits = {name: jsonl(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return Prepared(folder, splits, jsonl(folder / "quarantine.jsonl"), report)

    return prepared
