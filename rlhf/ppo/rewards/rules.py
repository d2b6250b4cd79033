"""A list of rules as a reward: patterns, words and limits of length with weights, for content guidelines.

    rules:
      - pattern: "as an ai( language)? model"     # a regular expression, anywhere in the completion
        weight: -1
      - words: [refund, replacement]              # whole words or phrases, any of them
        weight: 0.5
      - words: [please, sorry]
        weight: 0.2
        each: 3                                   # counts every occurrence, at most 3
      - pattern: "order number \\d+"
        weight: -0.5
        absent: true                              # applies where it is not found
      - max_words: 80                             # applies where the limit is broken
        weight: -1

The score is the sum of the weights of the rules that apply. Upper and lower case are the same unless a rule
says `match_case: true`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf.core.config import read_yaml_text
from rlhf.core.errors import ConfigError
from rlhf.core.records import Prompt
from rlhf.core.validation import nearest, one_line, problems

MAX_RULES_BYTES = 1 << 20
_KINDS = ("pattern", "words", "min_words", "max_words", "min_characters", "max_characters")


class Rule(BaseModel):
    """One rule; see the module's text. Exactly one of the kinds is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str | None = Field(None, min_length=1)
    words: tuple[str, ...] | None = Field(None, min_length=1)
    min_words: int | None = Field(None, ge=1)
    max_words: int | None = Field(None, ge=0)
    min_characters: int | None = Field(None, ge=1)
    max_characters: int | None = Field(None, ge=0)
    weight: float = Field(allow_inf_nan=False)
    each: int | None = Field(None, ge=1)
    absent: bool = False
    match_case: bool = False

    @model_validator(mode="after")
    def _is_one_rule(self) -> Rule:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a rule is exactly one of {', '.join(_KINDS)}; found {' and '.join(given) or 'none'}"
            )
        searches = given[0] in ("pattern", "words")
        for option in ("each", "absent", "match_case"):
            if getattr(self, option) and not searches:
                raise ValueError(f"'{option}' goes with pattern and words; found it with {given[0]}")
        if self.absent and self.each:
            raise ValueError("'absent' and 'each' do not go together")
        if self.words is not None and not all(word.strip() for word in self.words):
            raise ValueError("'words' holds an empty word")
        if searches:
            try:
                self.expression()
            except re.error as error:
                raise ValueError(f"pattern is no regular expression ({one_line(str(error))})") from error
        return self

    def expression(self) -> re.Pattern[str]:
        """What is searched for. Words stand alone: neither side touches another letter, digit or underscore."""
        flags = re.NOFLAG if self.match_case else re.IGNORECASE
        if self.pattern is not None:
            return re.compile(self.pattern, flags)
        phrases = [r"\s+".join(map(re.escape, word.split())) for word in self.words or ()]
        return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", flags)


@dataclass(frozen=True)
class RuleList:
    """Rules with their compiled expressions; called like a reward function."""

    rules: tuple[Rule, ...]
    expressions: tuple[re.Pattern[str] | None, ...]

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> RuleList:
        searches = [rule.expression() if rule.pattern or rule.words else None for rule in rules]
        return cls(tuple(rules), tuple(searches))

    @classmethod
    def read(cls, path: Path) -> RuleList:
        """Rules of a YAML file. Raises ConfigError naming file:line, what was found and what was expected."""
        rules = []
        for line, fields in _entries(path):
            unknown = [name for name in fields if name not in Rule.model_fields]
            if unknown:
                known = nearest(unknown[0], Rule.model_fields)
                raise ConfigError(f"{path}:{line}: unknown key '{unknown[0]}'{known}")
            try:
                rules.append(Rule.model_validate(fields))
            except ValidationError as error:
                where, message = problems(error)[0]
                key = f"{where[0]}: " if where else ""
                raise ConfigError(f"{path}:{line}: {key}{message}") from error
        return cls.of(rules)

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """One score per text; the prompts are not looked at."""
        return [self.score(text) for text in texts]

    def score(self, text: str) -> float:
        pairs = zip(self.rules, self.expressions, strict=True)
        return sum(rule.weight * _applies(rule, expression, text) for rule, expression in pairs)


def _applies(rule: Rule, expression: re.Pattern[str] | None, text: str) -> int:
    """How often a rule counts for a text."""
    if expression is not None:
        if rule.each is None:
            return int((expression.search(text) is not None) != rule.absent)
        found = 0
        for _ in expression.finditer(text):
            found += 1
            if found == rule.each:
                break
        return found
    words, characters = len(text.split()), len(text.strip())
    broken = (
        (rule.min_words is not None and words < rule.min_words)
        or (rule.max_words is not None and words > rule.max_words)
        or (rule.min_characters is not None and characters < rule.min_characters)
        or (rule.max_characters is not None and characters > rule.max_characters)
    )
    return int(broken)


def _entries(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line, fields) of every rule of the file."""
    expected = "expected 'rules:' and under it a list of rules"
    try:
        text = read_yaml_text(path, MAX_RULES_BYTES, expected)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode) or [k.value for k, _ in root.value] != ["rules"]:
            line = root.start_mark.line + 1 if root else 1
            raise ConfigError(f"{path}:{line}: {expected}")
        node = root.value[0][1]
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise ConfigError(f"{path}:{node.start_mark.line + 1}: {expected}")
        entries = []
        for item in node.value:
            line = item.start_mark.line + 1
            if not isinstance(item, yaml.MappingNode):
                raise ConfigError(f"{path}:{line}: expected a rule like '- pattern: ...' with a weight")
            entries.append((line, {str(k): v for k, v in loader.construct_document(item).items()}))
        return entries
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        problem = getattr(error, "problem", None) or one_line(str(error))
        raise ConfigError(f"{where}: broken YAML: {problem}") from error
