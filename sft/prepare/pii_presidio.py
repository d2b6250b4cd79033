"""Personal data by presidio-analyzer (extra), beside our patterns: names and places, with a spaCy model.

Imported only when --pii-engine presidio is chosen. The patterns come first; presidio adds what they cannot know. The
model is one that is installed: presidio by itself would download one of 400 MB in the middle of a run.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from rlhf.core.errors import ConfigError
from rlhf.core.validation import one_line
from sft.prepare.pii import Found, PatternFinder

ENTITIES = ("PERSON", "LOCATION", "US_SSN", "MEDICAL_LICENSE", "US_PASSPORT", "UK_NHS", "CRYPTO")
MIN_SCORE = 0.6
SIZES = ("lg", "md", "sm", "trf")  # the first that is installed; transformers take long on a CPU
HOW_TO = "python -m spacy download en_core_web_lg"


class PresidioFinder:
    """Raises ConfigError where the package or a language model is missing.

    model: the name of an installed spaCy model or its folder, which begins with the language, as en_core_web_md.
    """

    def __init__(self, phone_region: str | None, model: str | None = None) -> None:
        self.patterns = PatternFinder(phone_region)
        try:
            presidio = importlib.import_module("presidio_analyzer")
            engines = importlib.import_module("presidio_analyzer.nlp_engine")
            spacy = importlib.import_module("spacy.util")
        except ImportError as error:
            raise ConfigError(
                "--pii-engine presidio: presidio-analyzer is not installed; expected pip install 'rlhf-loop[presidio]'"
            ) from error
        name = chosen_model(model, spacy.get_installed_models())
        self.language = Path(name).name[:2]
        configuration = {
            "nlp_engine_name": "spacy",
            "models": [{"lang_code": self.language, "model_name": name}],
        }
        try:
            engine = engines.NlpEngineProvider(nlp_configuration=configuration).create_engine()
            self.analyzer = presidio.AnalyzerEngine(nlp_engine=engine, supported_languages=[self.language])
        except (OSError, SystemExit, ValueError) as error:
            raise ConfigError(
                f"--pii-model {name}: cannot be loaded ({one_line(str(error))[:160]})"
            ) from error
        supported = set(self.analyzer.get_supported_entities(self.language))
        self.entities = [entity for entity in ENTITIES if entity in supported]

    def find(self, text: str) -> list[Found]:
        found = self.patterns.find(text)
        results = self.analyzer.analyze(text=text, language=self.language, entities=self.entities)
        for result in sorted(results, key=lambda result: -result.score):
            if result.score < MIN_SCORE:
                continue
            if all(result.end <= other.start or result.start >= other.end for other in found):
                found.append(Found(result.start, result.end, result.entity_type))
        return sorted(found)


def chosen_model(wanted: str | None, installed: Sequence[str]) -> str:
    """The model that was named, or the best installed one for English. Raises ConfigError where it is not there."""
    if wanted is not None:
        if wanted not in installed and not Path(wanted).is_dir():
            known = ", ".join(sorted(installed)) or "none"
            raise ConfigError(f"--pii-model {wanted}: is not installed and no folder; installed: {known}")
        return wanted
    for size in SIZES:
        for name in sorted(installed):
            if name.startswith("en_") and size in name.split("_"):
                return name
    raise ConfigError(f"--pii-engine presidio: no English spaCy model is installed; expected {HOW_TO}")
