"""People as the judge of `rlhf evaluate`: blind pairs on the rating desk, a win rate from what they say.

    first call    both models answer, the pairs go into a project of purpose "evaluate", and the call ends
    later calls   read the answers given so far; nothing is sampled again; the run ends when all are in

Which model wrote what is known to the store and this run's directory only: the desk shows two sides, and the
project's name tells nothing. Of several answers to a pair the mean counts (a lead's decision stands in place of
them); a tie and "both bad" count half, and so do pairs of equal text, which nobody needs to read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import text

from feedback_app.store.annotations import current_rows
from feedback_app.store.engine import Store
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, ensure_project
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import write_json, write_jsonl
from rlhf.core.records import Completion, Prompt, content_id
from rlhf.core.run import Launch, Run, Workspace, is_finished, read_manifest
from rlhf.core.stats import bootstrap_mean
from rlhf.loop.config import EvaluateConfig

PEOPLE = "people"
WAITING = "people.json"
_PURPOSE = text("SELECT purpose FROM projects WHERE project_id = :project")


def has_asked(out: Path) -> bool:
    """Whether the pairs of a run in `out` are on the desk already."""
    return (out / WAITING).is_file()


def ask(
    record: Run,
    prompts: Sequence[Prompt],
    baseline: Sequence[Completion],
    candidate: Sequence[Completion],
    figures: dict[str, Any],
    config: EvaluateConfig,
    launch: Launch,
) -> None:
    """Put the pairs on the desk and write down what was asked, with the figures that need no judge."""
    differing = [i for i in range(len(prompts)) if baseline[i].text != candidate[i].text]
    if not differing:
        raise DataError("both models wrote the same for every prompt: there is nothing to compare")
    pairs = [tuple(sorted((baseline[i].completion_id, candidate[i].completion_id))) for i in differing]
    project = config.project or f"evaluate-{content_id('e', pairs)[2:10]}"
    with Store.open(launch.db) as store:
        ensure_project(store, project, title="Which answer is better?", purpose="evaluate")
        add_prompts(store, [prompts[i] for i in differing])
        add_completions(store, [side[i] for i in differing for side in (baseline, candidate)])
        items = [(prompts[i].prompt_id, pair) for i, pair in zip(differing, pairs, strict=True)]
        tasks = create_tasks(store, project=project, kind="pairwise", items=items, overlap=config.overlap)
    task_of = dict(zip(differing, tasks, strict=True))
    rows = [
        {
            "task_id": task_of.get(i),
            "prompt_id": prompt.prompt_id,
            "group_id": prompt.group_id,
            "prompt": prompt.text,
            "baseline": baseline[i].text,
            "candidate": candidate[i].text,
            "candidate_id": candidate[i].completion_id,
        }
        for i, prompt in enumerate(prompts)
    ]
    write_json(record.path / WAITING, {"project": project, "pairs": rows, "figures": figures})


def report(config: EvaluateConfig, launch: Launch, out: Path) -> None:
    """The win rate from the answers so far; the run is finished when no pair waits for an answer any more.

    Raises ConfigError when the settings are not those under which people were asked.
    """
    parents = {
        name: Workspace(launch.workspace).resolve(parent.path)
        for name, parent in read_manifest(out).parents.items()
    }
    resuming = replace(launch, resume=not is_finished(out))
    with Run.start(
        out, stage="evaluate", settings=config, launch=resuming, parents=parents, seed=config.seed
    ) as record:
        if record.finished:
            print(f"evaluate: {out} is already finished")
            return
        waiting = json.loads((out / WAITING).read_text(encoding="utf-8"))
        wins, open_places = wins_so_far(waiting, config, launch)
        said = (
            f"pairs in project {waiting['project']}; rate them with `rlhf app`, then run this command again"
        )
        if not wins:
            print(f"evaluate: nobody has answered yet: {open_places} places are open for {said}")
            return
        figures = waiting["figures"] | _figures(waiting["pairs"], wins, config)
        write_json(out / "evaluation.json", figures)
        write_jsonl(
            out / "pairs.jsonl",
            ({**pair, "win": wins[i]} for i, pair in enumerate(waiting["pairs"]) if i in wins),
        )
        if not open_places:
            record.finish(figures)
    line = (
        f"win rate {figures['win_rate']:.3f} [{figures['win_rate_low']:.3f}, {figures['win_rate_high']:.3f}]"
    )
    line += f" over {figures['num_prompts']} prompts, judged by {_people(figures['num_judges'])}"
    rest = f"; details in {out}" if not open_places else f"; {open_places} places are still open for {said}"
    print(f"evaluate: {line}{rest}")


def wins_so_far(
    waiting: dict[str, Any], config: EvaluateConfig, launch: Launch, *, complete_only: bool = False
) -> tuple[dict[int, float], int]:
    """The candidate's mean score of each pair that was answered (with complete_only: by as many as it asks for, or
    by a lead), and how many places are still open."""
    index = {pair["task_id"]: i for i, pair in enumerate(waiting["pairs"]) if pair["task_id"] is not None}
    scores: dict[int, list[float]] = {}
    judges: set[str] = set()
    decided: set[int] = set()
    with Store.open(launch.db, create=False) as store, store.read() as connection:
        for judgement, rows in current_rows(connection, waiting["project"]):
            place = index.get(judgement.task_id)
            if place is None:
                continue
            if rows[0].purpose == "adjudicate":
                decided.add(place)
            preferred = {"first": 0, "second": 1}.get(judgement.preference or "")
            won = 0.5
            if preferred is not None:
                candidate_id = waiting["pairs"][place]["candidate_id"]
                won = float(judgement.completion_ids[preferred] == candidate_id)
            scores.setdefault(place, []).append(won)
            judges.add(judgement.annotator_id)
    waiting["figures"]["num_judges"] = len(judges)
    least = config.overlap if complete_only else 1
    wins = {
        place: float(np.mean(given))
        for place, given in scores.items()
        if len(given) >= least or place in decided
    }
    if wins:  # equal texts are ties, but no reason to report before anybody has answered
        wins |= {i: 0.5 for i, pair in enumerate(waiting["pairs"]) if pair["task_id"] is None}
    undecided = (place for place in index.values() if place not in decided)
    open_places = sum(max(0, config.overlap - len(scores.get(place, ()))) for place in undecided)
    return wins, open_places


def _figures(pairs: list[dict[str, Any]], wins: dict[int, float], config: EvaluateConfig) -> dict[str, Any]:
    order = sorted(wins)
    values = [wins[i] for i in order]
    groups = [pairs[i]["group_id"] for i in order]
    win = bootstrap_mean(values, groups=groups, num_resamples=config.num_resamples, seed=config.seed)
    return {
        "win_rate": win.mean,
        "win_rate_low": win.low,
        "win_rate_high": win.high,
        "ties": float(np.mean(np.array(values) == 0.5)),
        "num_prompts": len(values),
        "num_asked": len(pairs),
    }


def check_project(config: EvaluateConfig, launch: Launch) -> None:
    """Refuse a project that collects ratings for training: ratings of an evaluation are never exported.

    Asked before anything is sampled. Raises ConfigError.
    """
    if config.project is None:
        return
    with Store.open(launch.db) as store, store.read() as connection:
        purpose = connection.execute(_PURPOSE, {"project": config.project}).scalar()
    if purpose not in (None, "evaluate"):
        raise ConfigError(
            f"--project {config.project}: collects ratings for training; an evaluation needs one of its own"
        )


def _people(number: int) -> str:
    return "1 person" if number == 1 else f"{number} people"
