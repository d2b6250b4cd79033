"""The command line: exit codes, one line per error, and the options that every command shares."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from pydantic import Field

import rlhf.cli as cli
from rlhf.core.config import Settings
from rlhf.core.errors import DataError, GuardStop, Stopped
from rlhf.core.run import Launch

REPOSITORY = Path(__file__).resolve().parents[1]


class ToyConfig(Settings):
    """A toy."""

    rate: float = Field(0.5, gt=0, description="rate")


class Recorder:
    """Stands in for a stage: remembers its call, or raises what it was told to raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[ToyConfig, Launch]] = []
        self.error: BaseException | None = None

    def run(self, settings: ToyConfig, launch: Launch) -> None:
        self.calls.append((settings, launch))
        if self.error is not None:
            raise self.error


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    recorder = Recorder()
    module = types.ModuleType("toy_stage")
    module.Config, module.run = ToyConfig, recorder.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_stage", module)
    monkeypatch.setitem(
        cli.COMMANDS, "toy", cli.Command("toy_stage:Config", "toy_stage:run", "a toy", training=True)
    )
    monkeypatch.setitem(cli.COMMANDS, "toy-view", cli.Command("toy_stage:Config", "toy_stage:run", "a view"))
    monkeypatch.chdir(tmp_path)
    return recorder


def test_a_stage_gets_settings_and_launch(toy: Recorder, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("rate: 0.1\n")
    options = ["--config", "toy.yaml", "--out", "o", "--resume", "--force", "--dry-run", "--workspace", "w"]
    assert cli.main(["toy", *options]) == 0
    settings, launch = toy.calls[0]
    assert settings.rate == 0.1
    assert launch == Launch(
        workspace=tmp_path / "w",
        db=f"sqlite:///{tmp_path}/w/feedback.db",
        out=Path("o"),
        resume=True,
        force=True,
        dry_run=True,
    )
    assert cli.main(["toy", "--rate", "2", "--db", "postgresql://host/name"]) == 0
    assert toy.calls[1][0].rate == 2
    assert toy.calls[1][1].db == "postgresql://host/name"
    assert toy.calls[1][1].workspace == tmp_path / "rlhf-workspace"


def test_print_config_is_a_config_file(
    toy: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["toy", "--rate", "0.25", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert printed == "rate: 0.25\n"
    assert not toy.calls
    (tmp_path / "again.yaml").write_text(printed)
    assert cli.main(["toy", "--config", "again.yaml"]) == 0
    assert toy.calls[0][0].rate == 0.25


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["toyy"], "unknown command 'toyy'; did you mean 'toy'?"),
        ([], "no command given"),
        (["toy", "--ratee", "1"], "rlhf toy: unknown option '--ratee'; did you mean '--rate'?"),
        (["toy", "--rate", "-1"], "rlhf toy: --rate: expected greater than 0; found -1.0"),
        (["toy", "--out"], "rlhf toy: argument --out: expected one argument"),
        (["toy", "--config", "none.yaml"], "none.yaml: no such config file"),
        (
            ["toy", "--db", "feedback.db"],
            "--db: expected a URL such as sqlite:///feedback.db; found 'feedback.db'",
        ),
        (["toy-view", "--resume"], "rlhf toy-view: unknown option '--resume'"),
        (["toy", "--work", "x"], "rlhf toy: unknown option '--work'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    toy: Recorder, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert cli.main(argv) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"rlhf: error: {message}")
    assert not toy.calls


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("x.jsonl:3: broken\n  JSON"), 2, "rlhf: error: x.jsonl:3: broken JSON"),
        (GuardStop("loss is nan"), 3, "rlhf: error: loss is nan"),
        (Stopped("stopped by SIGTERM", 15), 143, "rlhf: error: stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "rlhf: error: interrupted"),
        (PermissionError(13, "Permission denied", "/root/x"), 2, "rlhf: error: /root/x: Permission denied"),
        (OSError(28, "No space left on device", "/x"), 2, "rlhf: error: /x: No space left on device"),
    ],
)
def test_what_a_stage_raises_becomes_one_line_and_its_exit_code(
    toy: Recorder, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    toy.error = error
    assert cli.main(["toy"]) == code
    assert capsys.readouterr().err == line + "\n"


def test_a_fault_of_ours_names_the_file_with_the_traceback(
    toy: Recorder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli.tempfile, "gettempdir", lambda: str(tmp_path))
    toy.error = ZeroDivisionError("division\nby zero")
    assert cli.main(["toy"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("rlhf: internal fault: ZeroDivisionError: division by zero (details in ")
    assert text.count("\n") == 1
    (log,) = tmp_path.glob("rlhf-fault-*.log")
    assert str(log) in text
    assert "Traceback" in log.read_text()
    assert log.read_text().startswith("rlhf toy\n")

    monkeypatch.setenv("RLHF_TRACEBACK", "1")
    assert cli.main(["toy"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_quiet() -> None:
    program = (
        "import sys, types, rlhf.cli as cli\n"
        "from rlhf.core.config import Settings\n"
        "class C(Settings): pass\n"
        "m = types.ModuleType('m'); m.C = C; m.run = lambda s, l: print('x' * 10_000_000)\n"
        "sys.modules['m'] = m; cli.COMMANDS['talk'] = cli.Command('m:C', 'm:run', 'talk')\n"
        "sys.exit(cli.main(['talk']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141


def test_help_of_a_command(toy: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--rate FLOAT" in text
    assert "--workspace DIR" in text
    assert "--dry-run" in text
    assert cli.main(["toy-view", "--help"]) == 0
    assert "--dry-run" not in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rlhf-loop ")


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_exists_and_describes_its_settings(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = cli.COMMANDS[name]
    settings = cli._load(command.settings)
    assert issubclass(settings, Settings)
    taken = {option for option in cli._LAUNCH_OPTIONS if option in settings.model_fields}
    assert not taken & set(command.launch_options), "a setting would be shadowed by a launch option"
    undescribed = [field for field, info in settings.model_fields.items() if not info.description]
    nested = [field for field in undescribed if issubclass_of_settings(settings, field)]
    assert undescribed == nested
    assert cli.main([name, "--help"]) == 0
    assert "usage: rlhf " in capsys.readouterr().out


def issubclass_of_settings(settings: type[Settings], field: str) -> bool:
    kind = settings.model_fields[field].annotation
    return isinstance(kind, type) and issubclass(kind, Settings)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_runner_exists(name: str) -> None:
    assert callable(cli._load(cli.COMMANDS[name].runner))


CONFIGS = sorted((REPOSITORY / "scripts" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = path.stem.split("_")[0]
    assert cli.main([command, "--config", str(path), "--print-config"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_configs_ship_for_every_training_command() -> None:
    shipped = {path.stem.split("_")[0] for path in CONFIGS}
    assert shipped >= {name for name, command in cli.COMMANDS.items() if command.training}


@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "prefer"])
def test_scripts_are_the_command(name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / f"train_{name}.py"), "--no-such-option"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"rlhf: error: rlhf {name}: unknown option '--no-such-option'")


def test_accelerate_launches_a_script(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ACCELERATE_LOG_LEVEL": "error"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    script = str(REPOSITORY / "scripts" / "train_ppo.py")
    done = subprocess.run(
        [*launcher, script, "--kl-coef", "0.125", "--print-config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "kl_coef: 0.125" in done.stdout
