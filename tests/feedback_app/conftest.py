"""A store of its own for each test, and small worlds to fill it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback_app.accounts import create_annotator
from feedback_app.store.engine import Store
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks
from rlhf.core.records import Completion, Prompt


@pytest.fixture
def db_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/feedback.db"


@pytest.fixture
def store(db_url: str) -> Iterator[Store]:
    with Store.open(db_url) as opened:
        yield opened


@pytest.fixture
def fill():
    """fill(store, n, overlap=1) adds n pairwise tasks to project 'p' and returns their ids."""

    def _fill(
        store: Store, num_tasks: int, *, overlap: int = 1, project: str = "p", simulated: bool = False
    ) -> list[str]:
        prompts = [Prompt.model_validate({"prompt": f"Question {i}?"}) for i in range(num_tasks)]
        pairs = [
            tuple(
                Completion.model_validate(
                    {"prompt_id": p.prompt_id, "text": f"{text} answer {i}", "model_id": "secret-model-7b"}
                )
                for text in ("first", "second")
            )
            for i, p in enumerate(prompts)
        ]
        add_prompts(store, prompts)
        add_completions(store, [c for pair in pairs for c in pair])
        items = [
            (p.prompt_id, tuple(c.completion_id for c in pair))
            for p, pair in zip(prompts, pairs, strict=True)
        ]
        return create_tasks(
            store, project=project, kind="pairwise", items=items, overlap=overlap, simulated=simulated
        )

    return _fill


@pytest.fixture
def people(store: Store) -> list[str]:
    return [create_annotator(store, f"rater {i}", password=None) for i in range(4)]
