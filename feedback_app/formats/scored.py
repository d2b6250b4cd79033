"""Scores on attributes.

    {"prompt": ..., "response": ..., "helpfulness": 3, ...}          HelpSteer: columns of 0 to 4
    {"instruction": ..., "completions": [{"response": ..., "model": ...,
        "annotations": {"helpfulness": {"Rating": "4"}}}]}           UltraFeedback: 1 to 5
    {"prompt": ..., "completion": ..., "clarity": 5}                 any columns, named with --score-columns

Scores are kept as ours, 1 to 5: another scale is stretched over it and rounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from feedback_app.formats.items import (
    Answer,
    Item,
    make_completion,
    make_prompt,
    on_scale,
    refuse_same,
)
from rlhf.core.files import BadRow
from rlhf.core.turns import text

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HELPSTEER_SCALE = (0.0, 4.0)
OUR_SCALE = (1.0, 5.0)


def columns(
    row: dict[str, Any], names: Sequence[str], scale: tuple[float, float], *, all_of_them: bool
) -> Item:
    """One completion with a score in some columns: in all of them, or at least in one."""
    prompt = make_prompt(row, row.get("prompt"), "import")
    written = row.get("completion", row.get("response"))
    completion = make_completion(prompt, written, model=row.get("model_id", row.get("model")))
    scores = {name: {0: on_scale(row[name], name, scale)} for name in names if row.get(name) is not None}
    if not scores or (all_of_them and len(scores) < len(names)):
        needed = "all" if all_of_them else "at least one"
        raise BadRow(f"found {len(scores)} scores; expected {needed} of the columns {', '.join(names)}")
    annotator = text(row.get("annotator_id") or "", "annotator_id")
    reason = text(row.get("reason") or "", "reason")
    explanation = text(row.get("explanation") or "", "explanation")
    answer = Answer("scores", scores=scores, annotator=annotator, reason=reason, explanation=explanation)
    return Item(prompt, (completion,), (answer,))


def ultrafeedback(row: dict[str, Any]) -> Item:
    """Several completions with ratings per attribute; an attribute that does not rate them all is left out."""
    prompt = make_prompt(row, row.get("instruction", row.get("prompt")), "ultrafeedback")
    given = row.get("completions")
    if not isinstance(given, list) or not given or not all(isinstance(item, dict) for item in given):
        raise BadRow("'completions' must be a list of objects with 'response' and 'annotations'")
    completions = refuse_same(
        [
            make_completion(prompt, item.get("response"), model=item.get("model"), name="response")
            for item in given
        ]
    )
    scores: dict[str, dict[int, int]] = defaultdict(dict)
    for place, item in enumerate(given):
        for attribute, said in (item.get("annotations") or {}).items():
            rating = _rating(said)
            if rating is not None:
                scores[attribute][place] = on_scale(rating, f"annotations.{attribute}", OUR_SCALE)
    whole = {name: by_place for name, by_place in scores.items() if len(by_place) == len(completions)}
    if not whole:
        return Item(prompt, completions)
    return Item(prompt, completions, (Answer("scores", scores=whole),))


def _rating(said: Any) -> Any:
    """The rating in an annotation, which UltraFeedback keeps as text or as 'N/A', alone or first of a list."""
    if isinstance(said, list):
        said = said[0] if said else None
    rating = said.get("Rating") if isinstance(said, dict) else said
    return None if rating in (None, "", "N/A") else rating
