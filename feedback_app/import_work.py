"""From an imported item to the store's words: which tasks it makes, and what its answers are about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from feedback_app.formats.items import Answer, Item
from feedback_app.store.tasks import NUM_COMPLETIONS
from rlhf.core.records import Judgement, TaskKind

TaskKey = tuple[str, str, frozenset[str]]


@dataclass
class Work:
    """The tasks of one item as (kind, prompt_id, completion ids), and each answer with the task it is about."""

    item: Item
    tasks: list[tuple[TaskKind, str, tuple[str, ...]]] = field(default_factory=list)
    answers: list[tuple[Answer, TaskKey]] = field(default_factory=list)
    too_few: int = 0

    def add_task(self, kind: TaskKind, ids: tuple[str, ...]) -> TaskKey | None:
        """Ask for a task; None (and counted) where the number of completions does not allow it."""
        low, high = NUM_COMPLETIONS[kind]
        if not low <= len(ids) <= high:
            self.too_few += 1
            return None
        prompt_id = self.item.prompt.prompt_id
        self.tasks.append((kind, prompt_id, ids))
        return kind, prompt_id, frozenset(ids)

    def expected(self, answer: Answer, order: tuple[str, ...]) -> dict[str, Any]:
        """A gold item's expected answer, in the task's canonical order."""
        said = _said(self.item, answer, order)
        return {name: value for name, value in said.items() if value is not None}

    def judgement(
        self, answer: Answer, item: Item, task_id: str, annotator_id: str, order: tuple[str, ...]
    ) -> Judgement:
        """The answer as the store keeps it. Built without a second check: the reader made the checks."""
        fields: dict[str, Any] = {
            "strength": None,
            "preference": None,
            "ranking": None,
            "scores": None,
            "thumb": None,
            **_said(item, answer, order),
        }
        return Judgement.model_construct(
            judgement_id="",
            task_id=task_id,
            prompt_id=item.prompt.prompt_id,
            annotator_id=annotator_id,
            kind=answer.kind,
            completion_ids=order,
            shown_order=(),
            demonstration=answer.demonstration,
            reason=answer.reason,
            flags=(),
            version=1,
            **fields,
        )


def work_of(item: Item, task: TaskKind | None) -> Work:
    """What an item asks for: tasks for its answers, and those that `task` (or its completions alone) call for."""
    work = Work(item)
    ids = tuple(completion.completion_id for completion in item.completions)
    for answer in item.answers:
        about = ids if answer.about is None else tuple(ids[place] for place in answer.about)
        key = work.add_task(answer.kind, () if answer.kind == "demonstration" else about)
        if key is not None:
            work.answers.append((answer, key))
    if task is None and not item.answers and len(ids) > 1:
        task = "pairwise"
    if task is None:
        return work
    if task == "demonstration":
        for completion_id in ids or (None,):
            work.add_task(task, (completion_id,) if completion_id else ())
    elif not ids:
        return work  # a prompt alone: nothing to compare yet
    elif task == "pairwise" and len(ids) > 1:
        for pair in combinations(ids, 2):
            work.add_task(task, pair)
    elif task == "thumbs":
        for completion_id in ids:
            work.add_task(task, (completion_id,))
    else:
        work.add_task(task, ids)
    return work


def _said(item: Item, answer: Answer, order: tuple[str, ...]) -> dict[str, Any]:
    """What was said, about completion ids in canonical order instead of places in the row."""
    ids = [completion.completion_id for completion in item.completions]
    if answer.kind == "pairwise":
        about = answer.about or (0, 1)
        if not isinstance(answer.choice, int):
            return {"preference": answer.choice}
        chosen = ids[about[answer.choice]]
        preference = "first" if chosen == order[0] else "second"
        return {"preference": preference, "strength": answer.strength}
    if answer.tiers is not None:
        return {"ranking": tuple(tuple(ids[place] for place in tier) for tier in answer.tiers)}
    if answer.scores is not None:
        return {
            "scores": {
                attribute: {ids[place]: score for place, score in by_place.items()}
                for attribute, by_place in answer.scores.items()
            }
        }
    return {"thumb": answer.thumb} if answer.thumb is not None else {}
