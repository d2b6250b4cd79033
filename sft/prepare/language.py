"""Which language a text is in (py3langid, its model comes with the package)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from rlhf.core.errors import ConfigError

MIN_LETTERS = 20  # less says too little
MAX_CHARS = 2000  # more says no more
UNSURE = "unsure"


@cache
def _model() -> Any:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class Languages:
    """codes: the languages that are kept; told apart are all that the model knows."""

    def __init__(self, codes: Sequence[str] = (), min_confidence: float = 0.0) -> None:
        self._model = _model()
        known = set(self._model.labels)
        wrong = next((code for code in codes if code not in known), None)
        if wrong is not None:
            raise ConfigError(
                f"--languages: '{wrong}' is not known; expected among {' '.join(sorted(known))}"
            )
        self.codes, self.min_confidence = frozenset(codes), min_confidence

    def of(self, text: str) -> str:
        """An ISO 639-1 code, or 'unsure' for a short text and one that could be several."""
        text = text[:MAX_CHARS]
        if sum(map(str.isalpha, text)) < MIN_LETTERS:
            return UNSURE
        code, confidence = self._model.classify(text)
        return str(code) if confidence >= self.min_confidence else UNSURE

    def keeps(self, language: str) -> bool:
        """What nobody can tell is kept."""
        return not self.codes or language in self.codes or language == UNSURE
