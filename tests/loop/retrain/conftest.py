"""A workspace of the tiny world with ratings; see `retrain_world`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feedback_app.store.engine import Store
from rlhf.core.files import write_jsonl
from rlhf.core.run import Launch
from rlhf.core.stats import Interval
from rlhf.loop.gates import reward_accuracy
from rlhf.loop.reward_history import History, Measured

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2] / "scripts" / "prove")]

from retrain_world import World, tiny  # noqa: E402


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with 60 pairs, each judged by two of three raters, to be copied."""
    root = tmp_path_factory.mktemp("retrain") / "world"
    _, launch = tiny.make_world(root)
    with Store.open(launch.db) as store:
        tiny.rate(store, 60, 0)
    rows = [json.loads(line) for line in (root / "heldout.jsonl").read_text().splitlines()]
    write_jsonl(root / "heldout.jsonl", [row | {"prompt_id": f"h{i}"} for i, row in enumerate(rows)])
    return root


@pytest.fixture
def world(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A copy of the tiny world, in which a reward model's accuracy is made up."""
    root = tmp_path / "world"
    shutil.copytree(tiny_world, root)
    launch = Launch(workspace=root, db=f"sqlite:///{root}/feedback.db")
    with Store.open(launch.db) as store:
        found = World(tiny.config_of(gates={"min_win_rate": 0.5}), launch, store)

        def measure(rewards: Any, *rest: Any) -> History:
            accuracy = Interval(
                found.script.accuracy, found.script.accuracy - 0.1, found.script.accuracy + 0.1, 40
            )
            runs = [Measured(str(path), "", 1, accuracy, True, None) for path in rewards]
            return History(runs, 40, 20, 0, 0, None)

        monkeypatch.setattr(reward_accuracy, "measure", measure)
        yield found
