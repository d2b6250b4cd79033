"""A world in which a round of retraining takes seconds: a random two-layer model, and raters who like one word.

The better of two answers is the one with more of t3. Nobody's ratings are taken back or lost: everything goes through
the store's own doors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from killing.model import write_model

from feedback_app.auth import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.tasks import (
    TaskView,
    add_completions,
    add_prompts,
    create_tasks,
    ensure_project,
    lease_next,
)
from rlhf.core.files import read_jsonl, write_jsonl
from rlhf.core.records import Completion, Prompt, content_id
from rlhf.core.run import Launch, Run
from rlhf.core.settings import ModelSettings, SamplingSettings
from rlhf.loop.config import EvaluateConfig
from rlhf.loop.evaluate import answer as run_answer
from rlhf.loop.models import ModelPool
from rlhf.loop.retrain.config import RetrainConfig
from sft.config import SFTConfig

PROJECT = "tiny"
RATERS = ("ann", "bob", "cy")
LIKED = "t3"
NUM_HELDOUT = 24


def make_world(root: Path, **changes: Any) -> tuple[RetrainConfig, Launch]:
    """A finished supervised run with the model, prompts to compare on, and an empty project with three raters.

    changes: settings beside those of `config_of`.
    """
    launch = Launch(workspace=root, db=f"sqlite:///{root}/feedback.db")
    settings = SFTConfig()
    with Run.start(
        root / "runs" / "sft", stage="sft", settings=settings, launch=launch, parents={}, seed=0
    ) as record:
        write_model(record.path / "model")
        record.finish({})
    rng = random.Random(1)
    write_jsonl(
        root / "heldout.jsonl",
        ({"prompt": words(rng, 4), "source": f"kind {i % 2}"} for i in range(NUM_HELDOUT)),
    )
    with Store.open(launch.db) as store:
        ensure_project(store, PROJECT, simulated=True)
        for name in RATERS:
            create_annotator(store, name, password=None, simulated=True)
    return config_of(**changes), launch


def config_of(**changes: Any) -> RetrainConfig:
    """Settings with which a round of the tiny world ends in seconds, and passes."""
    small = {"r": 4, "alpha": 8, "adapter_layers": 1.0}
    values: dict[str, Any] = {
        "once": True,
        "project": PROJECT,
        "backbone": "runs/sft",
        "heldout": "heldout.jsonl",
        "trigger": {"min_new": 40, "cooldown_s": 0, "min_agreement": 0.5},
        "snapshot": {"train": 0.6, "validation": 0.15},
        "reward": {
            "num_epochs": 5,
            "batch_pairs": 16,
            "patience": 5,
            "judge_share": 0.5,
            "near_duplicates": 0,
            "lora": small,
            "optim": {"lr": 2e-2},
            "model": {"device": "cpu"},
        },
        "ppo": {
            "num_iterations": 3,
            "num_prompts": 16,
            "sampling": {"max_completion_tokens": 6},
            "lora": small,
            "optim": {"lr": 1e-2},
            "kl_coef": 0.0,
            "eval_every": 3,
            "save_every": 2,
            "missing_end_penalty": 0.0,
            "model": {"device": "cpu"},
        },
        "sampling": {"max_completion_tokens": 6},
        "gates": {
            "min_new": 20,
            "min_comparisons": 40,
            "min_win_rate": 0.1,
            "min_test_comparisons": 5,
            "accuracy_drop": 0.3,
            "max_bias_gap": None,
            "max_calibration_error": 0.5,
            "max_length_change": None,
            "max_kl": 40,
            "min_slice": 5,
            "max_slice_fall": 0.3,
            "hacking": False,
        },
        "num_probes": 5,
        "max_attempts": 1000,
    }
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = values[key] | value if nested else value
    return RetrainConfig.model_validate(values)


def words(rng: random.Random, count: int) -> str:
    return " ".join(f"t{rng.randrange(5, 24)}" for _ in range(count))


def likes(view: TaskView) -> str:
    """The verdict on two answers: more of the liked word wins."""
    first, second = (completion.text.split().count(LIKED) for completion in view.completions)
    return "tie" if first == second else "first" if first > second else "second"


def rate(
    store: Store,
    num_pairs: int,
    seed: int,
    *,
    raters: Sequence[str] = RATERS,
    verdict: Callable[[str, TaskView], str] = lambda _, view: likes(view),
) -> int:
    """New pairs, and two answers to each of them; returns how many answers were given."""
    rng = random.Random(seed)
    prompts = [
        Prompt.model_validate({"prompt": words(rng, 4), "source": f"kind {i % 2}"}) for i in range(num_pairs)
    ]
    items = []
    completions = []
    for prompt in prompts:
        texts = []
        for liked in rng.sample(range(4), 2):
            parts = [LIKED] * liked + words(rng, 5 - liked).split()
            texts.append(" ".join(rng.sample(parts, 5)))
        both = [
            Completion.model_validate({"prompt_id": prompt.prompt_id, "text": text, "model_id": "sft"})
            for text in texts
        ]
        completions += both
        items.append((prompt.prompt_id, (both[0].completion_id, both[1].completion_id)))
    add_prompts(store, prompts)
    add_completions(store, completions)
    create_tasks(store, project=PROJECT, kind="pairwise", items=items, overlap=2, simulated=True)
    ids = {name: create_annotator(store, name, password=None, simulated=True) for name in raters}
    given, waiting = 0, list(raters)
    while waiting:
        for name in tuple(waiting):
            view = lease_next(store, ids[name], PROJECT)
            if view is None:
                waiting.remove(name)
                continue
            judgement = answer(view, ids[name], preference=verdict(name, view))
            key = content_id("k", "tiny", name, view.task_id)
            submit(store, judgement, lease_id=view.lease_id, client_key=key, origin="simulated")
            given += 1
    return given


def greedy(policy: Path, launch: Launch) -> list[str]:
    """What a policy answers to the held-out prompts at temperature 0."""
    pool = ModelPool(ModelSettings(device="cpu"), launch)
    generator = pool.generator(str(policy))
    config = EvaluateConfig(sampling=SamplingSettings(temperature=0, max_completion_tokens=6))
    prompts = list(read_jsonl(launch.workspace / "heldout.jsonl", Prompt))
    return run_answer(generator, prompts, config).texts
