"""Snapshots: split by group, stable as data grows, readable by TRL's loader, recorded with members."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import text

from feedback_app.accounts import create_annotator
from feedback_app.config import ExportConfig
from feedback_app.exporting import run as run_export
from feedback_app.store.annotations import answer, submit
from feedback_app.store.leases import lease_next
from feedback_app.store.snapshots import SPLITS, export_snapshot
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, ensure_project
from rlhf.core.errors import ConfigError, DataError, StoreError
from rlhf.core.files import read_jsonl
from rlhf.core.records import Completion, Preference, Prompt
from rlhf.core.run import Launch
from rlhf.core.splits import split_of

pytestmark = pytest.mark.databases("sqlite", "postgresql")

VERDICTS = ({"preference": "first", "strength": 3}, {"preference": "second"}, {"preference": "tie"})


@pytest.fixture
def rated(store, fill, people):
    fill(store, 60, overlap=2)
    for person in people[:2]:
        count = 0
        while (view := lease_next(store, person, "p")) is not None:
            judgement = answer(view, person, **VERDICTS[count % 3])
            submit(store, judgement, lease_id=view.lease_id, client_key=f"{person}|{count}")
            count += 1
    return store


def read(folder, split):
    path = folder / f"{split}.jsonl"
    return list(read_jsonl(path, Preference)) if path.stat().st_size else []


def test_rows_are_preferences_in_the_direction_that_was_said(rated, tmp_path):
    manifest = export_snapshot(rated, tmp_path / "s", project="p", seed=0)
    rows = [row for split in SPLITS for row in read(tmp_path / "s", split)]
    assert len(rows) == 120 == manifest.num_judgements
    with rated.read() as connection:
        said = {
            r.annotation_id: r
            for r in connection.execute(
                text(
                    "SELECT a.annotation_id, a.preference, a.strength, tc.completion_id AS first FROM annotations a "
                    "JOIN task_completions tc ON tc.task_id = a.task_id AND tc.position = 0"
                )
            )
        }
    for row in rows:
        source = said[row.judgement_id]
        assert row.tie == (source.preference == "tie")
        assert row.margin == (0.0 if row.tie else float(source.strength or 1))
        assert (row.chosen_id == source.first) == (source.preference in ("first", "tie"))
        assert row.prompt[-1].role == "user"
        assert row.chosen[0].content != row.rejected[0].content


def test_groups_never_cross_splits_and_counts_are_right(rated, tmp_path):
    manifest = export_snapshot(rated, tmp_path / "s", project="p", seed=0)
    groups = {split: {row.group_id for row in read(tmp_path / "s", split)} for split in SPLITS}
    assert not groups["train"] & groups["validation"]
    assert not groups["train"] & groups["test"]
    assert not groups["validation"] & groups["test"]
    for split in SPLITS:
        rows = read(tmp_path / "s", split)
        counts = manifest.counts[split]
        assert counts.rows == len(rows)
        assert counts.ties == sum(row.tie for row in rows)
        assert (counts.groups, counts.prompts) == (len(groups[split]), len({row.prompt_id for row in rows}))
    assert sum(counts.rows for counts in manifest.counts.values()) == 120
    assert json.loads((tmp_path / "s/manifest.json").read_text())["content_hash"] == manifest.content_hash


def test_the_split_is_the_fractions_and_keeps_as_data_grows():
    splits = [split_of(f"group {i}", 7, (0.8, 0.1, 0.1)) for i in range(5000)]
    # 5,000 draws: 5 standard deviations around 0.8 are +-0.028.
    assert abs(splits.count("train") / 5000 - 0.8) < 0.028
    assert abs(splits.count("test") / 5000 - 0.1) < 0.022
    assert split_of("group 3", 7, (0.8, 0.1, 0.1)) == splits[3]
    assert {split_of(f"g{i}", 0, (1.0, 0.0, 0.0)) for i in range(200)} == {"train"}


def test_the_same_ratings_give_the_same_bytes(rated, tmp_path, people):
    one = export_snapshot(rated, tmp_path / "a", project="p", seed=0)
    two = export_snapshot(rated, tmp_path / "b", project="p", seed=0)
    other = export_snapshot(rated, tmp_path / "c", project="p", seed=1)
    assert one.content_hash == two.content_hash != other.content_hash
    prompt = Prompt.model_validate({"prompt": "a later one"})
    pair = [Completion(completion_id=f"later{i}", prompt_id=prompt.prompt_id, text=str(i)) for i in range(2)]
    add_prompts(rated, [prompt])
    add_completions(rated, pair)
    create_tasks(rated, project="p", kind="pairwise", items=[(prompt.prompt_id, ("later0", "later1"))])
    view = lease_next(rated, people[0], "p")
    submit(rated, answer(view, people[0], preference="tie"), lease_id=view.lease_id, client_key="later-key")
    grown = export_snapshot(rated, tmp_path / "d", project="p", seed=0)
    assert grown.content_hash != one.content_hash
    for split in SPLITS:
        before = {row.judgement_id for row in read(tmp_path / "a", split)}
        assert before <= {row.judgement_id for row in read(tmp_path / "d", split)}


def test_trl_files_load_with_datasets_in_trl_columns(rated, tmp_path):
    datasets = pytest.importorskip("datasets")
    manifest = export_snapshot(rated, tmp_path / "s", project="p", seed=2)  # every split has a decided pair
    loaded = datasets.load_dataset(
        "json",
        data_files={s: str(tmp_path / "s/trl" / f"{s}.jsonl") for s in SPLITS},
        cache_dir=str(tmp_path / "hf"),
    )
    for split in SPLITS:
        assert loaded[split].column_names == ["prompt", "chosen", "rejected"]
        assert len(loaded[split]) == manifest.counts[split].without_tie
    assert loaded["train"][0]["chosen"][0]["role"] == "assistant"
    assert manifest.num_left_out_of_trl == 40


def test_members_are_recorded_and_audited(rated, tmp_path):
    manifest = export_snapshot(rated, tmp_path / "s", project="p", seed=0)
    with rated.read() as connection:
        members = connection.execute(
            text("SELECT split, count(*) FROM snapshot_members GROUP BY split")
        ).tuples()
        assert dict(members.all()) == {s: c.rows for s, c in manifest.counts.items() if c.rows}
        actions = connection.execute(text("SELECT subject FROM audit_log WHERE action = 'snapshot.export'"))
        assert actions.scalars().all() == [manifest.snapshot_id]


def test_rankings_become_all_their_pairs(store, people, tmp_path):
    prompt = Prompt.model_validate({"prompt": "Rank these"})
    three = [
        Completion(completion_id=f"c{i}", prompt_id=prompt.prompt_id, text=f"text {i}") for i in range(3)
    ]
    add_prompts(store, [prompt])
    add_completions(store, three)
    create_tasks(store, project="r", kind="ranking", items=[(prompt.prompt_id, ("c0", "c1", "c2"))])
    view = lease_next(store, people[0], "r")
    ranking = (("c2",), ("c0", "c1"))
    submit(store, answer(view, people[0], ranking=ranking), lease_id=view.lease_id, client_key="ranked-1")
    export_snapshot(store, tmp_path / "s", project="r", seed=0, fractions=(1.0, 0.0, 0.0))
    rows = read(tmp_path / "s", "train")
    assert [(r.chosen_id, r.rejected_id, r.weight) for r in rows] == [("c2", "c0", 0.5), ("c2", "c1", 0.5)]


def test_simulated_ratings_are_said_to_be(store, fill, tmp_path, capsys, db_url):
    fill(store, 3, simulated=True)
    robot = create_annotator(store, "robot", password=None, simulated=True)
    view = lease_next(store, robot, "p")
    submit(store, answer(view, robot, preference="first"), lease_id=view.lease_id, client_key="simulated")
    launch = Launch(workspace=tmp_path, db=db_url)
    run_export(ExportConfig(project="p"), launch)
    assert "simulated: 1 of 1 answers" in capsys.readouterr().out
    (folder,) = (tmp_path / "snapshots").iterdir()
    assert json.loads((folder / "manifest.json").read_text())["simulated"] is True


def test_refusals_leave_nothing_behind(store, fill, tmp_path):
    fill(store, 1)
    with pytest.raises(DataError, match="no answer that can be exported yet"):
        export_snapshot(store, tmp_path / "s", project="p", seed=0)
    with pytest.raises(StoreError, match="no project 'q'; found p"):
        export_snapshot(store, tmp_path / "s", project="q", seed=0)
    ensure_project(store, "blind", purpose="evaluate")
    with pytest.raises(StoreError, match="never exported"):
        export_snapshot(store, tmp_path / "s", project="blind", seed=0)
    assert not [path for path in tmp_path.iterdir() if "feedback.db" not in path.name]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists already"):
        export_snapshot(store, tmp_path / "mine", project="p", seed=0)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match="sum to 1"):
        export_snapshot(store, tmp_path / "s", project="p", seed=0, fractions=(0.5, 0.1, 0.1))


def test_force_sets_the_old_snapshot_aside(rated, tmp_path, db_url, capsys):
    launch = Launch(workspace=tmp_path, db=db_url, out=tmp_path / "snap")
    run_export(ExportConfig(project="p"), launch)
    with pytest.raises(ConfigError, match="--force"):
        run_export(ExportConfig(project="p"), launch)
    run_export(ExportConfig(project="p", seed=3), replace(launch, force=True))
    manifests = [
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("snap", "snap.old-1")
    ]
    assert [manifest["seed"] for manifest in manifests] == [3, 0]
