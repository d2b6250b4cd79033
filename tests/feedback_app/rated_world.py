"""A project that has been rated for weeks by people of known skill, written straight into the tables."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from sqlalchemy import insert

from feedback_app.accounts import create_annotator
from feedback_app.store.engine import Store
from feedback_app.store.schema import (
    annotation_texts,
    annotations_table,
    completions,
    leases,
    prompts,
    task_completions,
    tasks,
)
from feedback_app.store.tasks import ensure_project

DAY_S = 86_400.0
# The last two: careless, and one who answers the reverse.
SKILLS = {
    "Amara": 0.95,
    "Bruno": 0.92,
    "Chiara": 0.88,
    "Deniz": 0.82,
    "Emre": 0.74,
    "Farid": 0.5,
    "Greta": 0.12,
}
MODELS = {"candidate-3": 1.4, "candidate-2": 0.7, "sft-base": 0.0, "untuned": -1.2}
SENTENCES = (
    "I am sorry about that, and I will help you right away.",
    "Open the settings, choose Billing, then Invoices, and download the one you need.",
    "Refunds take three to five working days and go back to the card that was used.",
    "Please send us the number of your order, and we will look into it.",
    "You can change this yourself under Account, Profile.",
    "Nothing is charged while your subscription is paused.",
    "Is there anything else that I can do for you?",
    "As far as I know this is not possible.",
)
QUESTIONS = (
    "My parcel says delivered, but it is not here. What can I do?",
    "How do I change the e-mail address of my account?",
    "I was charged twice for the same month. Please explain.",
    "Can I pause my subscription while I travel?",
)


@dataclass(frozen=True)
class World:
    """Ids by name, and how many answers were written."""

    people: dict[str, str]
    num_answers: int


def rated_world(
    store: Store,
    *,
    project: str = "support",
    num_tasks: int = 240,
    overlap: int = 3,
    num_weeks: int = 6,
    seed: int = 0,
    now: float | None = None,
) -> World:
    """Pairs of answers of four models, each judged by `overlap` of seven people over `num_weeks` weeks."""
    rng = np.random.default_rng(seed)
    now = time.time() if now is None else now
    ensure_project(store, project, title="Customer support")
    people = {name: create_annotator(store, name, password=None) for name in SKILLS}
    names, strengths = list(MODELS), np.array(list(MODELS.values()))
    rows: dict[str, list[dict[str, object]]] = {
        key: [] for key in ("prompts", "completions", "tasks", "places", "leases", "annotations", "texts")
    }
    for i in range(num_tasks):
        prompt_id, task_id, at = f"p-{project}-{i}", f"t-{project}-{i}", now - num_weeks * 7 * DAY_S
        question = f"{QUESTIONS[i % len(QUESTIONS)]} (case {i})"
        message = [{"role": "user", "content": question}]
        rows["prompts"].append(
            {"prompt_id": prompt_id, "messages": message, "group_id": prompt_id, "created_at": at}
        )
        models = rng.choice(len(names), 2, replace=False)
        texts = [" ".join(rng.permutation(SENTENCES)[: rng.integers(1, 6)]) for _ in range(2)]
        lengths = [len(words) for words in texts]
        ids = [f"c-{project}-{i}-{side}" for side in range(2)]
        for side in range(2):
            row = {
                "completion_id": ids[side],
                "prompt_id": prompt_id,
                "text": texts[side],
                "model_id": names[models[side]],
            }
            rows["completions"].append({**row, "created_at": at})
            rows["places"].append({"task_id": task_id, "position": side, "completion_id": ids[side]})
        gap = (
            strengths[models[0]]
            - strengths[models[1]]
            + 0.25 * np.log(lengths[0] / lengths[1])
            + rng.normal(0, 0.4)
        )
        truth = int(gap < 0)
        raters = rng.choice(list(SKILLS), overlap, replace=False)
        said = set()
        for name in raters:
            if rng.random() < 0.14:
                preference, strength = ("tie" if rng.random() < 0.7 else "both_bad"), None
            else:
                right = rng.random() < SKILLS[name]
                preference = ("first", "second")[truth if right else 1 - truth]
                strength = int(1 + (abs(gap) > 0.8) + (abs(gap) > 1.9))
            said.add(preference)
            order = ids if rng.random() < 0.5 else ids[::-1]
            created = now - rng.random() * num_weeks * 7 * DAY_S * 0.999
            lease_id, annotation_id = f"l-{task_id}-{name}", f"j-{task_id}-{name}"
            times = {
                "created_at": created,
                "heartbeat_at": created,
                "expires_at": created,
                "closed_at": created,
            }
            shared = {
                "task_id": task_id,
                "project_id": project,
                "annotator_id": people[name],
                "shown_order": order,
            }
            rows["leases"].append({**shared, **times, "lease_id": lease_id, "state": "submitted"})
            seconds = 0.8 if name == "Farid" and rng.random() < 0.4 else float(np.exp(rng.normal(3.1, 0.5)))
            answer = {
                "annotation_id": annotation_id,
                "lease_id": lease_id,
                "client_key": annotation_id,
                "version": 1,
            }
            answer |= {"kind": "pairwise", "preference": preference, "strength": strength, "seconds": seconds}
            rows["annotations"].append({**shared, **answer, "created_at": created})
            if rng.random() < 0.3:
                rows["texts"].append({"annotation_id": annotation_id, "reason": "It answers what was asked."})
        task = {"task_id": task_id, "project_id": project, "kind": "pairwise", "prompt_id": prompt_id}
        task |= {"overlap": overlap, "num_done": overlap, "is_open": False, "sort_key": i, "created_at": at}
        dispute = "open" if {"first", "second"} <= said else None
        rows["tasks"].append({**task, "selection": "priority" if i % 4 else "uniform", "dispute": dispute})
    tables = (prompts, completions, tasks, task_completions, leases, annotations_table, annotation_texts)
    with store.write() as connection:
        for table, key in zip(tables, rows, strict=True):
            for start in range(0, len(rows[key]), 5000):
                connection.execute(insert(table), rows[key][start : start + 5000])
    return World(people, len(rows["annotations"]))
