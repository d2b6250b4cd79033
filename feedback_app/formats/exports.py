"""What Label Studio and Argilla export: a task with its data, and what each person said about it.

Label Studio: {"data": {"prompt": ..., "answer1": ..., "answer2": ...}, "annotations": [{"completed_by": 1,
    "result": [{"from_name": "pw", "type": "pairwise", "value": {"selected": "left"}}]}]}
    types: pairwise, rating (one completion; `from_name` is the attribute), ranker (ids or columns of the
    completions, best first), choices and textarea (the reason beside another result, else a demonstration).
Argilla: {"fields": {"prompt": ..., "response1": ..., "response2": ...},
    "responses": {"preference": [{"value": "response1", "user_id": ...}]}}
    version 1's list of responses and the flattened columns of `to_datasets` are read too.

Which of the data is the prompt, and which are completions, is told by their names: a prompt is `prompt`,
`instruction`, `question`, `input` or `text`, everything numbered or lettered (`answer1`, `response_b`,
`completion-2`) is a completion, in that order; so is a column alone named `response`, `answer`, `completion`
or `output`. `--map` renames what is called otherwise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from feedback_app.formats.items import (
    Answer,
    Item,
    make_completion,
    make_prompt,
    refuse_same,
    truth,
    whole,
)
from rlhf.core.files import BadRow
from rlhf.core.turns import text

_PROMPTS = ("prompt", "messages", "instruction", "question", "input", "text")
_ALONE = ("response", "answer", "completion", "output", "generation")
_NUMBERED = re.compile(
    r"(?:answers?|responses?|completions?|outputs?|generations?|text|candidate|option|model|chosen|rejected|summary)"
    r"[ _-]?(\d+|[a-i])$"
)
_FIRST = re.compile(r"(left|first|1|a|response[ _-]?1|answer[ _-]?1)$")
_TIES = frozenset({"tie", "equal", "same", "both", "both good", "neutral", "0"})
_BAD = frozenset({"both bad", "both_bad", "neither", "none"})
_REASONS = re.compile(r"reason|comment|why|rationale|justif|explan|feedback|note")


def label_studio(row: dict[str, Any]) -> Item:
    """One task of a Label Studio export. Cancelled annotations are left out."""
    data = row.get("data")
    if not isinstance(data, dict):
        raise BadRow("'data' is missing; expected a task of a Label Studio export")
    fields, keys = _fields(data, "label-studio")
    answers = []
    for annotation in row.get("annotations") or row.get("completions") or []:
        results = annotation.get("result") if isinstance(annotation, dict) else None
        if not isinstance(results, list) or annotation.get("was_cancelled"):
            continue
        said: dict[str, Any] = {}
        for result in results:
            if isinstance(result, dict) and isinstance(result.get("value"), dict):
                name = str(result.get("from_name", ""))
                for kind in ("pairwise", "rating", "ranker", "choices", "textarea"):
                    if result.get("type") == kind:
                        value = result["value"]
                        said[name] = value.get("selected" if kind == "pairwise" else _value_key(kind), value)
        answers += _answers(said, fields, keys, _person(annotation.get("completed_by")))
    return Item(fields.prompt, fields.completions, tuple(answers))


def argilla(row: dict[str, Any]) -> Item:
    """One record of Argilla; what a model suggested is no rating. Drafts and discarded answers are left out."""
    if not isinstance(row.get("fields"), dict):
        row = _unflattened(row)
    fields, keys = _fields(row["fields"], "argilla")
    by_person: dict[str, dict[str, Any]] = defaultdict(dict)
    given = row.get("responses") or {}
    if isinstance(given, list):  # version 1: one entry per person
        for number, response in enumerate(given):
            if isinstance(response, dict) and response.get("status", "submitted") == "submitted":
                values = response.get("values") or {}
                person = _person(response.get("user_id")) or f"argilla {number + 1}"
                for name, value in values.items():
                    by_person[person][name] = value.get("value") if isinstance(value, dict) else value
    else:
        for name, responses in given.items():
            for number, response in enumerate(responses or []):
                if isinstance(response, dict) and (response.get("status") or "submitted") == "submitted":
                    person = _person(response.get("user_id")) or f"argilla {number + 1}"
                    by_person[person][name] = response.get("value")
    answers = []
    for person, said in by_person.items():
        answers += _answers(said, fields, keys, person)
    return Item(fields.prompt, fields.completions, tuple(answers))


def _fields(data: Mapping[str, Any], source: str) -> tuple[Item, list[str]]:
    """The prompt and the completions of a task, and the columns that the completions were in."""
    asked = next((name for name in _PROMPTS if data.get(name)), None)
    if asked is None:
        raise BadRow(
            f"no prompt among {', '.join(data) or 'no columns'}; expected one of {', '.join(_PROMPTS)} (see --map)"
        )
    context = {"context": data["context"]} if isinstance(data.get("context"), str) else {}
    prompt = make_prompt(context, data[asked], source)
    keys = sorted((k for k in data if k != asked and _NUMBERED.match(k.lower())), key=_order)
    keys = keys or [name for name in _ALONE if isinstance(data.get(name), str)][:1]
    listed = next(
        (data[k] for k in ("items", "completions", "responses") if isinstance(data.get(k), list)), None
    )
    if not keys and listed is not None:  # a Label Studio list, as its ranker takes
        found = [item if isinstance(item, dict) else {"text": item} for item in listed]
        keys = [str(item.get("id", place + 1)) for place, item in enumerate(found)]
        values = [item.get("text", item.get("body", item.get("html"))) for item in found]
    else:
        values = [data[key] for key in keys]
    written = [make_completion(prompt, value, name=key) for key, value in zip(keys, values, strict=True)]
    return Item(prompt, refuse_same(written) if written else ()), keys


def _order(name: str) -> tuple[int, str]:
    end = _NUMBERED.match(name.lower()).group(1)  # type: ignore[union-attr]
    return (int(end), "") if end.isdigit() else (0, end)


def _answers(said: Mapping[str, Any], fields: Item, keys: Sequence[str], person: str) -> list[Answer]:
    """What one person said, by question. Words are the reason of the other answers, or a demonstration."""
    count = len(fields.completions)
    words = {name: _words(value) for name, value in said.items() if _words(value) is not None}
    reason = next((w for name, w in words.items() if w and _REASONS.search(name.lower())), "")
    answers: list[Answer] = []
    scores: dict[str, dict[int, int]] = {}
    for name, value in said.items():
        ranking = _ranked(value, keys)
        if ranking is not None and count >= 3:
            answers.append(Answer("ranking", tiers=ranking, annotator=person, reason=reason))
        elif count == 1 and isinstance(value, int | float) and not isinstance(value, bool):
            scores[name] = {0: whole(value, name, 1, 5)}
        elif count == 1 and (
            isinstance(value, bool) or _word(value) in ("up", "down", "good", "bad", "yes", "no")
        ):
            up = truth(value if isinstance(value, bool) else _word(value), name)
            answers.append(Answer("thumbs", thumb="up" if up else "down", annotator=person, reason=reason))
        elif count == 2 and (choice := _choice(value, keys)) is not None:
            answers.append(Answer("pairwise", choice=choice, annotator=person, reason=reason))
    if scores:
        answers.append(Answer("scores", scores=scores, annotator=person, reason=reason))
    written = next((w for name, w in words.items() if w and not _REASONS.search(name.lower())), None)
    if not answers and written:
        answers.append(Answer("demonstration", demonstration=written, annotator=person, about=()))
    return answers


def _choice(value: Any, keys: Sequence[str]) -> int | str | None:
    word = _word(value)
    if word in _TIES:
        return "tie"
    if word in _BAD:
        return "both_bad"
    lowered = [key.lower() for key in keys]
    if word in lowered:
        return lowered.index(word)
    if _FIRST.match(word):
        return 0
    return 1 if re.match(r"(right|second|2|b|response[ _-]?2|answer[ _-]?2)$", word) else None


def _ranked(value: Any, keys: Sequence[str]) -> tuple[tuple[int, ...], ...] | None:
    """A ranking as tiers of places: a list of ids best first, or Argilla's [{"value": id, "rank": 1}, ...]."""
    if isinstance(value, dict):
        value = next((v for v in value.values() if isinstance(v, list)), None)
    if not isinstance(value, list) or len(value) != len(keys):
        return None
    places = {key: place for place, key in enumerate(keys)}
    tiers: dict[float, list[int]] = defaultdict(list)
    for rank, entry in enumerate(value):
        name = str(entry.get("value", entry.get("id")) if isinstance(entry, dict) else entry)
        if name not in places:
            return None
        said = entry.get("rank") if isinstance(entry, dict) else None
        tiers[float(said if isinstance(said, int | float) else rank)].append(places[name])
    ranked = tuple(tuple(sorted(tiers[rank])) for rank in sorted(tiers))
    return ranked if sorted(p for tier in ranked for p in tier) == list(range(len(keys))) else None


def _value_key(kind: str) -> str:
    return "text" if kind == "textarea" else kind


def _word(value: Any) -> str:
    """A choice as a word: Label Studio keeps it as a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(value).strip().lower() if isinstance(value, str | int) else ""


def _words(value: Any) -> str | None:
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    return text(value, "text").strip() if isinstance(value, str) else None


def _person(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("email") or value.get("username") or value.get("id")
    return "" if value is None else f"rater {value}" if isinstance(value, int) else str(value)[:128]


def _unflattened(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of `to_datasets` ("quality.responses", "quality.responses.users") as a record."""
    responses: dict[str, list[dict[str, Any]]] = {}
    fields = {}
    for name, value in row.items():
        question, dot, rest = name.partition(".")
        if dot and rest == "responses":
            users = row.get(f"{question}.responses.users") or []
            states = row.get(f"{question}.responses.status") or []
            responses[question] = [
                {
                    "value": said,
                    "user_id": users[i] if i < len(users) else None,
                    "status": states[i] if i < len(states) else "submitted",
                }
                for i, said in enumerate(value or [])
            ]
        elif not dot and name not in ("id", "_server_id", "status", "metadata", "vectors"):
            fields[name] = value
    return {"fields": fields, "responses": responses}
