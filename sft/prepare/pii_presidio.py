"""Personal data by presidio-analyzer (extra), beside our patterns: names and places, with its own language model.

Imported only when --pii-engine presidio is chosen. The patterns come first; presidio adds what they cannot know.
"""

from __future__ import annotations

import importlib

from rlhf.core.errors import ConfigError
from rlhf.core.validation import one_line
from sft.prepare.pii import Found, PatternFinder

ENTITIES = ("PERSON", "LOCATION", "US_SSN", "MEDICAL_LICENSE", "US_PASSPORT", "UK_NHS", "CRYPTO")
MIN_SCORE = 0.6


class PresidioFinder:
    """Raises ConfigError where the package or its language model is missing."""

    def __init__(self, phone_region: str | None, language: str = "en") -> None:
        self.patterns, self.language = PatternFinder(phone_region), language
        try:
            engine = importlib.import_module("presidio_analyzer").AnalyzerEngine
        except ImportError as error:
            raise ConfigError(
                "--pii-engine presidio: presidio-analyzer is not installed; expected pip install 'rlhf-loop[presidio]'"
            ) from error
        try:
            self.analyzer = engine()
        except (OSError, SystemExit, ValueError) as error:
            raise ConfigError(
                f"--pii-engine presidio: its language model is missing ({one_line(str(error))[:160]})"
            ) from error

    def find(self, text: str) -> list[Found]:
        found = self.patterns.find(text)
        for result in self.analyzer.analyze(text=text, language=self.language, entities=list(ENTITIES)):
            if result.score < MIN_SCORE:
                continue
            if all(result.end <= other.start or result.start >= other.end for other in found):
                found.append(Found(result.start, result.end, result.entity_type))
        return sorted(found)
