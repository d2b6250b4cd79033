"""When a round begins, what it learns from, and what of a person's ratings stays behind when they are erased."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from retrain_world import World, tiny

from feedback_app.store.erasure import erase_ratings
from feedback_app.store.snapshots import export_snapshot
from rlhf.cli import main
from rlhf.core.errors import DataError
from rlhf.core.files import read_rows
from rlhf.loop import status
from rlhf.loop.lineage import annotations_of, used_in
from rlhf.loop.registry import CHAMPION
from rlhf.loop.retrain.canary import compare, served_models, try_candidate
from rlhf.loop.retrain.config import CanarySettings, TriggerSettings
from rlhf.loop.retrain.data import recency_weight, training_snapshot, write_prompts
from rlhf.loop.retrain.news import News, Said, drift_alerts, news, population_stability
from rlhf.loop.retrain.trigger import look


def with_trigger(world: World, **changes: Any) -> Any:
    return world.config.model_copy(update={"trigger": world.config.trigger.model_copy(update=changes)})


def test_new_comparisons_cooldown_and_agreement_are_asked_in_turn(world: World) -> None:
    first = look(world.store, world.config, world.rounds)
    assert (first.is_due, first.news.num_new) == (True, 120)
    few = look(world.store, with_trigger(world, min_new=121), world.rounds)
    assert few.reason == "120 new comparisons yet; 121 are wanted (trigger.min_new)"
    world.once()
    last = world.rounds.last_ended(tiny.PROJECT)
    assert last is not None
    assert last.ended_at is not None
    world.rate(30, verdict=lambda name, _: "first" if name == "ann" else "second")
    waiting = look(world.store, with_trigger(world, cooldown_s=600), world.rounds, now=last.ended_at + 100)
    assert waiting.reason == "cooling down for 500 s more (trigger.cooldown_s)"
    # Of two raters of a pair, ann says first and the others second: with her in it a pair never agrees.
    apart = look(world.store, with_trigger(world, cooldown_s=0, min_agreement=0.9), world.rounds)
    assert "raters agree on" in apart.reason
    assert "contradicts the others: ann agrees with the others on 0.00" in apart.reason
    assert not apart.is_due


# ---- drift --------------------------------------------------------------------------------------------------


def test_the_stability_index_by_hand() -> None:
    # shares 0.5 0.5 against 0.25 0.75: -0.25 ln 0.5 + 0.25 ln 1.5
    expected = -0.25 * np.log(0.5) + 0.25 * np.log(1.5)
    assert population_stability([50, 50], [25, 75]) == pytest.approx(expected)
    assert population_stability([50, 50], [5, 5]) == 0.0


def answers(
    count: int, *, is_new: bool, length: int = 100, ties: float = 0.1, source: str = "desk"
) -> list[Said]:
    rng = np.random.default_rng(int(is_new))
    return [
        Said(
            f"a{is_new}{i}", f"t{is_new}{i}", "ann", "pairwise", "tie" if rng.random() < ties else "first",
            f"p{is_new}{i}", source, length + int(rng.integers(0, 40)), is_new,
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"length": 200}, ["prompts drift: the index of their lengths"]),
        ({"source": "forum"}, ["prompts drift: the index of their sources"]),
        ({"ties": 0.4}, ["ratings drift: 4"]),
    ],
)
def test_what_drifts_is_told_and_what_does_not_is_not(changes: dict[str, Any], expected: list[str]) -> None:
    said = (*answers(300, is_new=False), *answers(300, is_new=True, **changes))
    alerts = drift_alerts(News(said, {}), TriggerSettings())
    assert [alert[: len(text)] for alert, text in zip(alerts, expected, strict=True)] == expected


def test_drift_may_begin_a_round_before_there_is_enough(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.loop.retrain.trigger.drift_alerts", lambda *_: ["prompts drift: so"])
    alert = look(world.store, with_trigger(world, min_new=500, drift="alert"), world.rounds)
    assert (alert.is_due, alert.alerts) == (False, ("prompts drift: so",))
    begins = look(world.store, with_trigger(world, min_new=500, drift="trigger"), world.rounds)
    assert (begins.is_due, begins.reason) == (True, "drift: prompts drift: so")


# ---- what a round learns from -------------------------------------------------------------------------------


def test_a_comparison_counts_half_after_its_half_life() -> None:
    day = 86_400.0
    assert recency_weight(1000 * day, 1030 * day, 30) == pytest.approx(0.5)
    assert recency_weight(1000 * day, 1015 * day, 30) == pytest.approx(0.5**0.5)
    assert recency_weight(None, 0.0, 30) == 1.0
    assert recency_weight(0.0, 10_000 * day, 1) == 1e-3  # never nothing: a weight of 0 is refused


def test_old_ratings_count_less_and_a_rater_can_be_left_out(world: World) -> None:
    source = world.workspace.snapshots / "one"
    export_snapshot(world.store, source, project=tiny.PROJECT, seed=0)
    assert training_snapshot(source, source.with_name("same"), world.config, world.store, 0.0) == source
    snapshot = world.config.snapshot.model_copy(update={"half_life_days": 1.0, "exclude": ("cy",)})
    config = world.config.model_copy(update={"snapshot": snapshot})
    tomorrow = time.time() + 86_400
    target = training_snapshot(source, source.with_name("two"), config, world.store, tomorrow)
    before = [row for _, row in read_rows(source / "train.jsonl")]
    after = [row for _, row in read_rows(target / "train.jsonl")]
    (cy,) = [a for a, name in news(world.store, tiny.PROJECT, None).names.items() if name == "cy"]
    assert [r["judgement_id"] for r in after] == [
        r["judgement_id"] for r in before if r["annotator_id"] != cy
    ]
    assert all(row["weight"] == pytest.approx(0.5, abs=0.01) for row in after)
    unknown = config.model_copy(update={"snapshot": snapshot.model_copy(update={"exclude": ("nobody",)})})
    with pytest.raises(DataError, match="there is no rater 'nobody'"):
        training_snapshot(source, source.with_name("three"), unknown, world.store, 0.0)


def test_earlier_prompts_are_replayed_in_their_share(world: World) -> None:
    first, second = world.workspace.snapshots / "one", world.workspace.snapshots / "two"
    earlier = export_snapshot(world.store, first, project=tiny.PROJECT, seed=0).snapshot_id
    old = {row["prompt_id"] for _, row in read_rows(first / "train.jsonl")}
    world.rate(20)
    export_snapshot(world.store, second, project=tiny.PROJECT, seed=0)
    every = {row["prompt_id"] for _, row in read_rows(second / "train.jsonl")}
    new = every - old
    target = world.workspace.root / "prompts.jsonl"
    more: dict[str, Any] = {"store": world.store, "earlier_snapshot": earlier, "seed": 0}
    write_prompts(second, "train", target, replay=0.5, **more)
    written = {row["prompt_id"] for _, row in read_rows(target)}
    assert new <= written
    assert len(written) == 2 * len(new)  # half of them are old
    assert write_prompts(second, "train", target, replay=0.0, **more) == len(new)
    assert write_prompts(first, "train", target, replay=0.5, **more) == len(old)  # nothing new: all of them


# ---- erasure, status, lineage -------------------------------------------------------------------------------


def test_erased_ratings_leave_the_next_round_and_what_rests_on_them_is_listed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.once()
    found = world.rounds.all()[0]
    with world.store.read() as connection:
        rests_on = annotations_of(connection, world.names()[CHAMPION])
    assert len(rests_on) == 120
    workspace = ["--workspace", str(world.launch.workspace)]
    assert main(["status", *workspace]) == 0
    assert "nothing depends on ratings that were erased" in capsys.readouterr().out

    erased = erase_ratings(world.store, "bob", requested_by="system")
    assert main(["status", *workspace]) == 0
    shown = capsys.readouterr().out
    assert f"snapshot {found.snapshot_id}" in shown
    assert f"({erased.num_answers} ratings)" in shown
    assert f"{found.candidate_id}  runs/round-0001/ppo  (champion)" in shown
    marked = {a.artifact_id for a in world.registry.artifacts() if a.erasure_at is not None}
    assert marked == {
        found.reward_id,
        found.details["judge_id"],
        found.candidate_id,
    }  # not the supervised model

    world.rate(60, raters=("ann", "cy"))
    assert world.once().kind == "champion"
    second = world.rounds.all()[1]
    rows = [row for _, row in read_rows(world.workspace.snapshots / "round-0002" / "train.jsonl")]
    assert erased.annotator_id not in {row["annotator_id"] for row in rows}
    # Its policy went on from one that had seen the ratings, and says so; its own reward model has not.
    marked = {a.artifact_id for a in world.registry.artifacts() if a.erasure_at is not None}
    assert second.reward_id not in marked
    assert second.candidate_id in marked


def test_lineage_goes_both_ways_and_becomes_a_picture(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.once()
    found = world.rounds.all()[0]
    with world.store.read() as connection:
        annotation = annotations_of(connection, found.candidate_id or "")[0]
        users = used_in(connection, annotation)
    assert set(users) == {found.reward_id, found.details["judge_id"], found.candidate_id}
    out = world.workspace.root / "lineage"
    workspace = ["--workspace", str(world.launch.workspace)]
    assert main(["lineage", "champion", *workspace, "--out", str(out), "--annotations", "2"]) == 0
    shown = capsys.readouterr().out
    assert f"came from\n{found.candidate_id}  runs/round-0001/ppo\n├─ champion: sft-" in shown
    assert f"reward: {found.reward_id}  runs/round-0001/reward" in shown
    assert "120 ratings: " in shown
    assert (out / "lineage.svg").read_bytes().startswith(b"<?xml")
    (tree,) = json.loads((out / "lineage.json").read_text())
    assert tree["tree"]["id"] == found.candidate_id

    assert main(["lineage", annotation, *workspace]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"learned from this rating\nrating {annotation}\n└─ snapshot {found.snapshot_id}")
    assert f"as its reward: {found.candidate_id}" in shown
    assert main(["lineage", found.snapshot_id or "", *workspace]) == 0
    assert "the snapshot came from" in capsys.readouterr().out
    assert main(["lineage", "nothing", *workspace]) == 2
    assert "there is no artifact 'nothing'" in capsys.readouterr().err


def test_names_move_by_command_and_status_says_why_rounds_ended(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.once()
    names = world.names()
    workspace = ["--workspace", str(world.launch.workspace)]
    assert main(["rollback", *workspace, "--reason", "it swears"]) == 0
    assert f"{names['previous']} is the champion again" in capsys.readouterr().out
    assert main(["promote", "runs/round-0001/ppo", *workspace]) == 0
    assert world.names() == names
    assert main(["promote", "runs/round-0001/reward", *workspace]) == 2
    assert "writes no completions" in capsys.readouterr().err
    world.script.win = 0.5
    world.rate(30)
    world.once()
    capsys.readouterr()
    assert main(["status", *workspace, "--json-output"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["aliases"]["champion"]["artifact_id"] == names[CHAMPION]
    assert [one["state"] for one in found["rounds"]] == ["rejected", "champion"]
    assert found["rounds"][0]["reason"].startswith("win rate: 0.500")
    assert found["retraining"] is None
    assert "rejected: win rate" in status.shown(found)


# ---- canary -------------------------------------------------------------------------------------------------


def test_a_candidate_with_fewer_thumbs_is_kept_out() -> None:
    assert compare((40, 50), (85, 100), 0.1).passed  # 80 % against 85 %
    assert not compare((35, 50), (85, 100), 0.1).passed  # 70 %: more than 0.1 less
    assert not compare((150, 200), (850, 1000), 0.15).passed  # 75 % against 85 %: beyond chance
    assert compare((3, 5), (0, 0), 0.1).passed


def test_the_canary_is_skipped_waits_or_decides(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CanarySettings(health_url="http://127.0.0.1:9/health", timeout_s=100)
    assert served_models("http://127.0.0.1:9/health") is None  # nobody listens on the discard port
    assert try_candidate(world.store, CanarySettings(), 0.0, 1.0).state == "skipped"
    assert try_candidate(world.store, settings, 0.0, 1.0).state == "skipped"
    served = {"champion": "a@1", "candidate": "b@2"}
    monkeypatch.setattr("rlhf.loop.retrain.canary.served_models", lambda _: served)
    thumbs = {"a@1": (90, 100), "b@2": (9, 10)}
    monkeypatch.setattr("rlhf.loop.retrain.canary._thumbs", lambda _s, _p, model, _t: thumbs[model])
    assert (
        try_candidate(world.store, settings, 0.0, 1.0).reason == "10 of 50 thumbs on the candidate's answers"
    )
    late = try_candidate(world.store, settings, 0.0, 101.0)
    assert late.verdict is not None
    assert not late.verdict.passed
    thumbs["b@2"] = (30, 60)
    decided = try_candidate(world.store, settings, 0.0, 1.0)
    assert decided.verdict is not None
    assert decided.verdict.reason.startswith("50% thumbs up of 60, the champion's 90% of 100")
