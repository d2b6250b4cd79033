"""Finding what a person named on the command line: in the current directory first, then in the workspace."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf.core.errors import ConfigError, DataError
from rlhf.core.run import Launch


def require_one_process(stage: str) -> None:
    """Refuse a launch with several processes: each would train a run of its own in the same directory."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ConfigError(f"{stage} runs in one process; found WORLD_SIZE={processes}")


def required(value: str | None, option: str, what: str) -> str:
    """`value`, or a ConfigError that says which option to give."""
    if not value:
        raise ConfigError(f"--{option} is required: {what}")
    return value


def find_path(text: str, launch: Launch) -> Path:
    """An existing path, relative to the current directory or else to the workspace. Raises DataError."""
    for candidate in (Path(text), launch.workspace / text):
        if candidate.exists():
            return candidate
    raise DataError(f"{text}: no such file or directory (looked in . and in {launch.workspace})")


def find_model(text: str, launch: Launch) -> str:
    """A model directory (a run's `model` folder where a run is named), or the text itself: a hub id."""
    for candidate in (Path(text), launch.workspace / text):
        if (candidate / "model" / "config.json").is_file() and not (candidate / "config.json").is_file():
            return str(candidate / "model")
        if candidate.exists():
            return str(candidate)
    return text


def find_adapter(text: str, launch: Launch) -> Path:
    """An adapter directory: the one named, or the `adapter` folder of the run that was named. Raises DataError."""
    folder = find_path(text, launch)
    for candidate in (folder, folder / "adapter"):
        if (candidate / "adapter_config.json").is_file():
            return candidate
    raise DataError(f"{folder}: holds no adapter_config.json; expected a finished reward or ppo run")


def model_name(path: str, launch: Launch) -> str:
    """What an adapter calls its base: a hub id, or the path relative to the workspace (with `..` where the
    model lies outside), so that the workspace and what lies beside it can move together."""
    if not Path(path).exists():
        return path
    return Path(os.path.relpath(path, launch.workspace)).as_posix()
