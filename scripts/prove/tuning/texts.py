"""Real texts for supervised tuning: instructions to learn, stories that the small model knows already."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from rlhf.core.files import write_jsonl
from rlhf.core.run import Launch
from rlhf.core.settings import LoraSettings, ModelSettings, OptimSettings
from sft.config import SFTConfig
from sft.train import run as sft

Rows = list[dict[str, Any]]

STORY_END = "<|endoftext|>"
BASE = Path("models") / "stories260K"
HELD_OUT = 150
CPU = ModelSettings(device="cpu")


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


def tune(
    name: str, seed: int, work: Path, *, data: Path, epochs: int, lr: float, **changes: Any
) -> tuple[Path, Path]:
    """LoRA on the instructions of a seed, in work/runs/NAME. Returns (the run, the file of held-out ones)."""
    rows = instructions(data, seed)
    held = write_once(work / f"held_{seed}.jsonl", rows[:HELD_OUT])
    train = write_once(work / f"train_{seed}.jsonl", rows[HELD_OUT:])
    config = SFTConfig(
        base=str(data / BASE),
        data=(str(train),),
        num_epochs=epochs,
        on_too_long="drop",
        lora=LoraSettings(r=16, alpha=32, dropout=0.0, adapter_layers=1.0),
        optim=OptimSettings(lr=lr, schedule="cosine", warmup_steps=10),
        model=CPU,
        seed=seed,
        **changes,
    )
    sft(config, launch_in(work, name))
    return work / "runs" / name, held


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
