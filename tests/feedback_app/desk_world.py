"""What the tests of the store share: tasks of every kind, and people who work through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import text

from feedback_app.store.annotations import Receipt, answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.leases import TaskView, lease_next
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks
from rlhf.core.records import Completion, Prompt

SAYS: dict[str, Callable[[TaskView], dict[str, Any]]] = {
    "pairwise": lambda view: {"preference": "first", "strength": 2},
    "ranking": lambda view: {"ranking": tuple((c.completion_id,) for c in view.completions)},
    "scores": lambda view: {"scores": {"help": {c.completion_id: 3 for c in view.completions}}},
    "thumbs": lambda view: {"thumb": "up"},
    "demonstration": lambda view: {"demonstration": "Like this."},
}


def rows(store: Store, query: str, **parameters: object) -> list[tuple[Any, ...]]:
    with store.read() as connection:
        return [tuple(row) for row in connection.execute(text(query), parameters)]


def make(
    store: Store, kind: str, num_completions: int, *, num_tasks: int = 1, overlap: int = 1, project: str = "p"
) -> list[str]:
    """Tasks of one kind; completion i of task n is called '<kind><n>-<i>'. Returns their ids."""
    prompts = [Prompt.model_validate({"prompt": f"{kind} question {n}?"}) for n in range(num_tasks)]
    ids = [tuple(f"{kind}{n}-{i}" for i in range(num_completions)) for n in range(num_tasks)]
    add_prompts(store, prompts)
    add_completions(
        store,
        [
            Completion(
                completion_id=c, prompt_id=prompt.prompt_id, text=f"Answer {c}", model_id="secret-model"
            )
            for prompt, own in zip(prompts, ids, strict=True)
            for c in own
        ],
    )
    items = [(prompt.prompt_id, own) for prompt, own in zip(prompts, ids, strict=True)]
    return create_tasks(store, project=project, kind=kind, items=items, overlap=overlap)


def rate(store: Store, person: str, project: str = "p", **said: Any) -> tuple[TaskView, Receipt]:
    """Take the next task and answer it: as said, or with whatever fits its kind."""
    view = lease_next(store, person, project)
    assert view is not None
    said = said or SAYS[view.kind](view)
    receipt = submit(
        store, answer(view, person, **said), lease_id=view.lease_id, client_key=view.lease_id, seconds=5.0
    )
    return view, receipt


def rate_all(store: Store, person: str, project: str = "p", **said: Any) -> list[tuple[TaskView, Receipt]]:
    """Answer until nothing is left for this person."""
    done = []
    while (view := lease_next(store, person, project)) is not None:
        fields = said or SAYS[view.kind](view)
        receipt = submit(
            store,
            answer(view, person, **fields),
            lease_id=view.lease_id,
            client_key=view.lease_id,
            seconds=5.0,
        )
        done.append((view, receipt))
    return done
