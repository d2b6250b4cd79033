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
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, text

from feedback_app.store.rows import look_up

BATCH = 1000
_quoted = encode_basestring
_ENCODER = JSONEncoder(ensure_ascii=False, allow_nan=False)

# The unary plus keeps SQLite from sorting all answers of the project: it walks the index of ids instead.
_ANSWERS = (
    "SELECT a.annotation_id, a.task_id, a.annotator_id, a.kind, a.purpose, a.preference, a.strength, "
    "a.ranking, a.scores, a.thumb, a.demonstration, a.simulated, a.rubric_id, a.created_at, t.prompt_id "
    "FROM final_annotations a JOIN tasks t ON t.task_id = a.task_id "
    "WHERE {plus}a.project_id = :project AND NOT a.surplus "
    "ORDER BY a.annotation_id"
)
_PROMPTS = (
    "SELECT p.prompt_id, p.group_id, p.source, p.messages FROM {wanted} w CROSS JOIN prompts p "
    "WHERE p.prompt_id = w.id"
)
_COMPLETIONS = (
    "SELECT tc.task_id, c.completion_id, c.text, c.model_id FROM {wanted} w CROSS JOIN task_completions tc "
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
    """A prompt as it goes into lines: its messages as JSON, its ids as a part of a row, and the group's alone."""

    group_id: str
    prompt_id: str
    messages: str
    ids: str
    source: str


class Shown(NamedTuple):
    """A completion as it goes into lines: its text and the id of its model, both JSON."""

    text: str
    model: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One exported answer: its row, its prompt, and its completions by id in canonical order."""

    row: Row[Any]
    ask: Ask
    completions: dict[str, Shown]

    @property
    def said(self) -> str:
        """Who said it, in which answer, of which source the prompt was, and when: the end of a row."""
        row = self.row
        return (
            f'"annotator_id": {_quoted(row.annotator_id)}, "judgement_id": {_quoted(row.annotation_id)}, '
            f'"source": {self.ask.source}, "rated_at": {row.created_at!r}}}\n'
        )


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
    if not comparisons:
        return
    weight, said = repr(1.0 / len(comparisons)), answer.said
    for chosen, rejected, margin, tie in comparisons:
        better, worse = answer.completions[chosen], answer.completions[rejected]
        trl = (
            f'{{"prompt": {ask.messages}, "chosen": {_assistant(better.text)}, '
            f'"rejected": {_assistant(worse.text)}'
        )
        line = (
            f'{trl}, "margin": {margin!r}, "weight": {weight}, "tie": {"true" if tie else "false"}, {ask.ids}, '
            f'"chosen_id": {_quoted(chosen)}, "rejected_id": {_quoted(rejected)}, '
            f'"chosen_model": {better.model}, "rejected_model": {worse.model}, {said}'
        )
        yield line, None if tie else trl + "}\n"


def unpaired_lines(answer: Answer, *, from_pairs: bool) -> Iterator[str]:
    """TRL's unpaired preference: a thumb, and where asked for both sides of a decided pair."""
    row = answer.row
    if row.kind == "thumbs":
        (completion_id,) = answer.completions
        yield _unpaired(answer, completion_id, row.thumb == "up")
    elif from_pairs and row.kind == "pairwise":
        for chosen, rejected, _, tie in _comparisons(row, list(answer.completions)):
            if not tie:
                yield _unpaired(answer, chosen, True)
                yield _unpaired(answer, rejected, False)


def sft_line(answer: Answer) -> str:
    """A demonstration as one conversation."""
    assistant = _assistant(_quoted(answer.row.demonstration))
    return f'{{"messages": {answer.ask.messages[:-1]}, {assistant[1:]}}}\n'


def scores_lines(answer: Answer) -> Iterator[str]:
    """One line per completion with its score on each attribute (1 to 5)."""
    ask = answer.ask
    by_completion: dict[str, dict[str, int]] = defaultdict(dict)
    for attribute, given in sorted(_parsed(answer.row.scores).items()):
        for completion_id, score in given.items():
            by_completion[completion_id][attribute] = score
    for completion_id, shown in answer.completions.items():
        if scores := by_completion.get(completion_id):
            yield (
                f'{{"prompt": {ask.messages}, "completion": {_assistant(shown.text)}, '
                f'"scores": {_ENCODER.encode(scores)}, {ask.ids}, "completion_id": {_quoted(completion_id)}, '
                f'"model_id": {shown.model}, {answer.said}'
            )


def ranking_line(answer: Answer) -> str:
    """A ranking, best first; completions of equal rank are tied."""
    ask = answer.ask
    order = [(c, rank) for rank, tier in enumerate(_parsed(answer.row.ranking), start=1) for c in tier]
    shown = [answer.completions[c] for c, _ in order]
    texts = ", ".join(_assistant(completion.text) for completion in shown)
    models = ", ".join(completion.model for completion in shown)
    return (
        f'{{"prompt": {ask.messages}, "completions": [{texts}], "ranks": {[rank for _, rank in order]}, '
        f'{ask.ids}, "completion_ids": {_ENCODER.encode([c for c, _ in order])}, '
        f'"model_ids": [{models}], {answer.said}'
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


def _unpaired(answer: Answer, completion_id: str, label: bool) -> str:
    ask, shown = answer.ask, answer.completions[completion_id]
    return (
        f'{{"prompt": {ask.messages}, "completion": {_assistant(shown.text)}, '
        f'"label": {"true" if label else "false"}, {ask.ids}, "completion_id": {_quoted(completion_id)}, '
        f'"model_id": {shown.model}, {answer.said}'
    )


def _assistant(content: str) -> str:
    return f'[{{"role": "assistant", "content": {content}}}]'


def _asks(connection: Connection, ids: Iterable[str]) -> dict[str, Ask]:
    return {
        prompt_id: Ask(
            group_id,
            prompt_id,
            _as_json(messages),
            f'"prompt_id": {_quoted(prompt_id)}, "group_id": {_quoted(group_id)}',
            _quoted(source),
        )
        for prompt_id, group_id, source, messages in look_up(connection, _PROMPTS, ids)
    }


def _completions(connection: Connection, task_ids: Iterable[str]) -> dict[str, dict[str, Shown]]:
    shown: dict[str, dict[str, Shown]] = defaultdict(dict)
    for task_id, completion_id, content, model in look_up(connection, _COMPLETIONS, task_ids):
        shown[task_id][completion_id] = Shown(_quoted(content), _quoted(model))
    return shown


def _parsed(value: Any) -> Any:
    """A JSON column as PostgreSQL's driver gives it (parsed) and as SQLite's does (text)."""
    return json.loads(value) if isinstance(value, str) else value


def _as_json(value: Any) -> str:
    """A JSON column as text with its characters unescaped; text without a backslash is that already."""
    return value if isinstance(value, str) and "\\" not in value else _ENCODER.encode(_parsed(value))
