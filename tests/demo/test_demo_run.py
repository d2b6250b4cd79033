"""The demo at the smallest size: every stage for real, a complete report, and nothing done twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlhf.core.errors import ConfigError
from rlhf.core.run import Launch, Workspace
from rlhf.demo.config import DemoConfig
from rlhf.demo.run import run

# `make demo`, which CI runs beside the tests, goes the same way at full size.
in_full = pytest.mark.long
TINY = DemoConfig(
    hidden_size=64,
    num_layers=2,
    pretrain_steps=80,
    num_demonstrations=60,
    sft_epochs=1,
    num_rated_prompts=80,
    reward_epochs=1,
    num_ppo_prompts=32,
    ppo_iterations=2,
    ppo_batch=8,
    num_heldout_prompts=24,
)


def _launch(folder: Path) -> Launch:
    return Launch(workspace=folder, db=Workspace(folder).db_url)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run(TINY, _launch(folder))
    return folder


pytestmark = pytest.mark.slow


@in_full
def test_the_report_has_the_promised_figures(workspace: Path) -> None:
    report = json.loads((workspace / "report.json").read_text(encoding="utf-8"))
    assert 0 <= report["reward"]["heldout_accuracy"] <= 1
    assert 0 <= report["raters"]["agreement"] <= 1
    evaluation = report["evaluate"]
    assert 0 <= evaluation["win_rate_low"] <= evaluation["win_rate"] <= evaluation["win_rate_high"] <= 1
    assert 0 <= evaluation["gold_before"] <= 1
    assert 0 <= evaluation["gold_after"] <= 1
    assert evaluation["num_prompts"] == 24
    assert isinstance(evaluation["kl"], float)
    assert set(report["seconds"]) == {
        "world", "base", "sft", "sample", "ratings", "export", "reward", "ppo", "evaluate", "report"
    }  # fmt: skip
    assert "simulated" in report["simulated"]


@in_full
def test_the_page_is_one_file_that_asks_nobody(workspace: Path) -> None:
    page = (workspace / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    # Names of SVG's own vocabularies are no requests.
    outside = [
        u for u in re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page) if not u.startswith(("data:", "#"))
    ]
    assert outside == []
    assert not re.search(r"@import|url\(\s*['\"]?https?:", page)
    assert "Simulated. Everything in this run is simulated" in page


@in_full
def test_a_second_run_does_nothing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in workspace.rglob("*") if p.is_file()}
    run(TINY, _launch(workspace))
    assert f"the report is {workspace / 'report.html'}" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in workspace.rglob("*") if p.is_file()} == before


@in_full
def test_what_is_finished_is_not_repeated(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = json.loads((workspace / "demo.json").read_text(encoding="utf-8"))
    del state["seconds"]["evaluate"], state["seconds"]["report"]
    (workspace / "demo.json").write_text(json.dumps(state), encoding="utf-8")
    capsys.readouterr()
    run(TINY, _launch(workspace))
    stages = re.findall(r"^\[\d+/10\] (\w+):", capsys.readouterr().out, flags=re.MULTILINE)
    assert stages == ["evaluate", "report"]


@in_full
def test_other_settings_need_another_workspace(workspace: Path) -> None:
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1.*choose another --workspace"):
        run(TINY.model_copy(update={"seed": 1}), _launch(workspace))
