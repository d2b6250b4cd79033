"""`rlhf adjudicate`: planted contradictions come before a lead, undecided pairs come next, and twice is once."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from sqlalchemy import text

from feedback_app.accounts import create_annotator
from feedback_app.store.adjudication import adjudicate as decide
from feedback_app.store.adjudication import disputed, num_disputed, open_dispute
from feedback_app.store.annotations import answer
from feedback_app.store.engine import Store
from feedback_app.store.leases import lease_next
from feedback_app.store.projects import change_settings
from feedback_app.store.snapshots import export_snapshot
from reward.score import RewardScale, RewardScorer
from rlhf.cli import main
from rlhf.core.errors import ConfigError, DataError, StoreError
from rlhf.core.records import Prompt
from rlhf.core.run import Launch, read_manifest
from rlhf.loop.adjudicate import disagreement, run
from rlhf.loop.config import AdjudicateConfig
from rlhf.loop.text_scores import TextTable, score_table
from tests.loop.sent_back import deltas, lines, put_pairs, rate_pairs, reward_run

RATED, OPEN = range(60), range(60, 90)
TEMPERATURE = 0.02


class World:
    """60 pairs that Ann rated as the model would, except for those in `planted` (the surest first); 30 open ones; Ben
    rated 5 of Ann's."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        scorer = reward_run(launch, "reward", temperature=TEMPERATURE)
        found = deltas(scorer, range(90))
        self.probability = {i: float(expit(delta / TEMPERATURE)) for i, delta in found.items()}
        # Far enough apart for their order not to hang on rounding.
        unlikely = {i: min(self.probability[i], 1 - self.probability[i]) for i in RATED}
        self.planted: list[int] = []
        for i in sorted(RATED, key=unlikely.__getitem__):
            last = unlikely[self.planted[-1]] if self.planted else 0.0
            if len(self.planted) < 6 and last + 5e-4 < unlikely[i] < 0.09:
                self.planted.append(i)
        assert len(self.planted) == 6
        with Store.open(launch.db) as store:
            self.tasks = put_pairs(store, RATED, overlap=2) | put_pairs(store, OPEN)
            self.rate(store, "Ann", list(RATED))
            self.rate(store, "Ben", [self.planted[0], *[i for i in RATED if i not in self.planted][:4]])
            # What nobody is asked any more: the other places of the rated pairs.
            with store.write() as connection:
                connection.execute(text("UPDATE tasks SET overlap = 1, is_open = false WHERE num_done = 1"))
            change_settings(store, "p", {"uniform_share": 0.0}, actor="test")
            self.snapshot = launch.workspace / "snapshots" / "1"
            export_snapshot(store, self.snapshot, project="p", seed=0)

    def rate(self, store: Store, name: str, pairs: list[int]) -> None:
        verdicts = {}
        for i in pairs:
            prefers_first = (self.probability[i] > 0.5) != (i in self.planted)
            verdicts[self.tasks[i]] = "first" if prefers_first else "second"
        rate_pairs(store, name, verdicts)

    def adjudicate(self, out: str = "runs/adjudicate", **changes: Any) -> dict[str, Any]:
        launch = replace(self.launch, out=self.launch.workspace / out, **changes.pop("launch", {}))
        settings = {"reward": "runs/reward", "snapshot": "snapshots/1", "model": {"device": "cpu"}}
        run(AdjudicateConfig(**settings | changes), launch)  # type: ignore[arg-type]
        path = self.launch.workspace / out / "adjudicate.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with Store.open(self.launch.db) as store, store.read() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def state(self) -> tuple[Any, ...]:
        """Everything that the command may change."""
        tasks = "SELECT task_id, dispute, overlap, is_open, selection, queue_rank FROM tasks ORDER BY task_id"
        return self.rows(tasks), self.rows(
            "SELECT seq, action, subject, row_hash FROM audit_log ORDER BY seq"
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> World:
    """Made once; every test gets a copy."""
    root = tmp_path_factory.mktemp("made") / "workspace"
    shutil.copytree(tiny_model(), root / "models" / "base")
    return World(Launch(workspace=root, db=f"sqlite:///{root}/feedback.db"))


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    root = Path(shutil.copytree(made.launch.workspace, tmp_path / "workspace"))
    found = copy.copy(made)
    found.launch = Launch(workspace=root, db=f"sqlite:///{root}/feedback.db")
    found.snapshot = root / "snapshots" / "1"
    return found


def test_planted_contradictions_come_before_a_lead(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    figures = world.adjudicate(uncertain=0, second_opinions=0)
    out = world.launch.workspace / "runs" / "adjudicate"
    rows = lines(out / "contradicted.jsonl")
    assert {row["task_id"] for row in rows} == {world.tasks[i] for i in world.planted}
    expected = [min(world.probability[i], 1 - world.probability[i]) for i in world.planted]
    assert sorted(row["probability"] for row in rows) == pytest.approx(
        sorted([*expected, expected[0]]), abs=2e-4
    )
    # The most contradicted task first, both its raters together.
    by_task = list(dict.fromkeys(row["task_id"] for row in rows))
    assert by_task == [world.tasks[i] for i in world.planted]
    both = {row["annotator"] for row in rows if row["task_id"] == world.tasks[world.planted[0]]}
    assert both == {"Ann", "Ben"}
    assert (figures["num_ratings"], figures["num_contradicted"], figures["num_disputes_opened"]) == (65, 7, 6)
    assert figures["model"].startswith("runs/reward@")
    with Store.open(world.launch.db) as store, store.read() as connection:
        assert num_disputed(connection, "p") == 6
        case = next(d for d in disputed(connection, "p") if d.task.task_id == world.tasks[world.planted[0]])
        assert case.doubts is not None
        assert case.doubts.model == figures["model"]
        assert len(case.doubts.probabilities) == 2
    said = capsys.readouterr().out
    assert "adjudicate: 7 of 65 ratings (below 0.1) on 6 tasks before a lead, 0 undecided pairs" in said
    manifest = read_manifest(out)
    assert set(manifest.parents) == {"snapshot", "reward"}
    assert manifest.metrics["num_disputes"] == 6


def test_twice_changes_nothing_twice(world: World) -> None:
    world.adjudicate(second_opinions=5, uncertain=10)
    first = world.state()
    again = world.adjudicate(second_opinions=5, uncertain=10)  # finished: nothing is looked at
    assert world.state() == first
    again = world.adjudicate("runs/again", second_opinions=5, uncertain=10)
    assert world.state() == first
    assert (again["num_disputes_opened"], again["num_disputes_known"]) == (0, 6)
    assert (again["num_reopened"], again["num_moved"]) == (0, 0)
    assert (again["num_disputes"], again["num_next"], again["num_second_opinions"]) == (6, 10, 5)


def test_a_dry_run_changes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = world.state()
    world.adjudicate(launch={"dry_run": True})
    assert world.state() == before
    assert not (world.launch.workspace / "runs" / "adjudicate").exists()
    assert "would bring 7 of 65 ratings" in capsys.readouterr().out


def test_undecided_pairs_come_next(world: World) -> None:
    figures = world.adjudicate(contradicted=0, uncertain=8, second_opinions=0)
    nearest = sorted(OPEN, key=lambda i: abs(world.probability[i] - 0.5))[:8]
    assert (figures["num_disputes"], figures["num_next"], figures["num_moved"]) == (0, 8, 30)
    rows = lines(world.launch.workspace / "runs" / "adjudicate" / "uncertain.jsonl")
    assert [row["task_id"] for row in rows] == [world.tasks[i] for i in nearest]
    assert [row["rank"] for row in rows] == list(range(-8, 0))
    assert rows[0]["probability"] == pytest.approx(world.probability[nearest[0]], abs=2e-4)
    with Store.open(world.launch.db) as store:
        person = create_annotator(store, "Cleo", password=None)
        held: list[str] = []
        given = []
        for _ in range(8):
            view = lease_next(store, person, "p", holding=held)
            assert view is not None
            held.append(view.lease_id)
            given.append(view.task_id)
    assert given == [world.tasks[i] for i in nearest]


def test_the_uniform_share_stays(world: World) -> None:
    with Store.open(world.launch.db) as store:
        change_settings(store, "p", {"uniform_share": 0.5}, actor="test")
    world.adjudicate(contradicted=0, uncertain=30, second_opinions=0)
    counts = dict(world.rows("SELECT selection, count(*) FROM tasks WHERE num_done = 0 GROUP BY selection"))
    assert 5 <= counts["uniform"] <= 25
    assert counts["uniform"] + counts["priority"] == 30


def test_pairs_that_one_person_rated_are_asked_once_more(world: World) -> None:
    twice = {t for (t,) in world.rows("SELECT task_id FROM tasks WHERE num_done = 2")}
    figures = world.adjudicate(contradicted=0, uncertain=5, second_opinions=4)
    alone = [i for i in RATED if world.tasks[i] not in twice]
    nearest = sorted(alone, key=lambda i: abs(world.probability[i] - 0.5))[:4]
    raised = {t for (t,) in world.rows("SELECT task_id FROM tasks WHERE num_done = 1 AND overlap = 2")}
    assert raised == {world.tasks[i] for i in nearest}
    assert figures["num_reopened"] == 4
    # They take their turn among the open ones by how undecided they are, and go to somebody else.
    askable = [*OPEN, *nearest]
    expected = sorted(askable, key=lambda i: abs(world.probability[i] - 0.5))[:5]
    ranked = world.rows("SELECT task_id FROM tasks WHERE queue_rank < 0 ORDER BY queue_rank")
    assert [t for (t,) in ranked] == [world.tasks[i] for i in expected]
    # Answered, they are no longer asked for; the next ones take their place.
    with Store.open(world.launch.db) as store:
        rate_pairs(store, "Cleo", dict.fromkeys(raised, "tie"))
    figures = world.adjudicate("runs/again", contradicted=0, uncertain=5, second_opinions=4)
    assert figures["num_reopened"] == 4


def test_what_was_decided_or_erased_is_passed_over(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = world.planted[1:3]
    with Store.open(world.launch.db) as store:
        lead = create_annotator(store, "lead", password=None, role="lead")
        with store.read() as connection:
            view = open_dispute(connection, world.tasks[one]).task
        decide(store, answer(view, lead, preference="tie"), lead, client_key="decision")
        with store.write() as connection:
            connection.execute(
                text(
                    "INSERT INTO tombstones (annotation_id, annotator_id, reason, created_at) "
                    "SELECT annotation_id, annotator_id, '', 1.0 FROM annotations WHERE task_id = :t"
                ),
                {"t": world.tasks[two]},
            )
    figures = world.adjudicate(uncertain=0, second_opinions=0)
    assert figures["passed_over"] == {"decided": 1, "replaced": 1}
    assert figures["num_disputes_opened"] == 4
    assert "passed over: 1 decided, 1 replaced" in capsys.readouterr().out
    assert world.rows(f"SELECT dispute FROM tasks WHERE task_id = '{world.tasks[one]}'") == [("decided",)]


def test_at_most_so_many_the_surest_first(world: World) -> None:
    world.adjudicate(contradicted=2, uncertain=0, second_opinions=0)
    found = {t for (t,) in world.rows("SELECT task_id FROM tasks WHERE dispute = 'open'")}
    assert found == {world.tasks[i] for i in world.planted[:2]}


def test_ratings_that_the_model_was_trained_on_are_marked(world: World) -> None:
    shutil.rmtree(world.launch.workspace / "runs" / "reward")
    reward_run(world.launch, "reward", temperature=TEMPERATURE, snapshot=world.snapshot)
    figures = world.adjudicate(uncertain=0, second_opinions=0)
    rows = lines(world.launch.workspace / "runs" / "adjudicate" / "contradicted.jsonl")
    assert {row["trained_on"] for row in rows if row["split"] == "train"} == {True}
    held_out = [row for row in rows if row["split"] != "train"]
    assert {row["trained_on"] for row in held_out} <= {False}
    assert figures["num_contradicted_held_out"] == len(held_out)
    # Its snapshot is not what it was any more: nobody can say what it has seen.
    with open(world.snapshot / "train.jsonl", "a") as file:
        file.write("\n")
    figures = world.adjudicate("runs/again", uncertain=0, second_opinions=0)
    assert figures["trained_on_known"] is False
    assert {row["trained_on"] for row in lines(world.launch.workspace / "runs/again/contradicted.jsonl")} == {
        None
    }


def test_a_ranking_is_contradicted_as_a_whole(world: World) -> None:
    """Its probability is the mean over its pairs: one surprising pair of three does not make it a dispute."""
    sure = [i for i in RATED if abs(world.probability[i] - 0.5) > 0.45 and i not in world.planted][:3]
    by_prompt: dict[str, dict[str, Any]] = {}
    for split in ("train", "validation", "test"):
        for line in (world.snapshot / f"{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            by_prompt[row["prompt"][0]["content"]] = row
    chosen = [
        row
        for row in by_prompt.values()
        if row["prompt"][0]["content"].endswith(tuple(f" {i}" for i in sure))
    ]
    ranking = [row | {"judgement_id": "one-ranking"} for row in chosen]
    ranking[0] |= {"chosen": ranking[0]["rejected"], "rejected": ranking[0]["chosen"]}
    path = world.launch.workspace / "ranking.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ranking))
    figures = world.adjudicate(snapshot="ranking.jsonl", project="p", uncertain=0, second_opinions=0)
    assert (figures["num_ratings"], figures["num_contradicted"]) == (1, 0)
    for row in ranking[1:]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    path.write_text("".join(json.dumps(row) + "\n" for row in ranking))
    with pytest.raises(DataError, match="none of the 1 contradicted ratings"):
        world.adjudicate("runs/reverse", snapshot="ranking.jsonl", project="p")


def test_where_members_of_an_ensemble_disagree() -> None:
    """By simulation: H(mean p) - mean H(p) over members whose differences are normal."""
    rng = np.random.default_rng(0)
    delta, spread = np.array([0.0, 0.0, 2.0, 6.0]), np.array([0.0, 2.0, 2.0, 1.0])
    draws = expit(delta[:, None] + spread[:, None] * rng.standard_normal((4, 200_000)))

    def entropy(p: np.ndarray) -> np.ndarray:
        return -p * np.log(p) - (1 - p) * np.log1p(-p)

    expected = entropy(draws.mean(1)) - entropy(draws).mean(1)
    found = disagreement(delta, spread)
    assert found == pytest.approx(expected, abs=2e-3)
    assert found[0] == 0  # even, and all members say so
    assert found[1] > found[2] > found[3] > 0


def test_an_ensemble_is_asked_for_its_spread(workspace: Launch) -> None:
    """Two heads over one adapter: the deviation of their scores, from the hidden states by hand."""
    single = reward_run(workspace, "reward")
    backbone, role = single.backbone, single.role
    heads_CH = torch.randn(2, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    both = RewardScorer(backbone, role, RewardScale(0.0, 1.0, 1.0, num_members=2), heads_CH=heads_CH)
    table = TextTable()
    prompt = Prompt.model_validate({"prompt": "tell of rain"})
    assert [table.add(prompt, text) for text in ("the cat", "sun " * 200, "sorry", "the cat")] == [0, 1, 2, 0]
    scores_N, spreads_N = score_table(both, table, max_tokens=64, stage="test")
    for place, words in ((0, "the cat"), (2, "sorry")):
        row = [*backbone.codec.prompt_ids(prompt.messages), *backbone.codec.completion_ids(words)]
        hidden_H = backbone.hidden("reward", torch.tensor([row]))[0, -1].detach()
        one, other = (heads_CH @ hidden_H).tolist()
        assert spreads_N[place] == pytest.approx(abs(one - other) / 2, rel=1e-4)
    assert np.isnan(scores_N[1])  # too long for the model
    assert np.isnan(spreads_N[1])
    alone = score_table(single, table, max_tokens=64, stage="test")
    assert alone[1][[0, 2]].tolist() == [0, 0]


def test_what_does_not_fit_together_is_named(world: World) -> None:
    with pytest.raises(ConfigError, match="--reward is required"):
        world.adjudicate(reward=None)
    with pytest.raises(StoreError, match="no project 'other'"):
        world.adjudicate(project="other")
    other = replace(world.launch, db=f"sqlite:///{world.launch.workspace}/other.db")
    with Store.open(other.db) as store:
        put_pairs(store, range(2))
    settings: dict[str, Any] = {
        "reward": "runs/reward",
        "snapshot": "snapshots/1",
        "model": {"device": "cpu"},
    }
    with pytest.raises(DataError, match="none of the 7 contradicted ratings is in project 'p'"):
        run(AdjudicateConfig(**settings), replace(other, out=world.launch.workspace / "runs" / "wrong"))
    assert not (world.launch.workspace / "runs" / "wrong").exists()


def test_the_command(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["adjudicate", "--workspace", str(world.launch.workspace), "--reward", "runs/reward"]
    command += ["--snapshot", "snapshots/1", "--model.device", "cpu", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "7 of 65 ratings" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").glob("*.json*")} >= {
        "adjudicate.json", "contradicted.jsonl", "uncertain.jsonl", "manifest.json"
    }  # fmt: skip
    assert main([*command[:-1], str(tmp_path / "other"), "--snapshot", "snapshots/none"]) == 2
