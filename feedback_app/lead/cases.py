"""A task as a lead looks at it to decide: the texts, blind, with what people said about them in words.

The completions stand in an order shuffled for this lead, as they would on the desk, and are called A, B, C ...;
nothing says what wrote them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from feedback_app.rendering import tree
from feedback_app.store.adjudication import Dispute, Opinion, disputed, open_dispute
from feedback_app.store.annotations import answer
from feedback_app.store.doubts import Doubts
from feedback_app.store.leases import TaskView, shuffled
from rlhf.core.errors import DataError
from rlhf.core.records import Judgement

STRENGTHS = {1: "slightly better", 2: "clearly better", 3: "much better", None: "better"}
MAX_CANDIDATES = 30

# People who said the same of one task: the best candidates for a known answer.
_UNANIMOUS = text(
    "SELECT a.task_id FROM current_annotations a JOIN tasks t ON t.task_id = a.task_id "
    "WHERE a.project_id = :project AND t.pool = 'queue' AND t.retired_at IS NULL "
    "AND (a.preference IN ('first', 'second') OR a.thumb IS NOT NULL) "
    "GROUP BY a.task_id HAVING count(*) >= 2 AND count(DISTINCT coalesce(a.preference, a.thumb)) = 1 "
    f"ORDER BY count(*) DESC, a.task_id LIMIT {MAX_CANDIDATES}"
)
_DECIDED = text(
    "SELECT task_id FROM tasks WHERE project_id = :project AND dispute = 'decided' AND pool = 'queue' "
    f"ORDER BY task_id LIMIT {MAX_CANDIDATES}"
)


def open_case(dispute: Dispute, lead_id: str) -> dict[str, Any]:
    """One task for the page."""
    view = dispute.task
    order = case_order(view, lead_id)
    canonical = tuple(completion.completion_id for completion in view.completions)
    letters = {completion_id: chr(ord("A") + i) for i, completion_id in enumerate(order)}
    texts = {completion.completion_id: completion.text for completion in view.completions}
    return {
        "task": view.task_id,
        "kind": view.kind,
        "messages": [
            {"role": m.role, "text": m.content, "tree": tree(m.content)} for m in view.prompt.messages
        ],
        "context": view.prompt.context,
        "sides": [{"letter": letters[i], "text": texts[i], "tree": tree(texts[i])} for i in order],
        "answers": [
            {
                "annotation": opinion.annotation_id,
                "name": opinion.name,
                "said": in_words(opinion, canonical, letters),
                "reason": opinion.reason,
                "flags": list(opinion.flags),
                "seconds": opinion.seconds,
                "at": opinion.created_at,
                "doubt": _doubt(dispute.doubts, opinion.annotation_id),
            }
            for opinion in dispute.answers
        ],
    }


def _doubt(doubts: Doubts | None, annotation_id: str) -> str:
    """Why this answer is before a lead, where a reward model is the reason."""
    if doubts is None or annotation_id not in doubts.probabilities:
        return ""
    percent = 100 * doubts.probabilities[annotation_id]
    shown = f"{percent:.0f}\u00a0%" if percent >= 1 else "less than 1\u00a0%"
    return f"the reward model {doubts.model} gives this answer {shown}"


def case_order(view: TaskView, lead_id: str) -> tuple[str, ...]:
    """The completions in the order in which this lead sees them, the same at every look."""
    return shuffled(view.task_id, lead_id, tuple(c.completion_id for c in view.completions))


def open_disputes(connection: Connection, project: str, lead_id: str, limit: int) -> list[dict[str, Any]]:
    return [open_case(dispute, lead_id) for dispute in disputed(connection, project, limit)]


def gold_candidates(connection: Connection, project: str, lead_id: str) -> list[dict[str, Any]]:
    """Tasks that could be gold: decided by a lead, or answered alike by several people."""
    task_ids: list[str] = []
    for query in (_DECIDED, _UNANIMOUS):
        task_ids += connection.execute(query, {"project": project}).scalars()
    return [
        open_case(open_dispute(connection, task_id), lead_id)
        for task_id in list(dict.fromkeys(task_ids))[:MAX_CANDIDATES]
    ]


def in_words(opinion: Opinion, canonical: tuple[str, ...], letters: dict[str, str]) -> str:
    """What somebody said, in the letters of the page. canonical: the task's own order of completions."""
    if opinion.preference is not None:
        if opinion.preference in ("tie", "both_bad"):
            return opinion.preference.replace("_", " ")
        chosen = canonical[0 if opinion.preference == "first" else 1]
        return f"{letters[chosen]} {STRENGTHS[opinion.strength]}"
    if opinion.ranking is not None:
        return " > ".join(" = ".join(letters[i] for i in group) for group in opinion.ranking)
    if opinion.scores is not None:
        return "; ".join(
            f"{attribute}: " + ", ".join(sorted(f"{letters[i]} {score}" for i, score in given.items()))
            for attribute, given in opinion.scores.items()
        )
    return f"thumbs {opinion.thumb}" if opinion.thumb is not None else "wrote an answer"


def decision(view: TaskView, lead_id: str, choice: str, strength: int | None, reason: str) -> Judgement:
    """A lead's own verdict about a pair: 'a', 'b', 'tie' or 'both_bad' in the order in which they see it."""
    if view.kind != "pairwise":
        raise DataError(f"a {view.kind} task is decided by taking over one of its answers")
    if choice in ("tie", "both_bad"):
        return answer(view, lead_id, preference=choice, reason=reason)
    chosen = case_order(view, lead_id)[0 if choice == "a" else 1]
    preference = "first" if chosen == view.completions[0].completion_id else "second"
    return answer(view, lead_id, preference=preference, strength=strength, reason=reason)


def taken_over(dispute: Dispute, lead_id: str, annotation_id: str, reason: str) -> Judgement:
    """One person's answer as the lead's decision; of a kind that has one."""
    opinion = chosen_opinion(dispute, annotation_id)
    if dispute.task.kind == "demonstration":
        raise DataError("a written answer cannot be taken over as a decision")
    given = {
        "preference": opinion.preference,
        "strength": opinion.strength,
        "ranking": opinion.ranking,
        "scores": opinion.scores,
        "thumb": opinion.thumb,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    return answer(dispute.task, lead_id, reason=reason, **fields)


def chosen_opinion(dispute: Dispute, annotation_id: str) -> Opinion:
    """The answer of that id among the task's current ones. Unknown -> DataError."""
    for opinion in dispute.answers:
        if opinion.annotation_id == annotation_id:
            return opinion
    raise DataError(f"'{annotation_id}' is not a current answer to task '{dispute.task.task_id}'")


def expected_of(judgement: Judgement) -> dict[str, Any]:
    """What a gold item made from this answer expects; a strength is a matter of taste and is not expected."""
    if judgement.kind == "pairwise":
        return {"preference": judgement.preference}
    if judgement.kind == "ranking":
        return {"ranking": [list(group) for group in judgement.ranking or ()]}
    if judgement.kind == "scores":
        return {"scores": judgement.scores}
    return {"thumb": judgement.thumb}
