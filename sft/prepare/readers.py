"""What was named with --data and --check, as sources of rows: files of every kind and data sets of the hub."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.core.errors import ConfigError
from rlhf.core.files import BadRow, Limits, SourceRow, checked_size
from rlhf.core.inputs import find_path
from rlhf.core.run import Launch
from rlhf.core.tables import kind_of_file, table_rows
from sft.prepare.layouts import Reading
from sft.prepare.rows import Sample
from sft.prepare.textfile import is_text_file, text_rows

HUB = "hub:"


@dataclass(frozen=True)
class Source:
    """One input. name: for weights and the report. shown: as messages name it. path: None for one of the hub."""

    name: str
    shown: str
    path: Path | None = None
    hub_id: str = ""
    split: str = "train"

    def rows(self, separator: str, limits: Limits) -> Iterator[SourceRow]:
        """Its rows, good and bad. Raises DataError where it cannot be read (on)."""
        if self.path is None:
            return importlib.import_module("sft.prepare.hub").hub_rows(self.hub_id, self.split)
        if is_text_file(self.path):
            return text_rows(self.path, separator, limits)
        return table_rows(self.path, limits)[0]


def find_sources(named: Sequence[str], launch: Launch, limits: Limits) -> list[Source]:
    """A source for each of [NAME=]FILE and [NAME=]hub:ID[:SPLIT].

    Raises DataError for a file that is missing or of no known kind, ConfigError for two of one name.
    """
    sources: list[Source] = []
    for text in named:
        given, sign, rest = text.partition("=")
        name, target = (given, rest) if sign and "/" not in given and not Path(text).exists() else ("", text)
        source = _hub(name, target) if target.startswith(HUB) else _file(name, target, launch, limits)
        same = next((other for other in sources if other.name == source.name), None)
        if same is not None:
            raise ConfigError(
                f"--data: '{same.shown}' and '{source.shown}' are both called '{source.name}'; expected NAME={target}"
            )
        sources.append(source)
    return sources


def _hub(name: str, target: str) -> Source:
    hub_id, _, split = target.removeprefix(HUB).partition(":")
    if not hub_id:
        raise ConfigError(f"--data '{target}': expected hub:ID or hub:ID:SPLIT")
    return Source(name or hub_id.rpartition("/")[2], target, None, hub_id, split or "train")


def _file(name: str, target: str, launch: Launch, limits: Limits) -> Source:
    path = find_path(target, launch)
    checked_size(path, limits, "a file of rows")
    if not is_text_file(path):
        kind_of_file(path)
    stem = path.name.removesuffix(".gz")
    return Source(name or stem.rpartition(".")[0] or stem, target, path)


def read_samples(
    source: Source, reading: Reading, separator: str, limits: Limits
) -> Iterator[tuple[int, bytes, Sample | BadRow]]:
    """(line or number, its bytes, what the row means or what is wrong with it). Raises DataError as `rows` does."""
    for line, raw, row in source.rows(separator, limits):
        if isinstance(row, BadRow):
            yield line, raw, row
            continue
        try:
            yield line, raw, reading.sample(row)
        except BadRow as error:
            yield line, raw, error
