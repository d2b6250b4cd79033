"""A workspace with a tiny model, a policy adapter that differs from it, prompts and a few judges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf.core.adapters import save_policy
from rlhf.core.backbone import Backbone
from rlhf.core.run import Launch
from rlhf.core.settings import LoraSettings, ModelSettings

JUDGES = """
def letters(prompts, completions):
    return [sum(c.isascii() and c.isalpha() for c in text) for text in completions]

def always_first(prompts, first, second):
    return [1] * len(prompts)

def longer(prompts, first, second):
    return [len(a) - len(b) for a, b in zip(first, second)]

def nan(prompts, completions):
    return [float("nan")] * len(prompts)
"""


@pytest.fixture
def loop_launch(workspace: Launch, load_tiny: Callable[..., Backbone]) -> Launch:
    """models/base, runs/candidate (an adapter), prompts.jsonl with 12 prompts, judges.py."""
    root = workspace.workspace
    backbone = Backbone.load(root / "models" / "base", ModelSettings(device="cpu"), name="models/base")
    role = backbone.add_role("policy", LoraSettings(r=4), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.normal_(std=0.1, generator=generator)
    save_policy(role, root / "runs" / "candidate", backbone)
    write_prompts(root / "prompts.jsonl", 12)
    (root / "judges.py").write_text(JUDGES)
    return workspace


def write_prompts(path: Path, count: int) -> None:
    path.write_text("".join(json.dumps({"prompt": f"tell a tale of {i}"}) + "\n" for i in range(count)))
