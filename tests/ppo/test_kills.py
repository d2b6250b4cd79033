"""A quick pass of scripts/prove/kills.py: SIGKILL at random moments and inside saves, then resume, then compare.

And what the comparison itself can see, so that a proof that compares nothing would fail.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf.core.checkpoint import commit_checkpoint
from rlhf.core.files import write_json
from rlhf.core.metrics import MetricsLog
from rlhf.core.run import Manifest

PROVE = Path(__file__).resolve().parents[2] / "scripts" / "prove"
sys.path.insert(0, str(PROVE))

# The parts of a script: they lie beside it, not in a package that is installed.
from killing.compare import difference  # noqa: E402
from killing.lines import layer_of  # noqa: E402


@pytest.mark.long
def test_two_kills_and_a_stop_lose_nothing() -> None:
    command = [sys.executable, str(PROVE / "kills.py"), "--kills", "2", "--stops", "1", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kills at a random moment\n1 kills inside a save\n" in done.stdout
    assert ", 0 failures, " in done.stdout


def finished_run(out: Path) -> Path:
    """Two checkpoints with a tensor and a file of JSON, an adapter, metrics and the marker."""

    def write(folder: Path, step: int) -> None:
        torch.save({"w": torch.arange(4.0) + step}, folder / "state.pt")
        write_json(folder / "trainer_state.json", {"step": step, "log": [{"loss": 1.5, "num_tokens": 3}]})

    for step in (1, 2):
        commit_checkpoint(out / "checkpoints", step, lambda folder, step=step: write(folder, step))
        MetricsLog(out / "metrics.jsonl").log(step, loss=1.0 / step, seconds=0.1)
    (out / "adapter").mkdir()
    (out / "adapter" / "weights").write_bytes(bytes(8))
    write_json(out / "manifest.json", Manifest(stage="test", created="now", metrics={"loss": 0.5}))
    (out / "FINISHED").touch()
    return out


def test_every_difference_between_two_runs_is_seen(tmp_path: Path) -> None:
    one = finished_run(tmp_path / "one")
    last = "checkpoints/step-00000002"

    def changed(name: str) -> Path:
        shutil.rmtree(tmp_path / "two", ignore_errors=True)
        shutil.copytree(one, tmp_path / "two")
        return tmp_path / "two" / name

    def found() -> str:
        return difference(one, tmp_path / "two", ["adapter"])

    changed("")
    assert found() == ""
    changed("adapter/weights").write_bytes(bytes([0, 0, 0, 1, 0, 0, 0, 0]))
    assert found() == "adapter/weights"
    changed(".model.building-7").touch()
    assert found() == "what it holds: ['.model.building-7']"
    changed("checkpoints/.trl").mkdir()
    assert found() == "checkpoints: ['.trl']"
    torch.save({"w": torch.tensor([2.0, 3.0, 4.0, 5.0000005])}, changed(f"{last}/state.pt"))
    assert found() == f"{last}/state.pt"
    write_json(changed(f"{last}/trainer_state.json"), {"step": 2, "log": [{"loss": 1.6, "num_tokens": 3}]})
    assert found() == f"{last}/trainer_state.json"
    # trl counts tokens anew in a resumed run; that is no difference
    write_json(changed(f"{last}/trainer_state.json"), {"step": 2, "log": [{"loss": 1.5, "num_tokens": 9}]})
    assert found() == ""
    MetricsLog(changed("metrics.jsonl")).log(3, loss=0.1)
    assert found() == "metrics.jsonl"
    changed("FINISHED").unlink()
    assert found() == "one is not finished"


def test_lines_are_told_apart_by_whose_they_are() -> None:
    repository = PROVE.parents[1]
    assert layer_of(str(repository / "rlhf/core/checkpoint.py")) == "checkpoint.py"
    assert layer_of(str(repository / "sft/train.py")) == "the rest of ours"
    assert layer_of(torch.serialization.__file__) == "libraries"
    assert layer_of(str(PROVE / "killing/lines.py")) == ""
