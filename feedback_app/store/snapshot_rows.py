"""The rows of a snapshot: read in the order of an index, written as JSON text without a model in between.

50,000 ratings are exported in seconds and a million in the same memory, so nothing here grows with their
number: answers come a thousand at a time, with the prompts and completions of that thousand looked up beside
them. A prompt is turned into JSON once per batch, and lines are put together from parts that are JSON already
(the same bytes as `rlhf.core.files.to_json` gives).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from json.encoder import JSONEncoder, encode_basestring
from typing import Any

from sqlalchemy import Connection, Row, text

from feedback_app.store.rows import look_up

BATCH = 1000
_quoted = encode_basestring
_ENCODER = JSONEncoder(ensure_ascii=False, allow_nan=False)

# The unary plus keeps SQLite from sorting all answers of the project: it walks the index of ids instead.
_ANSWERS = (
    "SELECT a.annotation_id, a.task_id, a.annotator_id, a.kind, a.purpose, a.preference, a.strength, "
    "a.ranking, a.scores, a.thumb, a.demonstration, a.simulated, a.rubric_id, t.prompt_id "
    "FROM final_annotations a JOIN tasks t ON t.task_id = a.task_id "
    "WHERE {plus}a.project_id = :project AND NOT a.surplus "
    "ORDER BY a.annotation_id"
)
_PROMPTS = (
    "SELECT p.prompt_id, p.group_id, p.messages FROM {wanted} w CROSS JOIN prompts p WHERE p.prompt_id = w.id"
)
_COMPLETIONS = (
    "SELECT tc.task_id, c.completion_id, c.text FROM {wanted} w CROSS JOIN task_completions tc "
    "CROSS JOIN completions c WHERE tc.task_id = w.id AND c.completion_id = tc.completion_id "
    "ORDER BY tc.task_id, tc.position"
)
_LEFT_OUT = text(
    "SELECT CASE WHEN EXISTS (SELECT 1 FROM tombstones d WHERE d.annotation_id = a.annotation_id) THEN 'erased' "
    "WHEN EXISTS (SELECT 1 FROM annotations n WHERE n.supersedes = a.annotation_id) THEN 'corrected' "
    "WHEN a.purpose NOT IN ('rate', 'adjudicate') THEN a.purpose "
    "WHEN a.surplus THEN 'surplus' ELSE 'final' END AS why, count(*) AS num "
    "FROM annotations a WHERE a.project_id = :project GROUP BY 1"
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt as it goes into lines: its ids, its messages as JSON, and those without the brackets."""

    prompt_id: str
    group_id: str
    messages: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One exported answer: its row, its prompt, and its completions in canonical order as (id, JSON text)."""

    row: Row[Any]
    ask: Ask
    completions: dict[str, str]


def answers(connection: Connection, project: str) -> Iterator[Answer]:
    """The current, accepted answers of a project in the order of their ids; gold and repeats are not in it."""
    plus = "+" if connection.dialect.name == "sqlite" else ""
    query = text(_ANSWERS.format(plus=plus))
    result = connection.execution_options(yield_per=BATCH).execute(query, {"project": project})
    for rows in result.partitions(BATCH):
        asks = _asks(connection, {row.prompt_id for row in rows})
        shown = _completions(connection, {row.task_id for row in rows})
        for row in rows:
            yield Answer(row, asks[row.prompt_id], shown.get(row.task_id, {}))


def left_out(connection: Connection, project: str, num_exported: int) -> dict[str, int]:
    """How many answers are not exported, by reason: corrected, erased, surplus, gold, repeat, overruled."""
    counts = {row.why: int(row.num) for row in connection.execute(_LEFT_OUT, {"project": project})}
    counts["overruled"] = counts.pop("final", 0) - num_exported
    return {why: number for why, number in counts.items() if number}


def preference_lines(answer: Answer) -> Iterator[tuple[str, str | None]]:
    """(line of a `Preference`, line in TRL's columns or None for a tie) of each comparison in an answer."""
    row, ask = answer.row, answer.ask
    comparisons = list(_comparisons(row, list(answer.completions)))
    weight = repr(1.0 / len(comparisons)) if comparisons else ""
    for chosen, rejected, margin, tie in comparisons:
        trl = (
            f'{{"prompt": {ask.messages}, "chosen": {_assistant(answer.completions[chosen])}, '
            f'"rejected": {_assistant(answer.completions[rejected])}'
        )
        line = (
            f'{trl}, "margin": {margin!r}, "weight": {weight}, "tie": {"true" if tie else "false"}, '
            f'"prompt_id": {_quoted(ask.prompt_id)}, "group_id": {_quoted(ask.group_id)}, '
            f'"chosen_id": {_quoted(chosen)}, "rejected_id": {_quoted(rejected)}, '
            f'"annotator_id": {_quoted(row.annotator_id)}, "judgement_id": {_quoted(row.annotation_id)}}}\n'
        )
        yield line, None if tie else trl + "}\n"


def unpaired_lines(answer: Answer, *, from_pairs: bool) -> Iterator[str]:
    """TRL's unpaired preference: a thumb, and where asked for both sides of a decided pair."""
    row = answer.row
    if row.kind == "thumbs":
        (completion,) = answer.completions.values()
        yield _unpaired(answer.ask, completion, row.thumb == "up")
    elif from_pairs and row.kind == "pairwise":
        for chosen, rejected, _, tie in _comparisons(row, list(answer.completions)):
            if not tie:
                yield _unpaired(answer.ask, answer.completions[chosen], True)
                yield _unpaired(answer.ask, answer.completions[rejected], False)


def sft_line(answer: Answer) -> str:
    """A demonstration as one conversation."""
    assistant = _assistant(_quoted(answer.row.demonstration))
    return f'{{"messages": {answer.ask.messages[:-1]}, {assistant[1:]}}}\n'


def scores_lines(answer: Answer) -> Iterator[str]:
    """One line per completion with its score on each attribute (1 to 5)."""
    row, ask = answer.row, answer.ask
    by_completion: dict[str, dict[str, int]] = defaultdict(dict)
    for attribute, given in sorted(_parsed(row.scores).items()):
        for completion_id, score in given.items():
            by_completion[completion_id][attribute] = score
    for completion_id, completion in answer.completions.items():
        if scores := by_completion.get(completion_id):
            yield (
                f'{{"prompt": {ask.messages}, "completion": {_assistant(completion)}, '
                f'"scores": {_ENCODER.encode(scores)}, "prompt_id": {_quoted(ask.prompt_id)}, '
                f'"group_id": {_quoted(ask.group_id)}, "completion_id": {_quoted(completion_id)}, '
                f'"annotator_id": {_quoted(row.annotator_id)}, "judgement_id": {_quoted(row.annotation_id)}}}\n'
            )


def ranking_line(answer: Answer) -> str:
    """A ranking, best first; completions of equal rank are tied."""
    row, ask = answer.row, answer.ask
    order = [(c, rank) for rank, tier in enumerate(_parsed(row.ranking), start=1) for c in tier]
    texts = ", ".join(_assistant(answer.completions[c]) for c, _ in order)
    return (
        f'{{"prompt": {ask.messages}, "completions": [{texts}], "ranks": {[rank for _, rank in order]}, '
        f'"prompt_id": {_quoted(ask.prompt_id)}, "group_id": {_quoted(ask.group_id)}, '
        f'"completion_ids": {_ENCODER.encode([c for c, _ in order])}, '
        f'"annotator_id": {_quoted(row.annotator_id)}, "judgement_id": {_quoted(row.annotation_id)}}}\n'
    )


def _comparisons(row: Row[Any], ids: list[str]) -> Iterator[tuple[str, str, float, bool]]:
    """(chosen, rejected, margin, tie): one for a pair, all pairs of different rank for a ranking."""
    if row.kind == "pairwise":
        first, second = ids
        tie = row.preference in ("tie", "both_bad")
        if row.preference == "second":
            first, second = second, first
        yield first, second, 0.0 if tie else float(row.strength or 1), tie
    elif row.kind == "ranking":
        for better, worse in combinations(_parsed(row.ranking), 2):
            for chosen in better:
                for rejected in worse:
                    yield chosen, rejected, 1.0, False


def _unpaired(ask: Ask, completion: str, label: bool) -> str:
    said = "true" if label else "false"
    return f'{{"prompt": {ask.messages}, "completion": {_assistant(completion)}, "label": {said}}}\n'


def _assistant(content: str) -> str:
    return f'[{{"role": "assistant", "content": {content}}}]'


def _asks(connection: Connection, ids: Iterable[str]) -> dict[str, Ask]:
    rows = look_up(connection, _PROMPTS, ids)
    return {prompt_id: Ask(prompt_id, group_id, _as_json(messages)) for prompt_id, group_id, messages in rows}


def _completions(connection: Connection, task_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    shown: dict[str, dict[str, str]] = defaultdict(dict)
    for task_id, completion_id, content in look_up(connection, _COMPLETIONS, task_ids):
        shown[task_id][completion_id] = _quoted(content)
    return shown


def _parsed(value: Any) -> Any:
    """A JSON column as PostgreSQL's driver gives it (parsed) and as SQLite's does (text)."""
    return json.loads(value) if isinstance(value, str) else value


def _as_json(value: Any) -> str:
    """A JSON column as text with its characters unescaped; text without a backslash is that already."""
    return value if isinstance(value, str) and "\\" not in value else _ENCODER.encode(_parsed(value))
