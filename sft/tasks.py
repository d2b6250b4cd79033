"""The files of a run as tasks: each with its training and validation examples, and its share of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.core.chat import ChatCodec
from rlhf.core.errors import ConfigError
from rlhf.core.run import Launch
from sft.config import SFTConfig
from sft.data import TEXT_LIMITS, Example, load_examples, split_examples
from sft.prepare.readers import find_sources


@dataclass(frozen=True)
class Task:
    """One data file. weight: its share of an epoch beside the other tasks', None for as many rows as it has."""

    name: str
    train: list[Example]
    validation: list[Example]
    weight: float | None = None
    num_too_long: int = 0

    @property
    def num_targets(self) -> int:
        """Validation tokens on which the loss counts."""
        return sum(example.num_targets for example in self.validation)


@dataclass(frozen=True)
class DataFile:
    """A file of --data with the one of --validation that belongs to it."""

    name: str
    path: Path
    validation: Path | None
    weight: float | None


def find_data(config: SFTConfig, launch: Launch) -> list[DataFile]:
    """The files that a run is given. Raises ConfigError and DataError for one that is missing or of no known kind."""
    if not config.data:
        raise ConfigError("--data is required: a file of demonstrations or texts")
    found: list[list[tuple[str, Path]]] = []
    for named in (config.data, config.validation):
        sources = find_sources(named, launch, TEXT_LIMITS)
        for source in sources:
            if source.path is None:
                raise ConfigError(
                    f"--data '{source.shown}': sft reads files; `rlhf prepare --data {source.shown}` makes them"
                )
        found.append([(source.name, source.path) for source in sources if source.path is not None])
    data, validation = found
    return [
        DataFile(
            name,
            path,
            validation[place][1] if validation else None,
            config.weights[place] if config.weights else None,
        )
        for place, (name, path) in enumerate(data)
    ]


def parents_of(files: Sequence[DataFile]) -> dict[str, Path]:
    """The files under the names that a manifest has for them."""
    one = len(files) == 1
    parents = {"data" if one else f"data {file.name}": file.path for file in files}
    given = {file.name: file.validation for file in files if file.validation is not None}
    return parents | {"validation" if one else f"validation {name}": path for name, path in given.items()}


def load_tasks(files: Sequence[DataFile], codec: ChatCodec, config: SFTConfig) -> list[Task]:
    """Read, tokenise and split every file. Raises DataError naming file and line."""
    max_tokens = config.room(codec.max_tokens)
    tasks = []
    for file in files:

        def load(path: Path, name: str = file.name) -> tuple[list[Example], int]:
            drop = config.on_too_long == "drop"
            return load_examples(path, codec, max_tokens=max_tokens, drop_too_long=drop, task=name)

        train, left_out = load(file.path)
        if file.validation is None:
            train, held_out = split_examples(train, config.validation_fraction, config.seed, str(file.path))
        else:
            held_out, more = load(file.validation)
            left_out += more
        tasks.append(Task(file.name, train, held_out, file.weight, left_out))
        if left_out:
            print(f"sft: left out {left_out} demonstrations longer than {max_tokens} tokens")
    return tasks


def mean_of_tasks(tasks: Sequence[Task], losses: Sequence[float]) -> float:
    """One validation loss, nats per token: the tasks' by their weights, or by their tokens where they have none."""
    shares = [task.num_targets if task.weight is None else task.weight for task in tasks]
    return sum(share * loss for share, loss in zip(shares, losses, strict=True)) / sum(shares)
