"""What the tests of `rlhf adjudicate` and `reward-history` share: reward runs with known scores, and rated pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from feedback_app.accounts import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.leases import lease_next, release
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks
from reward.score import RewardScale, RewardScorer
from rlhf.core.adapters import save_reward
from rlhf.core.backbone import Backbone
from rlhf.core.records import Completion, Prompt
from rlhf.core.run import FINISHED, MANIFEST, Launch, Manifest, Parent, Workspace, content_sha256
from rlhf.core.settings import LoraSettings, ModelSettings

SETTINGS = ModelSettings(device="cpu")
WORDS = (
    "cat",
    "mat",
    "birds",
    "man",
    "tale",
    "rain",
    "sun",
    "order",
    "number",
    "ticket",
    "late",
    "early",
    "good",
)


def texts(number: int) -> tuple[str, str, str]:
    """(prompt, first, second) of the pair of that number; all are different."""
    generator = torch.Generator().manual_seed(number)
    one, two, three = (WORDS[i] for i in torch.randperm(len(WORDS), generator=generator)[:3].tolist())
    return f"tell of {one} {number}", f"the {two} and the {three}", f"sorry {three} number {two}"


def reward_run(
    launch: Launch,
    name: str,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    snapshot: Path | None = None,
    **facts: Any,
) -> RewardScorer:
    """A finished reward run at runs/NAME with random weights, as `rlhf reward` leaves one. Returns its scorer."""
    root = launch.workspace
    backbone = Backbone.load(root / "models" / "base", SETTINGS, name="models/base")
    role = backbone.add_role("reward", LoraSettings(r=2), seed=seed, scalar_head=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.normal_(std=0.3, generator=generator)
    folder = root / "runs" / name
    save_reward(role, folder / "adapter", backbone)
    scale = RewardScale(0.0, 1.0, temperature)
    scale.save(folder / "adapter")
    parent = None
    if snapshot is not None:
        parent = Parent(path=Workspace(root).relative(snapshot), sha256=content_sha256(snapshot))
    manifest = Manifest(
        stage="reward", created=facts.pop("created", "2026-01-01T00:00:00+00:00"), snapshot=parent
    )
    manifest = manifest.model_copy(update=facts)
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    (folder / FINISHED).write_text("now\n")
    return RewardScorer(backbone, role, scale)


def deltas(scorer: RewardScorer, numbers: range) -> dict[int, float]:
    """Score of the first completion less that of the second, by pair."""
    prompts = [Prompt.model_validate({"prompt": texts(i)[0]}) for i in numbers]
    sides = [
        scorer.score_texts(prompts, [texts(i)[side] for i in numbers], max_tokens=10_000) for side in (1, 2)
    ]
    return {i: a - b for i, a, b in zip(numbers, *sides, strict=True)}


def put_pairs(store: Store, numbers: range, *, project: str = "p", overlap: int = 1) -> dict[int, str]:
    """A task for each pair. Returns their ids."""
    prompts = {i: Prompt.model_validate({"prompt": texts(i)[0]}) for i in numbers}
    made = {
        i: [
            Completion.model_validate({"prompt_id": prompt.prompt_id, "text": text, "model_id": "m"})
            for text in texts(i)[1:]
        ]
        for i, prompt in prompts.items()
    }
    add_prompts(store, prompts.values())
    add_completions(store, [c for both in made.values() for c in both])
    items = [(prompts[i].prompt_id, tuple(c.completion_id for c in made[i])) for i in numbers]
    tasks = create_tasks(store, project=project, kind="pairwise", items=items, overlap=overlap)
    return dict(zip(numbers, tasks, strict=True))


def rate_pairs(store: Store, name: str, verdicts: dict[str, str], *, project: str = "p") -> None:
    """Somebody answers every task that `verdicts` names with its verdict."""
    person = create_annotator(store, name, password=None)
    held: list[str] = []
    while (view := lease_next(store, person, project, holding=held)) is not None:
        held.append(view.lease_id)
        if view.task_id in verdicts:
            said = {"preference": verdicts[view.task_id]}
            if said["preference"] in ("first", "second"):
                said["strength"] = 2  # type: ignore[assignment]
            submit(store, answer(view, person, **said), lease_id=view.lease_id, client_key=view.lease_id)
    for lease in held:
        release(store, lease, person)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
