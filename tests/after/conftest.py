"""Finished runs without training: a tiny model or adapter in a run directory with a manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.core.adapters import save_policy
from rlhf.core.backbone import Backbone
from rlhf.core.config import Settings
from rlhf.core.inputs import model_name
from rlhf.core.run import Launch, Run
from rlhf.core.settings import LoraSettings, ModelSettings


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


@pytest.fixture
def letters(launch: Launch) -> Path:
    """24 demonstrations of 12 prompts: the answer repeats the letter that was asked for."""
    path = launch.workspace / "letters.jsonl"
    rows = [{"prompt": f"say {c}", "completion": c * n} for c in "abcdefghijkl" for n in (3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def adapter(launch: Launch, tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """adapter(name, seed=, r=) -> a LoRA adapter of random numbers on the tiny model, as a run's `adapter` folder."""

    def make(name: str, *, seed: int, r: int = 2) -> Path:
        base = str(tiny_model(num_layers=2))
        backbone = Backbone.load(base, ModelSettings(device="cpu"), name=model_name(base, launch))
        role = backbone.add_role("policy", LoraSettings(r=r, alpha=2.0 * r, adapter_layers=1.0), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in role.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        folder = launch.workspace / "runs" / name / "adapter"
        save_policy(role, folder, backbone)
        return folder

    return make
