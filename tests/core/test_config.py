"""Settings: defaults < YAML < options, and messages that say where a value came from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from rlhf.core.config import Positional, Settings, load_settings, settings_to_yaml
from rlhf.core.errors import ConfigError


class Optim(Settings):
    """How to step."""

    lr: float = Field(1e-4, gt=0, description="learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the moments")
    nesterov: bool = Field(False, description="look ahead")


class Stage(Settings):
    """A stage for tests."""

    model: str = Field(description="model directory")
    data: Path | None = Field(None, description="rows")
    batch: int = Field(8, ge=1, description="rows per step")
    micro_batch: int = Field(4, ge=1, description="rows at once")
    optim: Optim = Field(default_factory=lambda: Optim(lr=3e-4), description="optimizer")
    layers: list[int] = Field(default_factory=list, description="layers")
    names: tuple[str, ...] = Field(("a",), description="names")
    target: str | list[str] = Field("all-linear", description="modules")
    shuffle: bool = Field(True, description="shuffle")
    kind: Literal["one", "two"] = Field("one", description="kind")
    limit: int | None = Field(5, description="limit")
    extra: dict[str, int] = Field(default_factory=dict, description="more")

    @model_validator(mode="after")
    def _divisible(self) -> Stage:
        if self.batch % self.micro_batch:
            raise ValueError(f"batch ({self.batch}) must be divisible by micro_batch ({self.micro_batch})")
        return self


def load(argv: list[str], yaml: str | None = None, tmp_path: Path | None = None) -> Stage:
    file = None
    if yaml is not None:
        assert tmp_path is not None
        file = tmp_path / "stage.yaml"
        file.write_text(yaml)
    return load_settings(Stage, file, argv, "rlhf stage")


@pytest.mark.parametrize(
    "options",
    [
        ["--names", "x", "--batch", "16", "--names", "y", "z"],
        ["--names=x", "--names", "y", "z", "--batch=16"],
        ["--names", "x", "y", "z", "--batch", "16"],
    ],
)
def test_an_option_of_several_values_may_be_given_several_times(options: list[str]) -> None:
    found = load(["--model", "m", *options])
    assert (found.names, found.batch, found.model) == (("x", "y", "z"), 16, "m")
    assert load(["--model", "m", "--layers", "1", "--layers", "-2", "--target", "q"]).layers == [1, -2]


def test_options_override_yaml_overrides_defaults(tmp_path: Path) -> None:
    found = load(
        ["--optim.lr", "1e-5"], "model: m\nbatch: 16\noptim:\n  lr: 1e-3\n  nesterov: true\n", tmp_path
    )
    assert (found.model, found.batch, found.micro_batch) == ("m", 16, 4)
    assert (found.optim.lr, found.optim.nesterov, found.optim.betas) == (1e-5, True, (0.9, 0.95))


def test_a_partly_given_group_keeps_the_defaults_of_its_stage(tmp_path: Path) -> None:
    # Stage wants lr 3e-4 where Optim alone says 1e-4
    assert load(["--model", "m"]).optim.lr == 3e-4
    assert load(["--model", "m", "--optim.nesterov"]).optim.lr == 3e-4
    assert load([], "model: m\noptim:\n  nesterov: true\n", tmp_path).optim.lr == 3e-4


def test_yaml_floats_that_yaml_reads_as_text(tmp_path: Path) -> None:
    assert load([], "model: m\noptim:\n  lr: 1e-5\n", tmp_path).optim.lr == 1e-5


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--data", "x/y.jsonl"], "data", Path("x/y.jsonl")),
        (["--data=x"], "data", Path("x")),
        (["--limit", "None"], "limit", None),
        (["--layers", "1", "2"], "layers", [1, 2]),
        (["--names", "p", "q"], "names", ("p", "q")),
        (["--names"], "names", ()),
        (["--target", "q_proj"], "target", ["q_proj"]),
        (["--no-shuffle"], "shuffle", False),
        (["--shuffle"], "shuffle", True),
        (["--kind", "two"], "kind", "two"),
        (["--extra", '{"a": 1}'], "extra", {"a": 1}),
        (["--micro_batch", "2"], "micro_batch", 2),
        (["--optim.betas", "0.5", "0.6"], "optim", Optim(lr=3e-4, betas=(0.5, 0.6))),
        (["--optim.no-nesterov"], "optim", Optim(lr=3e-4)),
    ],
)
def test_option_forms(argv: list[str], name: str, value: object) -> None:
    found = getattr(load(["--model", "m", *argv]), name)
    assert found == value or (name == "target" and found == value[0])  # type: ignore[index]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("model: m\noptim:\n  lrr: 1\n", "stage.yaml:3: unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("model: m\nlr: 1\n", "stage.yaml:2: unknown key 'lr'; did you mean 'optim.lr'?"),
        ("model: m\nbacth: 1\n", "stage.yaml:2: unknown key 'bacth'; did you mean 'batch'?"),
        ("model: m\nbatch: x\n", "stage.yaml:2: batch: expected a valid integer"),
        ("model: m\noptim:\n  lr: -1\n", "stage.yaml:3: optim.lr: expected greater than 0; found -1"),
        ("model: m\noptim: fast\n", "stage.yaml:2: optim: "),
        ("model: m\nmodel: n\n", "stage.yaml:2: key 'model' was already given on line 1"),
        ("model: [m\n", "stage.yaml:2: broken YAML: "),
        ("model: !!python/object:os.system x\n", "stage.yaml:1: broken YAML: "),
        ("- a\n", "stage.yaml:1: expected 'key: value' lines"),
        ("", "stage.yaml: file is empty"),
        ("# only a comment\n", "stage.yaml: file is empty"),
        ("? [a]\n: b\n", "stage.yaml:1: a key must be plain text"),
        ("batch: 8\n", "'model' in"),
        ("model: m\nextra: {a: x}\n", "stage.yaml:2: extra: expected a valid integer"),
        ("model: m\nbatch: 6\n", "rlhf stage: batch (6) must be divisible by micro_batch (4)"),
    ],
)
def test_a_bad_yaml_file_is_explained_in_one_line(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([], yaml, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "rlhf stage: --model is required"),
        (["--model", "m", "--optim.lrr", "1"], "unknown option '--optim.lrr'; did you mean '--optim.lr'?"),
        (["--model", "m", "--lr=1"], "unknown option '--lr'; did you mean '--optim.lr'?"),
        (["--model", "m", "--batch", "x"], "--batch: invalid literal for int() with base 10: 'x'"),
        (["--model", "m", "--batch", "0"], "--batch: expected greater than or equal to 1; found 0"),
        (["--model", "m", "--kind", "three"], "invalid choice 'three' for argument '--kind'"),
        (["--model"], "Missing value for argument '--model'"),
        (["--model", "m", "stray"], "Unrecognized options: stray"),
        (["--model", "m", "--extra", "{"], "--extra: expected JSON; found '{'"),
        (["--model", "m", "--batch", "6"], "batch (6) must be divisible by micro_batch (4)"),
    ],
)
def test_a_bad_option_is_explained_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not set("│╭╰─") & set(str(caught.value))


def test_an_option_repairs_a_value_of_the_file_and_is_blamed_when_it_is_wrong(tmp_path: Path) -> None:
    assert load(["--batch", "8"], "model: m\nbatch: 0\n", tmp_path).batch == 8
    with pytest.raises(ConfigError, match=r"^rlhf stage: --batch: "):
        load(["--batch", "-1"], "model: m\nbatch: 8\n", tmp_path)


def test_a_missing_or_unreadable_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load_settings(Stage, tmp_path / "none.yaml", [], "rlhf stage")
    (tmp_path / "bad.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings(Stage, tmp_path / "bad.yaml", [], "rlhf stage")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(Stage, tmp_path, [], "rlhf stage")


def test_yaml_round_trip(tmp_path: Path) -> None:
    settings = load(
        ["--model", "m", "--data", "d.jsonl", "--names", "p", "--optim.lr", "1e-6", "--limit", "None"]
    )
    assert load([], settings_to_yaml(settings), tmp_path) == settings


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load(["--model", "m"]).batch = 3  # type: ignore[misc]


def test_help_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "A stage for tests." in text
    assert "--optim.lr FLOAT" in text
    assert "(default: 0.0003)" in text  # the default of the stage, not the one of Optim
    assert "(required)" in text


class WithFile(Settings):
    """Takes a file."""

    file: Positional[Path] = Field(description="the file")
    deep: bool = Field(False, description="look deep")


def test_positional_arguments() -> None:
    assert load_settings(WithFile, None, ["x.jsonl", "--deep"], "rlhf x") == WithFile(
        file=Path("x.jsonl"), deep=True
    )
    with pytest.raises(ConfigError, match="FILE is required"):
        load_settings(WithFile, None, [], "rlhf x")
