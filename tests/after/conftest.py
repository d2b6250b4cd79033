"""Finished runs without training: a tiny model or adapter in a run directory with a manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.core.config import Settings
from rlhf.core.run import Launch, Run


class AnySettings(Settings):
    lr: float = 1e-3
    data: str = "demonstrations.jsonl"
    greeting: str = "Dear Maria, this is a sentence and no setting"
    reviewers: tuple[str, ...] = ("maria", "jo")


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return Launch(workspace, f"sqlite:///{workspace / 'feedback.db'}")


@pytest.fixture
def finished(launch: Launch, tmp_path: Path) -> Callable[..., Path]:
    """finished(name, stage, model=DIR, parents={...}) -> a finished run in the workspace with that model."""

    def make(
        name: str, stage: str, *, model: Path | None = None, folder: str = "model", **given: Any
    ) -> Path:
        out = launch.workspace / "runs" / name
        parents = given.pop("parents", {})
        with Run.start(
            out, stage=stage, settings=AnySettings(), launch=launch, parents=parents, seed=3
        ) as record:
            if model is not None:
                shutil.copytree(model, out / folder)
            if given.get("finish", True):
                record.finish(
                    {"validation_loss": 1.25, "num_train": 12, "worst": float("nan")},
                    extra={
                        "raters": [{"annotator": "maria", "weight": 0.5}],
                        "samples": ["the secret prompt"],
                    },
                )
        return out

    return make
