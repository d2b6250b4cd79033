"""Two completions in columns of their own, and who was preferred how much.

    {"context": [messages], "response1": ..., "response2": ..., "overall_preference": -2,
        "individual_preference": [{"score": -3, "reasoning": ...}, ...]}       HelpSteer3
    {"prompt": ..., "response_1": ..., "response_2": ..., "preference_strength": 1}   HelpSteer2-Preference
    {"instruction": ..., "input": ..., "response1": ..., "response2": ...,
        "annotator1": 2, "annotator2": 1, "annotator3": 0}                     PandaLM: 0 tie, 1 first, 2 second
    {"question": ..., "prediction 1": ..., "prediction 4": ..., "preference": [0, 1, 2, 1, 0, 2]}
                                                                               FineGrained-RLHF, pairs 12 13 14 23 24 34

-3 says that the first is much better, 3 that the second is.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

from feedback_app.formats.items import (
    Answer,
    Item,
    make_completion,
    make_prompt,
    refuse_same,
    signed,
    whole,
)
from rlhf.core.files import BadRow
from rlhf.core.records import Prompt
from rlhf.core.turns import text

_ANNOTATOR = re.compile(r"annotator ?_?\d+$")
_PREDICTION = re.compile(r"prediction ?_?\d+$")


def helpsteer_preference(row: dict[str, Any]) -> Item:
    """HelpSteer3 (every person's preference where they are kept) and HelpSteer2's preferences."""
    prompt = make_prompt({k: v for k, v in row.items() if k != "context"}, _asked(row), "helpsteer")
    completions = _two(prompt, row)
    people = row.get("individual_preference")
    if people:
        if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
            raise BadRow("'individual_preference' must be a list of objects with 'score'")
        answers = tuple(
            Answer(
                **signed(person.get("score"), "individual_preference.score"),
                reason=text(person.get("reasoning") or "", "reasoning"),
            )
            for person in people
        )
    else:
        name = "overall_preference" if "overall_preference" in row else "preference_strength"
        reason = text(row.get("preference_elaboration") or "", "preference_elaboration")
        answers = (Answer(**signed(row.get(name), name), reason=reason),)
    return Item(prompt, completions, answers)


def pandalm(row: dict[str, Any]) -> Item:
    """Two responses and a verdict of 0, 1 or 2 from each annotator."""
    asked = text(row.get("instruction"), "instruction")
    if row.get("input"):
        asked = f"{asked}\n\n{text(row['input'], 'input')}"
    prompt = make_prompt({}, asked, "pandalm")
    completions = _two(prompt, row)
    answers = []
    for name in sorted(key for key in row if _ANNOTATOR.match(key)):
        verdict = whole(row[name], name, 0, 2)
        answers.append(Answer("pairwise", choice="tie" if verdict == 0 else verdict - 1, annotator=name))
    return Item(prompt, completions, tuple(answers))


def fine_grained(row: dict[str, Any]) -> Item:
    """Several predictions and a verdict of 0, 1 or 2 for each pair; pairs of the same text are left out."""
    names = sorted(key for key in row if _PREDICTION.match(key))
    passages = row.get("passages") or []
    context = "\n\n".join("\n".join(p) if isinstance(p, list) else str(p) for p in passages)
    prompt = make_prompt({"context": context} if context else {}, row.get("question"), "fine-grained")
    written = [make_completion(prompt, row[name], name=name) for name in names]
    completions = tuple({c.completion_id: c for c in written}.values())
    place = {c.completion_id: i for i, c in enumerate(completions)}
    pairs = list(combinations(written, 2))
    verdicts = row.get("preference")
    if not isinstance(verdicts, list) or len(verdicts) != len(pairs):
        raise BadRow(
            f"'preference' must be a list of {len(pairs)} verdicts, one for each pair of predictions"
        )
    answers = []
    for (one, other), said in zip(pairs, verdicts, strict=True):
        about = (place[one.completion_id], place[other.completion_id])
        if about[0] != about[1]:
            verdict = whole(said, "preference", 0, 2)
            answers.append(Answer("pairwise", choice="tie" if verdict == 0 else verdict - 1, about=about))
    return Item(prompt, refuse_same(completions), tuple(answers))


def _asked(row: dict[str, Any]) -> Any:
    asked = row.get("context") or row.get("prompt")
    if asked is None:
        raise BadRow("'context' or 'prompt' is missing; expected text or messages")
    return asked


def _two(prompt: Prompt, row: dict[str, Any]) -> Any:
    names = ("response1", "response2") if "response1" in row else ("response_1", "response_2")
    compared = str(row.get("cmp_key") or "").split("_")  # PandaLM: "model-a_model-b"
    models = compared if len(compared) == 2 else [row.get("model1"), row.get("model2")]
    return refuse_same(
        [
            make_completion(prompt, row.get(name), model=model, name=name)
            for name, model in zip(names, models, strict=True)
        ]
    )
