"""Pairs of the current policy's completions on the rating desk, and how many of the answers have come.

Everything is a function of (seed, iteration, policy): asked again after an interruption, the same policy writes the
same pairs, which the store knows already.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sqlalchemy import func, select

from feedback_app.store.engine import Store
from feedback_app.store.schema import tasks
from feedback_app.store.tasks import add_completions, add_prompts, chunks, create_tasks
from rlhf.core.backbone import Backbone
from rlhf.core.randomness import derived_seed
from rlhf.loop.config import SampleConfig
from rlhf.loop.models import Generator
from rlhf.loop.ppo_with_people.config import PPOWithPeopleConfig
from rlhf.loop.sample import draw, pair_up
from rlhf.ppo.measure import POLICY
from rlhf.ppo.prompts import EncodedPrompt


def ask(
    store: Store,
    backbone: Backbone,
    prompts: Sequence[EncodedPrompt],
    config: PPOWithPeopleConfig,
    *,
    project: str,
    iteration: int,
    model_id: str,
) -> list[str]:
    """Two completions for each of some prompts become blind tasks. Returns their ids: none if all pairs are alike."""
    seed = derived_seed(config.seed, "feedback", iteration)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [prompts[i] for i in order[: config.feedback.num_prompts]]
    settings = SampleConfig(samples_per_prompt=2, sampling=config.sampling, seed=seed)
    completions = draw(Generator(backbone, POLICY, model_id, None), chosen, settings)
    pairs, _ = pair_up(chosen, completions)
    add_prompts(store, [encoded.prompt for encoded in chosen])
    add_completions(store, [completion for group in completions for completion in group])
    return create_tasks(
        store,
        project=project,
        kind="pairwise",
        items=pairs,
        overlap=config.feedback.overlap,
        selection="priority",  # what the training waits for is rated first
    )


def answered(store: Store, task_ids: Sequence[str]) -> tuple[int, int]:
    """(answers that have come, answers asked for) of these tasks; retired ones are no longer asked for."""
    done = wanted = 0
    with store.read() as connection:
        for some in chunks(task_ids):
            row = connection.execute(
                select(
                    func.coalesce(func.sum(tasks.c.num_done), 0), func.coalesce(func.sum(tasks.c.overlap), 0)
                )
                .where(tasks.c.task_id.in_(some))
                .where(tasks.c.retired_at.is_(None))
            ).one()
            done, wanted = done + int(row[0]), wanted + int(row[1])
    return done, wanted
