"""The term pairs and templates of the bias figures: read from a YAML file that people can replace, and swapped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf.core.config import read_yaml_text
from rlhf.core.errors import ConfigError
from rlhf.core.validation import one_line, problems

DEFAULT_TERMS = Path(__file__).with_name("terms.yaml")
MAX_TERMS_BYTES = 1 << 20
TERM = "{term}"

Word = Annotated[str, Field(min_length=1)]
TermPair = tuple[Word, Word]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Template(_Part):
    """A prompt and a completion, at least one of them with {term}."""

    prompt: Annotated[str, Field(min_length=1)]
    completion: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _has_a_term(self) -> Template:
        if TERM not in self.prompt + self.completion:
            raise ValueError(f"holds no {TERM}; expected it in prompt or completion")
        return self


class TermSet(_Part):
    """Pairs [first, second] of one kind, with the templates that they are put into. See terms.yaml."""

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    name: Annotated[str, Field(min_length=1)]
    pairs: tuple[TermPair, ...] = Field(min_length=1)
    templates: tuple[Template, ...] = ()
    in_texts: bool = False
    one_way: tuple[TermPair, ...] = ()

    @model_validator(mode="after")
    def _words_have_one_partner(self) -> TermSet:
        if self.in_texts:
            words = [word.lower() for pair in self.pairs for word in pair]
            twice = next((word for word in words if words.count(word) > 1), None)
            if twice:
                raise ValueError(
                    f"'{twice}' is in two pairs; expected one partner a word where in_texts is true"
                )
        return self


class Terms(_Part):
    articles: bool = False
    sets: tuple[TermSet, ...] = Field(min_length=1)


def load_terms(path: Path | None = None) -> Terms:
    """The terms of a file, by default those that come along. Raises ConfigError naming the file and the key."""
    path = path or DEFAULT_TERMS
    try:
        found = yaml.safe_load(read_yaml_text(path, MAX_TERMS_BYTES, "expected term pairs and templates"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file of terms") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: broken YAML: {one_line(str(error))}") from error
    try:
        return Terms.model_validate(found if isinstance(found, Mapping) else {})
    except ValidationError as error:
        where, message = problems(error)[0]
        raise ConfigError(f"{path}: {'.'.join(where) or 'the file'}: {message}") from error


class Swapper:
    """Replaces the words of one side of a set by their partners: whole words, capitals kept.

    Longer words go first, so that 'young man' is swapped as such where 'man' is a word of its own.
    """

    def __init__(self, words: TermSet, *, articles: bool) -> None:
        self._articles = articles
        forward: dict[str, str] = {}
        for first, second in (*words.pairs, *words.one_way):
            forward.setdefault(first.lower(), second)
        self._forward = forward
        self._back = {second.lower(): first for first, second in words.pairs}
        self._first = _pattern(forward)
        # Words that lead back to more than one partner: a text that holds them is not swapped in this direction.
        self._no_way_back = _pattern({second.lower(): "" for _, second in words.one_way})
        self._second = _pattern(self._back)

    def swap(self, *texts: str) -> tuple[int, tuple[str, ...]] | None:
        """(+1, texts with second words for first ones) or (-1, the reverse); None where the texts hold no word, or
        words of both sides, or such that cannot be swapped back."""
        has_first = any(self._first.search(text) for text in texts)
        has_second = any(self._second.search(text) or self._no_way_back.search(text) for text in texts)
        if has_first == has_second:
            return None
        if has_first:
            return 1, tuple(self._replaced(text, self._first, self._forward) for text in texts)
        if any(self._no_way_back.search(text) for text in texts):
            return None
        return -1, tuple(self._replaced(text, self._second, self._back) for text in texts)

    def _replaced(self, text: str, pattern: re.Pattern[str], partners: Mapping[str, str]) -> str:
        def replace(match: re.Match[str]) -> str:
            article, found = match["article"] or "", match["word"]
            word = _cased(partners[found.lower()], found)
            return (repaired(article, word) if self._articles else article) + word

        return pattern.sub(replace, text)


def fill(template: str, term: str, *, articles: bool) -> str:
    """The template with the term in place, 'a' and 'an' before it repaired."""
    if not articles:
        return template.replace(TERM, term)
    return re.sub(
        r"(?P<article>\b[Aa]n?\s)?\{term\}", lambda m: repaired(m["article"] or "", term) + term, template
    )


def repaired(article: str, word: str) -> str:
    """'a ' or 'an ' as the word asks for, its capital kept; '' stays ''."""
    if not article:
        return ""
    return article[0] + ("n" if word[0].lower() in "aeiou" else "") + article[-1]


def _pattern(words: Mapping[str, str]) -> re.Pattern[str]:
    if not words:
        return re.compile(r"(?!)")
    longest_first = "|".join(re.escape(word) for word in sorted(words, key=lambda w: (-len(w), w)))
    return re.compile(rf"(?P<article>\b[Aa]n?\s)?(?<!\w)(?P<word>{longest_first})(?!\w)", re.IGNORECASE)


def _cased(word: str, like: str) -> str:
    """`word` with the capitals of `like`: ALL, First, or as the list of terms writes it."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    if like[0].isupper():
        return word[0].upper() + word[1:]
    return word
