"""Whatever a person gets wrong ends in exit code 2 and one line that names it, and nothing that existed is lost."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reward.score import RewardScale
from rlhf.cli import main
from rlhf.core.adapters import save_reward
from rlhf.core.backbone import Backbone
from rlhf.core.files import file_sha256
from rlhf.core.settings import LoraSettings, ModelSettings

GOOD = {
    "prompts.jsonl": {"prompt": "tell a tale"},
    "preferences.jsonl": {"prompt": "tell a tale", "chosen": "thank you", "rejected": "sorry"},
    "demonstrations.jsonl": {"prompt": "tell a tale", "completion": "thank you"},
    "rows.jsonl": {"prompt": "tell a tale", "completion": "thank you"},
}
# command -> (options, the data file among them, the option that takes a model)
COMMANDS = {
    "sft": (["--base", "MODEL", "--data", "DATA"], "demonstrations.jsonl"),
    "sample": (["--model-path", "MODEL", "--prompts", "DATA"], "prompts.jsonl"),
    "reward": (["--backbone", "MODEL", "--snapshot", "DATA"], "preferences.jsonl"),
    "score": (["DATA", "--reward", "runs/scorer", "--backbone", "MODEL"], "rows.jsonl"),
    "ppo": (["--backbone", "MODEL", "--reward", "JUDGE", "--prompts", "DATA"], "prompts.jsonl"),
    "evaluate": (
        ["--candidate", "MODEL", "--baseline", "models/base", "--judge", "JUDGE", "--prompts", "DATA"],
        "prompts.jsonl",
    ),
    "import": (["DATA"], "preferences.jsonl"),
}
WITH_MODEL = [name for name in COMMANDS if name != "import"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    """A workspace with a model, a reward and good data, shared by all cases: none of them may change it."""
    root = tmp_path_factory.mktemp("bad") / "workspace"
    shutil.copytree(tiny_model(), root / "models" / "base")
    backbone = Backbone.load(root / "models" / "base", ModelSettings(device="cpu"), name="models/base")
    role = backbone.add_role("reward", LoraSettings(r=2), seed=0, scalar_head=True)
    save_reward(role, root / "runs" / "scorer", backbone)
    RewardScale(0.0, 1.0, 1.0).save(root / "runs" / "scorer")
    for name, row in GOOD.items():
        (root / name).write_text("".join(json.dumps(row | {"prompt": f"tale {i}"}) + "\n" for i in range(40)))
    (root / "judge.py").write_text("def score(prompts, completions):\n    return [1.0] * len(prompts)\n")
    (root / "not-a-model").mkdir()
    (root / "not-a-model" / "readme.txt").write_text("x")
    (root / "bad-weights").mkdir()
    shutil.copytree(root / "models" / "base", root / "bad-weights", dirs_exist_ok=True)
    weights = root / "bad-weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return root


def hashes(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): file_sha256(p) for p in root.rglob("*") if p.is_file()}


def fails(
    world: Path,
    capfd: pytest.CaptureFixture[str],
    command: str,
    data: Path,
    *extra: str,
    model: str = "models/base",
) -> str:
    """Run a command that must fail; returns its one line without the prefix."""
    before = hashes(world)
    given = {"DATA": str(data), "MODEL": model, "JUDGE": f"{world}/judge.py:score"}
    options = [given.get(option, option) for option in COMMANDS[command][0]]
    device = [] if command == "import" else ["--model.device", "cpu"]
    assert main([command, "--workspace", str(world), *options, *device, *extra]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("rlhf: error: ")
    after = hashes(world)
    assert {name: after.get(name) for name in before} == before
    return lines[0].removeprefix("rlhf: error: ")


def rows_with(world: Path, tmp_path: Path, command: str, second: str) -> Path:
    """The command's good data file with another second line."""
    name = COMMANDS[command][1]
    lines = (world / name).read_text().splitlines()
    path = tmp_path / name
    path.write_text("\n".join([lines[0], second, *lines[2:]]) + "\n")
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_file(world: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    assert "nowhere.jsonl: no such file" in fails(world, capfd, command, tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("command", COMMANDS)
def test_empty_file(world: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    expected = "rows of demonstrations or texts" if command == "sft" else "one JSON object per line"
    assert f"empty.jsonl: file is empty; expected {expected}" in fails(world, capfd, command, path)


# `import` sets bad rows aside in a quarantine file: tests/feedback_app.
@pytest.mark.parametrize("command", WITH_MODEL)
@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ('{"prompt": "x", ', "broken JSON"),
        ('{"prompt": NaN, "chosen": "a", "rejected": "b", "completion": "c"}', "NaN"),
        ('{"promt": "x", "chosen": "a", "rejected": "b", "completion": "c"}', "promt"),
        ('{"prompt": "x", "prompt": "y"}', "prompt"),
        ("7", "object"),
    ],
    ids=["broken", "NaN", "wrong column", "key twice", "number"],
)
def test_bad_row(
    world: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str, second: str, reason: str
) -> None:
    path = rows_with(world, tmp_path, command, second)
    line = fails(world, capfd, command, path)
    assert line.startswith(f"{path}:2: ")
    assert re.search(reason, line)


@pytest.mark.parametrize("command", WITH_MODEL)
def test_prompt_longer_than_the_context(
    world: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    row = GOOD[COMMANDS[command][1]] | {"prompt": "x" * 400}
    path = rows_with(world, tmp_path, command, json.dumps(row))
    line = fails(world, capfd, command, path)
    assert line.startswith(f"{path}:2: ")
    assert "128" in line


@pytest.mark.parametrize("command", WITH_MODEL)
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("not-a-model", r"not-a-model: not a model directory \(no config\.json\)"),
        ("models/nowhere/x", "models/nowhere/x: no such model directory"),
        ("prompts.jsonl", r"prompts\.jsonl: is a file; expected a model directory"),
        ("bad-weights", "bad-weights: cannot be loaded as a causal language model"),
    ],
)
def test_not_a_model(
    world: Path, capfd: pytest.CaptureFixture[str], command: str, model: str, reason: str
) -> None:
    assert re.search(reason, fails(world, capfd, command, world / COMMANDS[command][1], model=model))


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_option(world: Path, capfd: pytest.CaptureFixture[str], command: str) -> None:
    line = fails(world, capfd, command, world / COMMANDS[command][1], "--no-such-key", "1")
    assert "no-such-key" in line


@pytest.mark.parametrize("command", ["sft", "reward", "ppo", "evaluate"])
def test_unknown_config_key(
    world: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("# settings\nseeed: 3\n")
    line = fails(world, capfd, command, world / COMMANDS[command][1], "--config", str(config))
    assert line.startswith(f"{config}:2: ")
    assert "'seeed'" in line
    assert "did you mean 'seed'?" in line


@pytest.mark.parametrize("command", ["sft", "reward", "ppo", "evaluate"])
def test_an_out_that_is_not_a_run_is_left_untouched(
    world: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    out = world / "not-a-model"
    line = fails(world, capfd, command, world / COMMANDS[command][1], "--out", str(out), "--force")
    assert "holds 'readme.txt' and is not a run; choose another directory" in line


@pytest.mark.parametrize(
    "text", ["runs", "models/base", "judge.py", "nothing", "judge.py:nothing", "gone.py:f"]
)
def test_a_reward_that_is_none(world: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    line = fails(world, capfd, "ppo", world / "prompts.jsonl", "--reward", text)
    assert text.partition(":")[0] in line
