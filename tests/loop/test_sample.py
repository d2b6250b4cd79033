"""`rlhf sample`: completions become blind pairwise tasks; who wrote them is stored and never shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from feedback_app.accounts import create_annotator
from feedback_app.store.annotations import answer, submit
from feedback_app.store.engine import Store
from feedback_app.store.tasks import lease_next
from rlhf.core.errors import DataError
from rlhf.core.run import Launch, content_sha256
from rlhf.loop.config import SampleConfig
from rlhf.loop.sample import run


def sample_config(**changes: Any) -> SampleConfig:
    settings: dict[str, Any] = {
        "model_path": "models/base",
        "prompts": "prompts.jsonl",
        "project": "p",
        "sampling": {"max_completion_tokens": 8},
        "model": {"device": "cpu"},
    }
    return SampleConfig(**settings | changes)


def rows(launch: Launch, query: str) -> list[Any]:
    with Store.open(launch.db) as store, store.read() as connection:
        return list(connection.exec_driver_sql(query).mappings())


def test_tasks_with_the_models_identity_which_no_rater_sees(
    loop_launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(sample_config(overlap=2), loop_launch)
    digest = content_sha256(loop_launch.workspace / "models" / "base")[:10]
    model_id = f"models/base@{digest}"
    assert f"sample: 12 pairs from {model_id} in project p" in capsys.readouterr().out
    completions = rows(loop_launch, "select * from completions order by completion_id")
    assert len(completions) == 24
    assert {c["model_id"] for c in completions} == {model_id}
    sampling = [json.loads(c["sampling"]) for c in completions]
    assert {(s["cursor"], s["sample"]) for s in sampling} == {(i, g) for i in range(12) for g in range(2)}
    assert all(s["temperature"] == 1.0 and s["seed"] == 0 and "finished" in s for s in sampling)
    with Store.open(loop_launch.db) as store:
        rater = create_annotator(store, "rater", password=None)
        for _ in range(12):
            view = lease_next(store, rater, "p")
            assert view is not None
            shown = view.model_dump_json()
            assert digest not in shown
            assert "models/base" not in shown
            assert "temperature" not in shown
            assert len(view.completions) == 2
            judgement = answer(view, rater, preference="tie")
            submit(store, judgement, lease_id=view.lease_id, client_key=view.lease_id)
        assert lease_next(store, rater, "p") is None


def test_twice_adds_nothing_and_another_model_adds_its_own(loop_launch: Launch) -> None:
    count = (
        "select (select count(*) from tasks) t, (select count(*) from completions) c, count(*) p from prompts"
    )
    run(sample_config(), loop_launch)
    run(sample_config(), loop_launch)
    assert dict(rows(loop_launch, count)[0]) == {"t": 12, "c": 24, "p": 12}
    run(sample_config(model_path="runs/candidate"), loop_launch)
    assert dict(rows(loop_launch, count)[0]) == {"t": 24, "c": 48, "p": 12}
    names = {
        row["model_id"].partition("@")[0] for row in rows(loop_launch, "select model_id from completions")
    }
    assert names == {"models/base", "runs/candidate"}


def test_pairs_of_four_samples_and_a_limit_of_prompts(loop_launch: Launch) -> None:
    run(sample_config(samples_per_prompt=4, max_prompts=3, simulated=True), loop_launch)
    assert len(rows(loop_launch, "select * from tasks")) == 6
    assert {row["simulated"] for row in rows(loop_launch, "select simulated from tasks")} == {1}


def test_identical_completions_are_no_task(loop_launch: Launch) -> None:
    sampling = {"max_completion_tokens": 8, "temperature": 0}
    with pytest.raises(
        DataError, match=r"all 12 pairs are identical or empty; raise --sampling\.temperature"
    ):
        run(sample_config(sampling=sampling), loop_launch)
    assert not (loop_launch.workspace / "feedback.db").exists()


def test_too_long_prompts_are_named_or_counted(
    loop_launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(loop_launch.workspace / "prompts.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "x" * 400}) + "\n")
    with pytest.raises(DataError, match=r"prompts\.jsonl:13: prompt .* context of 128"):
        run(sample_config(), loop_launch)
    run(sample_config(on_long_prompt="drop"), loop_launch)
    assert "(left out: 1 prompts too long)" in capsys.readouterr().out
