"""Real texts for supervised tuning: instructions to learn, stories that the small model knows already."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from rlhf.core.files import write_jsonl
from rlhf.core.run import Launch

Rows = list[dict[str, Any]]

STORY_END = "<|endoftext|>"
BASE = Path("models") / "stories260K"


def instructions(data: Path, seed: int) -> Rows:
    """1,100 instructions with their answers, shuffled."""
    path = data / "instructions" / "instruction-data.json"
    rows = []
    for item in json.loads(path.read_text(encoding="utf-8")):
        asked = "\n".join(part for part in (item["instruction"], item["input"]) if part)
        rows.append({"prompt": f"{asked}\nAnswer:", "completion": f" {item['output']}"})
    Random(seed).shuffle(rows)
    return rows


def stories(data: Path) -> Rows:
    """2,316 stories of the kind that the small model was pretrained on, in the order of the file."""
    text = (data / "tinystories" / "train_first2MiB.txt").read_text(encoding="utf-8")
    return [{"text": part.strip()} for part in text.split(STORY_END) if part.strip()]


def write_once(path: Path, rows: Rows) -> Path:
    """A file of rows; one that is there already stays, so that a proof can go on."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, rows)
    return path


def launch_in(folder: Path, name: str) -> Launch:
    """A run in the proof's folder that goes on where it stopped."""
    return Launch(
        workspace=folder, db=f"sqlite:///{folder}/feedback.db", out=folder / "runs" / name, resume=True
    )


def metrics_of(folder: Path, name: str) -> dict[str, Any]:
    """The figures of a finished run."""
    found: dict[str, Any] = json.loads((folder / "runs" / name / "manifest.json").read_text())["metrics"]
    return found


def span(metrics: dict[str, Any], name: str, digits: int = 3) -> str:
    """A figure with its interval."""
    return f"{metrics[name]:.{digits}f} [{metrics[f'{name}_low']:.{digits}f}, {metrics[f'{name}_high']:.{digits}f}]"
