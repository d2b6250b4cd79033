"""Patterns of boilerplate from a YAML that people may replace."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from rlhf.core.config import Settings, read_yaml_text
from rlhf.core.errors import ConfigError
from rlhf.core.validation import one_line, problems
from sft.prepare.rows import Sample

DEFAULT = Path(__file__).with_name("boilerplate.yaml")
MAX_BYTES = 1 << 20


class PatternRow(Settings):
    """One entry of the YAML; the comment on top of it says what the keys mean."""

    name: str
    pattern: str
    hints: tuple[str, ...] = ()
    where: Literal["any", "answer"] = "any"
    action: Literal["remove", "drop"] = "remove"
    unless: str = ""
    replace: str = ""


@dataclass(frozen=True)
class Pattern:
    row: PatternRow
    regex: re.Pattern[str]
    unless: re.Pattern[str] | None

    def applies(self, text: str, lower: str) -> bool:
        return (not self.row.hints or any(hint in lower for hint in self.row.hints)) and (
            self.unless is None or not self.unless.search(text)
        )


def load_patterns(path: Path | None) -> list[Pattern]:
    """The patterns of a file, by default those that come along. Raises ConfigError naming file and entry."""
    path = path or DEFAULT
    try:
        found: Any = yaml.safe_load(read_yaml_text(path, MAX_BYTES, "expected a list of patterns"))
        rows = TypeAdapter(list[PatternRow]).validate_python(found)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: broken YAML: {one_line(str(error))[:200]}") from error
    except ValidationError as error:
        where, message = problems(error)[0]
        place = f"entry {int(where[0]) + 1}: '{'.'.join(where[1:])}' " if where else "expected a list; "
        raise ConfigError(f"{path}: {place}{message}") from error
    return [_compiled(path, row) for row in rows]


def _compiled(path: Path, row: PatternRow) -> Pattern:
    flags = re.IGNORECASE | re.MULTILINE
    try:
        regex = re.compile(row.pattern, flags)
        unless = re.compile(row.unless, flags) if row.unless else None
    except re.error as error:
        raise ConfigError(f"{path}: pattern '{row.name}' is no regular expression ({error})") from error
    if regex.search("") is not None:
        raise ConfigError(f"{path}: pattern '{row.name}' matches the empty text; expected some text")
    return Pattern(row, regex, unless)


class Boilerplate:
    """Takes out what the patterns name. counts: rows touched, by the pattern's name."""

    def __init__(self, patterns: list[Pattern]) -> None:
        self.patterns = patterns
        self.counts: Counter[str] = Counter()

    def apply(self, sample: Sample) -> str | None:
        """Change the sample; returns the name of the pattern that drops it, else None."""
        answer = sample.answer
        lower = answer.lower()
        for pattern in self.patterns:
            if pattern.row.action == "drop":
                text = answer if pattern.row.where == "answer" else sample.whole
                hinted = lower if text is answer else text.lower()
                if pattern.applies(text, hinted) and pattern.regex.search(text):
                    self.counts[pattern.row.name] += 1
                    return pattern.row.name
        touched: set[str] = set()
        if sample.messages is None:
            sample.text = self._cut(sample.text, True, touched)
        else:
            last = len(sample.messages) - 1
            for place, turn in enumerate(sample.messages):
                turn["content"] = self._cut(turn["content"], place == last, touched)
        self.counts.update(touched)
        return None

    def _cut(self, text: str, is_answer: bool, touched: set[str]) -> str:
        lower = text.lower()
        for pattern in self.patterns:
            row = pattern.row
            if row.action == "drop" or (row.where == "answer" and not is_answer):
                continue
            if pattern.applies(text, lower):
                text, number = pattern.regex.subn(row.replace.replace("\\", "\\\\"), text)
                if number:
                    touched.add(row.name)
        return text
