"""A small workspace with comparisons, thumbs, demonstrations, prompts and a reward that is a plain function."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.run import Launch
from rlhf.preference.config import PreferConfig

NOUNS = ("cat", "mat", "birds", "man", "tale", "rain", "sun", "order", "number", "ticket", "late", "happy")
REWARD = """
def letters(prompts, completions):
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]
"""


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def comparisons(start: int, count: int) -> list[dict[str, Any]]:
    """'thank' was chosen over 'sorry'; every sixth is a tie; the first prompt was judged by two raters."""
    rows = []
    for i in range(start, start + count):
        noun, other = NOUNS[i % len(NOUNS)], NOUNS[(5 * i + 1) % len(NOUNS)]
        tie = i % 6 == 5
        row = {
            "prompt": user(f"tell of {noun} {i}"),
            "chosen": assistant(f"the {other} thank {noun}"),
            "rejected": assistant(f"the {other} sorry {noun}"),
            "margin": 0.0 if tie else 1.0 + i % 3,
            "weight": 1.0,
            "tie": tie,
            "annotator_id": f"rater {i % 3}",
            "judgement_id": f"j{i}",
        }
        rows.append(row)
        if i == start:
            rows.append(row | {"annotator_id": "another", "judgement_id": f"k{i}"})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def prefer_template(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    """A workspace that tests copy."""
    root = tmp_path_factory.mktemp("prefer") / "workspace"
    shutil.copytree(tiny_model(), root / "models" / "base")
    snapshot = root / "snapshots" / "1"
    for split, start, count in (("train", 0, 24), ("validation", 100, 8), ("test", 200, 8)):
        write_rows(snapshot / f"{split}.jsonl", comparisons(start, count))
        thumbs = [
            {
                "prompt": user(f"what of {NOUNS[i % 12]} {start + i}"),
                "completion": assistant(f"the {NOUNS[(i + 3) % 12]} {'thank you' if i % 2 else 'sorry'}"),
                "label": bool(i % 2),
                "judgement_id": f"t{start + i}",
            }
            for i in range(6)
        ]
        write_rows(snapshot / "unpaired" / f"{split}.jsonl", thumbs)
        told = [
            {"messages": [*user(f"say {noun} {start}"), *assistant(f"thank you {noun}")]}
            for noun in NOUNS[:3]
        ]
        write_rows(snapshot / "sft" / f"{split}.jsonl", told)
    write_rows(root / "prompts.jsonl", [{"prompt": f"tell a tale of {noun}"} for noun in NOUNS])
    write_rows(
        root / "eval.jsonl", [{"prompt": f"tell of {word}"} for word in ("hello", "sad", "good", "bad")]
    )
    (root / "reward.py").write_text(REWARD)
    return root


@pytest.fixture
def prefer_launch(prefer_template: Path, tmp_path: Path) -> Launch:
    root = tmp_path / "workspace"
    shutil.copytree(prefer_template, root)
    return Launch(workspace=root, db=f"sqlite:///{root}/feedback.db", out=root / "runs" / "prefer")


@pytest.fixture
def prefer_config(prefer_launch: Launch) -> Callable[..., PreferConfig]:
    """prefer_config(method, **changes): small settings that name the files of the workspace."""

    def make(method: str = "dpo", **changes: Any) -> PreferConfig:
        settings: dict[str, Any] = {
            "method": method,
            "backbone": "models/base",
            "num_epochs": 2,
            "batch_size": 8,
            "near_duplicates": 0.0,
            "lora": {"r": 4, "alpha": 8},
            "optim": {"lr": 1e-2, "schedule": "linear"},
            "model": {"device": "cpu"},
        }
        if method in ("grpo", "rloo", "online-dpo", "raft"):
            settings |= {
                "reward": f"{prefer_launch.workspace}/reward.py:letters",
                "prompts": "prompts.jsonl",
                "eval_prompts": "eval.jsonl",
                "sampling": {"max_completion_tokens": 8},
                "online": {
                    "num_iterations": 3,
                    "num_prompts": 3,
                    "samples_per_prompt": 3,
                    "num_minibatches": 2,
                    "score_normalization": "none",
                    "missing_end_penalty": 0.0,
                    "eval_every": 2,
                    "save_every": 2,
                },
            }
        else:
            settings["snapshot"] = "snapshots/1"
        for name, value in changes.items():
            both_nested = isinstance(value, dict) and isinstance(settings.get(name), dict)
            settings[name] = settings[name] | value if both_nested else value
        return PreferConfig.model_validate(settings)

    return make


def elsewhere(launch: Launch, name: str, **changes: Any) -> Launch:
    """The same launch into another directory."""
    return replace(launch, out=launch.workspace / "runs" / name, **changes)
