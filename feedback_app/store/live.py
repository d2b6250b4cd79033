"""Ratings that people give where a model is at work: kept as the desk's are, so that `rlhf export` finds them.

What was rated comes along with the rating: the prompt (the conversation so far), the answers, the task. The task gets
a place for it whatever its overlap, as for an imported rating, so a live rating is never surplus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from feedback_app.store.annotations import Submission
from feedback_app.store.bulk import BulkCounts, import_answers
from feedback_app.store.engine import Store
from feedback_app.store.schema import projects
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, ensure_project
from rlhf.core.errors import StoreError
from rlhf.core.records import Completion, Judgement, Prompt, TaskKind

ORIGIN = "live"
RUBRIC = """\
What people say about answers that they got in the chat.
1. **Does it help?** It answers what was asked and gets the person further.
2. **Is it true?** It invents nothing.
3. **Is it considerate?** Polite, and nothing harmful.
4. **Is it clear?** As short as the matter allows."""


def prepare_project(store: Store, project: str, *, simulated: bool = False) -> None:
    """Make the project of live ratings unless it is there. Raises StoreError for one of blind evaluations."""
    ensure_project(store, project, title="Live answers", rubric=RUBRIC, simulated=simulated)
    with store.read() as connection:
        found = connection.execute(select(projects.c.purpose).where(projects.c.project_id == project))
        if found.scalar_one() == "evaluate":
            raise StoreError(
                f"project '{project}' holds blind evaluations, which are never exported; choose another --project"
            )


def record(
    store: Store,
    project: str,
    kind: TaskKind,
    prompt: Prompt,
    completions: Sequence[Completion],
    annotator_id: str,
    *,
    client_key: str,
    seconds: float | None = None,
    simulated: bool = False,
    **said: Any,
) -> BulkCounts:
    """Store one rating; when this returns it is on disk. The same client key again changes nothing.

    completions: as they were shown. said: the fields of a judgement; `chosen`, the id of the better completion, stands
    for its preference. A second rating of the same person about the same answers is a correction of the first.
    Raises what `annotations.submit` raises.
    """
    order = tuple(sorted(completion.completion_id for completion in completions))
    add_prompts(store, [prompt])
    add_completions(store, completions)
    [task_id] = create_tasks(
        store, project=project, kind=kind, items=[(prompt.prompt_id, order)], simulated=simulated
    )
    chosen = said.pop("chosen", None)
    if chosen is not None:
        said["preference"] = "first" if chosen == order[0] else "second"
    judgement = Judgement(
        judgement_id="",
        task_id=task_id,
        prompt_id=prompt.prompt_id,
        annotator_id=annotator_id,
        kind=kind,
        completion_ids=order,
        shown_order=tuple(completion.completion_id for completion in completions),
        **said,
    )
    return import_answers(store, [Submission(judgement, client_key, seconds=seconds, origin=ORIGIN)])
