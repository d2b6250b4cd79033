"""People as judges of `rlhf evaluate`: blind pairs on the desk, and a win rate from what they answered."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from feedback_app.accounts import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.leases import lease_next
from feedback_app.store.snapshots import export_snapshot
from feedback_app.store.tasks import ensure_project
from rlhf.core.errors import ConfigError, StoreError
from rlhf.core.run import Launch, is_finished
from rlhf.loop import evaluate as evaluation
from rlhf.loop.config import EvaluateConfig

PROJECT = "blind"


def evaluate(launch: Launch, **changes: Any) -> None:
    settings: dict[str, Any] = {
        "candidate": "runs/candidate",
        "prompts": "prompts.jsonl",
        "judge": "people",
        "project": PROJECT,
        "sampling": {"max_completion_tokens": 8},
        "num_resamples": 200,
        "model": {"device": "cpu"},
    }
    out = launch.workspace / "runs" / "evaluate"
    evaluation.run(EvaluateConfig(**settings | changes), replace(launch, out=launch.out or out))


def judge_all(store: Store, name: str, prefers: str, at_most: int = 100) -> int:
    """Somebody who prefers the 'candidate', the 'baseline' or a 'tie' in every pair they are given."""
    person = create_annotator(store, name, password=None)
    with store.read() as connection:
        rows = connection.execute(text("SELECT completion_id, model_id FROM completions")).tuples().all()
    is_candidate = {completion_id: "candidate" in model_id for completion_id, model_id in rows}
    for count in range(at_most):
        view = lease_next(store, person, PROJECT)
        if view is None:
            return count
        first = is_candidate[view.completions[0].completion_id]
        preference = "tie" if prefers == "tie" else "first" if first == (prefers == "candidate") else "second"
        judgement = answer(view, person, preference=preference)
        submit(store, judgement, lease_id=view.lease_id, client_key=view.lease_id)
    return at_most


def test_blind_pairs_are_judged_on_the_desk(
    loop_launch: Launch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = loop_launch.workspace / "runs" / "evaluate"
    evaluate(loop_launch)
    assert "nobody has answered yet: 12 places are open for pairs in project blind" in capsys.readouterr().out
    assert not is_finished(out)
    # nothing is sampled, nor a model loaded, from here on
    monkeypatch.setattr(evaluation, "ModelPool", lambda *_: pytest.fail("a model was loaded"))
    with Store.open(loop_launch.db) as store:
        assert judge_all(store, "maria", "candidate", at_most=4) == 4
        evaluate(loop_launch)
        assert (
            "win rate 1.000 [1.000, 1.000] over 4 prompts, judged by 1 person; 8 places"
            in capsys.readouterr().out
        )
        assert judge_all(store, "bob", "baseline") == 8
        with pytest.raises(StoreError, match="blind evaluations"):
            export_snapshot(store, loop_launch.workspace / "s", project=PROJECT, seed=0)
    evaluate(loop_launch)
    assert "over 12 prompts, judged by 2 people; details in" in capsys.readouterr().out
    figures = json.loads((out / "evaluation.json").read_text())
    assert figures["win_rate"] == pytest.approx(4 / 12)
    assert figures["win_rate_low"] < 4 / 12 < figures["win_rate_high"]
    assert (figures["num_asked"], figures["ties"], figures["judge"]) == (12, 0.0, "people")
    assert figures["kl"] > 0
    assert figures["length_after"] > 0
    rows = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert sorted(row["win"] for row in rows) == [0.0] * 8 + [1.0] * 4
    assert is_finished(out)
    evaluate(loop_launch)
    assert "is already finished" in capsys.readouterr().out


def test_of_several_answers_the_mean_counts(loop_launch: Launch) -> None:
    evaluate(loop_launch, overlap=2)
    with Store.open(loop_launch.db) as store:
        judge_all(store, "maria", "candidate")
        judge_all(store, "bob", "tie")
    evaluate(loop_launch, overlap=2)
    figures = json.loads((loop_launch.workspace / "runs" / "evaluate" / "evaluation.json").read_text())
    assert figures["win_rate"] == pytest.approx(0.75)


def test_what_the_desk_shows_names_no_model(loop_launch: Launch) -> None:
    evaluate(loop_launch, project=None)
    with Store.open(loop_launch.db) as store, store.read() as connection:
        project = connection.execute(text("SELECT project_id, title, purpose FROM projects")).one()
        order = connection.execute(
            text("SELECT completion_id FROM task_completions ORDER BY task_id, position")
        ).scalars()
        ids = list(order)
    assert project.purpose == "evaluate"
    assert "candidate" not in project.project_id + project.title
    assert all(ids[i] < ids[i + 1] for i in range(0, len(ids), 2))  # the order tells nothing either


def test_people_are_not_asked_in_a_project_that_trains(loop_launch: Launch) -> None:
    with Store.open(loop_launch.db) as store:
        ensure_project(store, PROJECT)
    with pytest.raises(ConfigError, match="collects ratings for training"):
        evaluate(loop_launch)
    assert not (loop_launch.workspace / "runs" / "evaluate").exists()


def test_other_settings_than_those_people_were_asked_under_are_refused(loop_launch: Launch) -> None:
    evaluate(loop_launch)
    with pytest.raises(ConfigError, match="seed"):
        evaluate(loop_launch, seed=1)


def test_two_models_that_say_the_same_leave_nothing_to_ask(loop_launch: Launch) -> None:
    with pytest.raises(evaluation.DataError, match="nothing to compare"):
        evaluate(loop_launch, candidate="models/base", baseline="models/base")
