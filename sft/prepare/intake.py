"""From the rows of the inputs to clean ones in the scratch file: what is wrong with a row alone is found here."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf.core.errors import DataError
from rlhf.core.files import BadRow, Limits
from rlhf.core.inputs import find_model
from rlhf.core.metrics import progress
from rlhf.core.run import Launch
from sft.prepare.boilerplate import Boilerplate, load_patterns
from sft.prepare.clean import Cleaner
from sft.prepare.config import PrepareConfig
from sft.prepare.language import Languages
from sft.prepare.layouts import Reading, parse_map
from sft.prepare.pii import Finder, PatternFinder, PersonalData
from sft.prepare.readers import Source, read_samples
from sft.prepare.rows import Sample
from sft.prepare.scratch import Scratch
from sft.prepare.tally import BAD, BROKEN_FILE, Quarantine, Tally, general_reason, length_bin

ADVANCE_EVERY = 500


def make_finder(config: PrepareConfig) -> Finder:
    """What finds personal data. Raises ConfigError where presidio was chosen and is missing."""
    if config.pii_engine == "presidio":
        finder: Finder = importlib.import_module("sft.prepare.pii_presidio").PresidioFinder(
            config.phone_region, config.pii_model
        )
        return finder
    return PatternFinder(config.phone_region)


class Intake:
    """The settings made into tools: one reads the training data, another of the same settings the evaluation files."""

    def __init__(self, config: PrepareConfig, launch: Launch, tally: Tally) -> None:
        self.config, self.tally = config, tally
        self.limits = Limits(max_line_bytes=config.max_line_bytes, max_file_bytes=config.max_file_bytes)
        self.reading = Reading(
            config.layout, parse_map(config.map), config.label_column, config.difficulty_column
        )
        self.cleaner = Cleaner(unicode=config.unicode, control=config.control, whitespace=config.whitespace)
        patterns = (
            load_patterns(Path(config.patterns) if config.patterns else None) if config.boilerplate else []
        )
        self.boilerplate = Boilerplate(patterns)
        self.finder = make_finder(config) if config.pii != "off" else None
        self.personal = PersonalData(config.pii, self.finder) if self.finder is not None else None
        self.languages = (
            Languages(config.languages, config.language_min_confidence) if config.languages else None
        )
        self.keep, self.drop = (re.compile(text) if text else None for text in (config.keep, config.drop))
        self.tokens = None
        if config.model:
            counter = importlib.import_module("sft.prepare.tokens").TokenCounter
            self.tokens = counter(find_model(config.model, launch), config.max_tokens)

    def mask(self, text: str) -> str:
        return text if self.personal is None else self.personal.mask(text)

    def take(
        self,
        sources: Sequence[Source],
        scratch: Scratch,
        quarantine: Quarantine,
        *,
        first: int = 0,
        silent: bool = False,
    ) -> None:
        """Put every good row into the scratch file and the others into quarantine.

        A file that cannot be read on is noted; what was read of it counts. first: the number of the first source.
        """
        with progress("reading", None, stage="prepare", silent=silent) as bar:
            for number, source in enumerate(sources, start=first):
                self.tally.layouts.setdefault(source.name, Counter())
                self.tally.read[source.name] += 0
                done = 0
                try:
                    for done, (line, raw, found) in enumerate(self._samples(source), start=1):
                        self._take_one(source, number, line, raw, found, scratch, quarantine)
                        if done % ADVANCE_EVERY == 0:
                            bar.advance(ADVANCE_EVERY, kept=len(scratch))
                    bar.advance(done % ADVANCE_EVERY, kept=len(scratch))
                except DataError as error:
                    self.tally.broken_files.append(str(error))
                    self.tally.bad_reasons[BROKEN_FILE] += 1
                    quarantine.add(source.shown, done + 1, f"the file cannot be read on: {error}", "")

    def _samples(self, source: Source) -> Iterator[tuple[int, bytes, Sample | BadRow]]:
        return read_samples(source, self.reading, self.config.separator, self.limits)

    def _take_one(
        self,
        source: Source,
        number: int,
        line: int,
        raw: bytes,
        found: Sample | BadRow,
        scratch: Scratch,
        quarantine: Quarantine,
    ) -> None:
        self.tally.read[source.name] += 1
        if isinstance(found, BadRow):
            self.tally.reasons[BAD] += 1
            reason = self.mask(str(found))  # it may name a value
            self.tally.bad_reasons[general_reason(reason)] += 1
            quarantine.add_bad(source.shown, line, reason, raw)
            return
        self.tally.layouts[source.name][found.layout] += 1
        self.tally.lengths_before[length_bin(found.num_chars)] += 1
        reason, detail = self.clean(found)
        if reason:
            self.tally.reasons[reason] += 1
            quarantine.add(source.shown, line, f"{reason}{detail}", found.whole)
            return
        found.source = found.source or source.name
        scratch.add(found, number, line)

    def clean(self, sample: Sample) -> tuple[str, str]:
        """Clean and mask a row in place; (why it is taken out, more on it), or two empty texts."""
        config = self.config
        self.cleaner.apply(sample)
        before = sample.num_chars
        dropped = self.boilerplate.apply(sample)
        if dropped is not None:
            return "boilerplate", f" ({dropped})"
        if sample.num_chars != before:
            self.cleaner.apply(sample)
        if not sample.answer.strip() or (
            sample.messages is not None and not sample.messages[-2]["content"].strip()
        ):
            return "empty", ""
        if len(sample.answer) < config.min_chars:
            return "too short", f" ({len(sample.answer)} characters)"
        if sample.num_chars > config.max_chars:
            return "too long", f" ({sample.num_chars} characters)"
        if self.keep is not None and not self.keep.search(sample.whole):
            return "without the pattern to keep", ""
        if self.drop is not None and self.drop.search(sample.whole):
            return "with the pattern to drop", ""
        if self.languages is not None:
            language = self.languages.of(sample.answer if len(sample.answer) > 80 else sample.whole)
            self.tally.languages[language] += 1
            if not self.languages.keeps(language):
                return "language", f" ({language})"
        if self.personal is not None:
            kinds = self.personal.apply(sample)
            if kinds and config.pii == "drop":
                return "personal data", f" ({', '.join(kinds)})"
        if self.tokens is not None and (refused := self.tokens.refuses(sample)):
            return refused, ""
        return "", ""
