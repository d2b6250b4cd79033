"""The pairs of a project that more people could be asked about, with their texts, for a model to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import JSON, Connection, text

from rlhf.core.records import Prompt

BATCH = 1000


@dataclass(frozen=True)
class AskablePair:
    """A pair in the queue, its completions in canonical order.

    num_answers: accepted ones. places_left: that are not answered yet. has_verdict: somebody preferred a side.
    """

    task_id: str
    prompt: Prompt
    first: str
    second: str
    num_answers: int
    places_left: int
    has_verdict: bool


_ASKABLE = text(
    "SELECT t.task_id, t.num_done, t.overlap, p.prompt_id, p.group_id, p.messages, p.context, "
    "a.text AS first_text, b.text AS second_text, EXISTS (SELECT 1 FROM current_annotations c "
    "WHERE c.task_id = t.task_id AND c.preference IN ('first', 'second')) AS has_verdict "
    "FROM tasks t JOIN prompts p ON p.prompt_id = t.prompt_id "
    "JOIN task_completions x ON x.task_id = t.task_id AND x.position = 0 "
    "JOIN completions a ON a.completion_id = x.completion_id "
    "JOIN task_completions y ON y.task_id = t.task_id AND y.position = 1 "
    "JOIN completions b ON b.completion_id = y.completion_id "
    "WHERE t.project_id = :project AND t.kind = 'pairwise' AND t.pool = 'queue' AND t.retired_at IS NULL "
    "AND (t.dispute IS NULL OR t.dispute <> 'decided') AND (t.num_done < t.overlap OR t.num_done = 1) "
    "ORDER BY t.task_id"
).columns(messages=JSON)


def askable_pairs(connection: Connection, project: str) -> Iterator[AskablePair]:
    """Pairs with a place left, and those answered by one person alone; not what a lead decided. Streamed, by id."""
    result = connection.execution_options(yield_per=BATCH).execute(_ASKABLE, {"project": project})
    for row in result:
        prompt = {"prompt_id": row.prompt_id, "messages": row.messages, "group_id": row.group_id}
        yield AskablePair(
            row.task_id,
            Prompt.model_validate(prompt | {"context": row.context}),
            row.first_text,
            row.second_text,
            row.num_done,
            row.overlap - row.num_done,
            bool(row.has_verdict),
        )
