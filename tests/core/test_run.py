"""Run directories: nobody overwrites anybody, nothing is lost, and a finished run stays finished."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from rlhf.core.config import Settings
from rlhf.core.errors import BusyError, ConfigError, DataError
from rlhf.core.run import Launch, Run, Workspace, directory_sha256, is_finished, read_manifest


class Small(Settings):
    lr: float = Field(0.1, description="rate")
    name: str = Field("x", description="name")


def begin(
    root: Path,
    *,
    settings: Small | None = None,
    resume: bool = False,
    force: bool = False,
    stage: str = "sft",
    seed: int = 0,
) -> Run:
    launch = Launch(workspace=root, db="sqlite://", resume=resume, force=force)
    data = root / "data.jsonl"
    if not data.exists():
        data.write_text("{}\n")
    return Run.start(
        root / "runs" / "one",
        stage=stage,
        settings=settings or Small(),
        launch=launch,
        parents={"snapshot": data},
        seed=seed,
    )


def finish(root: Path) -> Path:
    with begin(root) as run:
        (run.path / "weights").write_text("trained")
        run.finish({"loss": 1.0}, {"note": "n"})
    return run.path


def test_a_new_run_writes_what_it_is_made_from(tmp_path: Path) -> None:
    with begin(tmp_path, seed=7) as run:
        assert (run.finished, run.resuming) == (False, False)
        assert (run.path / "config.yaml").read_text() == "lr: 0.1\nname: x\n"
        assert not is_finished(run.path)
        run.finish({"loss": 1.0})
    manifest = read_manifest(run.path)
    assert is_finished(run.path)
    assert manifest.parents["snapshot"].path == "data.jsonl"  # relative: the workspace can be moved
    assert manifest.snapshot == manifest.parents["snapshot"]
    assert manifest.metrics == {"loss": 1.0}
    assert (manifest.stage, manifest.seed, manifest.settings) == ("sft", 7, {"lr": 0.1, "name": "x"})
    assert manifest.packages["numpy"]
    assert manifest.code_commit


def test_a_second_launcher_is_refused_at_once(tmp_path: Path) -> None:
    with begin(tmp_path):
        start = time.monotonic()
        with pytest.raises(BusyError, match="another process is running here"):
            begin(tmp_path, resume=True)
        with pytest.raises(BusyError):
            begin(tmp_path, force=True)
        assert time.monotonic() - start < 2
    with begin(tmp_path, resume=True) as run:
        assert run.resuming


def test_the_lock_is_seen_by_other_processes_and_dies_with_its_holder(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from test_run import begin\n"
        "run = begin(Path(sys.argv[1]))\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError):
            begin(tmp_path, resume=True)
    finally:
        holder.kill()
        holder.wait()
    with begin(tmp_path, resume=True) as run:  # SIGKILL leaves an unfinished run, not a locked one
        assert run.resuming


def test_open_takes_the_directory_and_writes_nothing_until_begin(tmp_path: Path) -> None:
    """Between the two a stage reads its inputs: one that is refused leaves everything as it was."""
    path = finish(tmp_path)
    launch = Launch(workspace=tmp_path, db="sqlite://", force=True)
    options: dict[str, Any] = {"stage": "sft", "settings": Small(lr=2.0), "launch": launch, "seed": 0}
    before = directory_sha256(path)
    with Run.open(path, parents={}, **options) as run:
        assert not run.finished
        with pytest.raises(BusyError):
            begin(tmp_path)
    assert directory_sha256(path) == before
    assert not path.with_name("one.old-1").exists()
    with pytest.raises(DataError), Run.open(tmp_path / "runs" / "two", parents={}, **options):
        raise DataError("prompts.jsonl:3: broken")
    assert not (tmp_path / "runs" / "two").exists()
    with Run.open(path, parents={}, **options) as run:
        run.begin()
    assert is_finished(path.with_name("one.old-1"))
    assert not is_finished(path)


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    path = finish(tmp_path)
    before = directory_sha256(path)
    for resume in (False, True):
        with begin(tmp_path, resume=resume) as run:
            assert (run.finished, run.resuming) == (True, False)
            assert run.manifest.metrics == {"loss": 1.0}
    assert directory_sha256(path) == before


def test_a_finished_run_with_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = finish(tmp_path)
    before = directory_sha256(path)
    with pytest.raises(ConfigError, match=r"finished with other settings \(lr: 0\.1 -> 0\.2\)"):
        begin(tmp_path, settings=Small(lr=0.2))
    with pytest.raises(ConfigError, match=r"\(seed: 0 -> 1\)"):
        begin(tmp_path, seed=1)
    (tmp_path / "data.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(ConfigError, match=r"content of snapshot: sha256 \w+ -> sha256 \w+"):
        begin(tmp_path)
    with pytest.raises(ConfigError, match="holds a sft run, not ppo"):
        begin(tmp_path, stage="ppo")
    assert directory_sha256(path) == before


def test_an_unfinished_run_wants_a_decision(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        run.metrics.log(1, loss=2.0)
    with pytest.raises(ConfigError, match="unfinished sft run; continue it with --resume, or --force"):
        begin(tmp_path)
    with pytest.raises(
        ConfigError, match=r"settings changed since it began \(lr: 0\.1 -> 0\.2, name: x -> y\)"
    ):
        begin(tmp_path, settings=Small(lr=0.2, name="y"), resume=True)
    with begin(tmp_path, resume=True) as run:
        assert run.resuming
        assert (run.path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    with begin(tmp_path, settings=Small(lr=0.2), resume=True, force=True) as run:
        assert run.resuming
        assert "lr: 0.2" in (run.path / "config.yaml").read_text()


def test_force_renames_and_never_deletes(tmp_path: Path) -> None:
    path = finish(tmp_path)
    for number in (1, 2):
        with begin(tmp_path, settings=Small(lr=number), force=True) as run:
            assert (run.finished, run.resuming) == (False, False)
            assert not (path / "weights").exists()
            old = path.with_name(f"one.old-{number}")
            assert old.is_dir()
            with pytest.raises(BusyError):  # the lock moved to the new directory
                begin(tmp_path, settings=Small(lr=number), resume=True)
    first = path.with_name("one.old-1")
    assert (first / "weights").read_text() == "trained"
    assert is_finished(first)


def test_force_with_resume_on_a_finished_run_starts_over(tmp_path: Path) -> None:
    path = finish(tmp_path)
    with begin(tmp_path, settings=Small(lr=5), resume=True, force=True) as run:
        assert not run.resuming
    assert path.with_name("one.old-1").is_dir()


def test_a_directory_of_something_else_is_left_untouched(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "one"
    out.mkdir(parents=True)
    (out / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(ConfigError, match=r"holds 'thesis\.tex' and is not a run"):
            begin(tmp_path, force=force)
    assert [entry.name for entry in out.iterdir()] == ["thesis.tex"]
    (out / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(ConfigError, match="is not one of a run"):
        begin(tmp_path, force=True)
    assert sorted(entry.name for entry in out.iterdir()) == ["manifest.json", "thesis.tex"]


def test_an_empty_directory_and_the_leftovers_of_a_kill_are_new_runs(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "one"
    out.mkdir(parents=True)
    (out / "run.lock").touch()
    (out / "config.yaml").write_text("lr: 0.1\n")
    (out / ".manifest.json.abc.tmp").write_text("{")
    with begin(tmp_path) as run:
        assert (run.finished, run.resuming) == (False, False)


def test_out_is_a_file_or_an_input_is_missing(tmp_path: Path) -> None:
    launch = Launch(workspace=tmp_path, db="sqlite://")
    options = {"stage": "sft", "settings": Small(), "launch": launch, "seed": 0}
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file; expected a directory"):
        Run.start(tmp_path / "file", parents={}, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"none\.jsonl: no such file or directory"):
        Run.start(tmp_path / "new", parents={"data": tmp_path / "none.jsonl"}, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_a_figure_that_does_not_exist_does_not_cost_the_run(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        run.finish(
            {"accuracy": float("nan"), "low": np.float64("inf"), "n": np.int64(3)},
            {"by": [{"x": float("nan")}]},
        )
    manifest = read_manifest(run.path)
    assert manifest.metrics == {"accuracy": None, "low": None, "n": 3}
    assert manifest.extra == {"by": [{"x": None}]}
    assert is_finished(run.path)


def test_a_failed_run_is_not_finished_and_releases_its_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), begin(tmp_path) as run:
        raise RuntimeError("out of memory")
    assert not is_finished(run.path)
    with begin(tmp_path, resume=True) as run:
        assert run.resuming


def test_a_resumed_run_removes_what_a_kill_left_half_written(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        run.metrics.log(1, loss=0.5)
        for name in (
            "samples/.a.jsonl.x1.tmp",
            ".manifest.json.x2.tmp",
            "checkpoints/.partial-00000002/state.pt",
        ):
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            (run.path / name).write_text("half")
        (run.path / "checkpoints" / "step-00000001").mkdir()
        (run.path / "samples" / "a.jsonl").write_text("whole")
    with begin(tmp_path, resume=True) as run:
        names = {p.relative_to(run.path).as_posix() for p in run.path.rglob("*")} - {"run.lock"}
    assert names == {
        *("config.yaml", "manifest.json", "metrics.jsonl", "samples", "samples/a.jsonl"),
        *("checkpoints", "checkpoints/step-00000001"),
    }


def test_workspace_paths_survive_a_move(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "a")
    text = workspace.relative(tmp_path / "a" / "runs" / "r1")
    assert text == "runs/r1"
    assert Workspace(tmp_path / "b").resolve(text) == tmp_path / "b" / "runs" / "r1"
    outside = workspace.relative(tmp_path / "elsewhere")
    assert workspace.resolve(outside) == tmp_path / "elsewhere"
    assert workspace.db_url == f"sqlite:///{tmp_path / 'a' / 'feedback.db'}"


def test_directory_hash_sees_names_and_contents_but_not_bookkeeping(tmp_path: Path) -> None:
    root = tmp_path / "d"
    (root / "checkpoints" / "1").mkdir(parents=True)
    (root / "a").write_text("1")
    first = directory_sha256(root)
    for name in ("run.lock", "metrics.jsonl", "checkpoints/1/x"):
        (root / name).write_text("changes all the time")
    assert directory_sha256(root) == first
    (root / "a").write_text("2")
    changed = directory_sha256(root)
    assert changed != first
    (root / "a").rename(root / "b")
    assert directory_sha256(root) not in (first, changed)
