"""Every kind of answer leaves in a form of its own, and every file loads with `datasets`."""

from __future__ import annotations

import json
import time

import pytest
from sqlalchemy import text

from feedback_app.store.annotations import answer, submit
from feedback_app.store.leases import lease_next, view_lease
from feedback_app.store.snapshots import SPLITS, export_snapshot
from feedback_app.store.tasks import add_completions, add_prompts, create_tasks, set_rubric
from rlhf.core.records import Completion, Preference, Prompt

ALL = (1.0, 0.0, 0.0)
HARD = 'tab\t, "quotes", \\ and a line\nwith ünïcode \u2028 and 🎈'


@pytest.fixture
def rate(store):
    """rate(kind, num_completions, person, **answer) makes one task in 'p' and answers it."""
    prompt = Prompt.model_validate({"prompt": f"Question: {HARD}", "source": f"source {HARD}"})
    add_prompts(store, [prompt])

    def _rate(kind, num_completions, person, **said):
        ids = tuple(f"{kind}{i}" for i in range(num_completions))
        of = {"prompt_id": prompt.prompt_id}
        texts = [
            Completion(completion_id=c, text=f"{c} {HARD}", model_id=f"model of {c} {HARD}", **of)
            for c in ids
        ]
        add_completions(store, texts)
        create_tasks(store, project="p", kind=kind, items=[(prompt.prompt_id, ids)], overlap=4)
        view = lease_next(store, person, "p")
        while view.kind != kind:
            view = lease_next(store, person, "p", holding=[view.lease_id])
        key = f"{kind} of {person}"
        # Imported scores may leave some out; at the desk every attribute of every completion is asked for.
        origin = "import" if kind == "scores" else "desk"
        said = answer(view, person, **said)
        return submit(store, said, lease_id=view.lease_id, client_key=key, origin=origin)

    return _rate


@pytest.fixture
def every_kind(store, rate, people):
    rate("thumbs", 1, people[0], thumb="up")
    rate("thumbs", 1, people[1], thumb="down")
    rate("pairwise", 2, people[0], preference="second", strength=3)
    rate("pairwise", 2, people[1], preference="tie")
    rate("ranking", 3, people[0], ranking=(("ranking1",), ("ranking0", "ranking2")))
    set_rubric(store, "p", "Be fair.", attributes=[{"name": "help"}, {"name": "care"}])
    scores = {"help": {"scores0": 4, "scores1": 1}, "care": {"scores0": 5, "scores1": 2}}
    rate("scores", 2, people[0], scores=scores)
    rate("demonstration", 0, people[0], demonstration=f"I would say {HARD}")
    return store


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_each_kind_has_its_file(every_kind, tmp_path, people):
    manifest = export_snapshot(every_kind, tmp_path / "s", project="p", seed=0, fractions=ALL)
    assert manifest.files == {
        name: {"train": rows, "validation": 0, "test": 0}
        for name, rows in {"trl": 3, "unpaired": 2, "sft": 1, "scores": 2, "rankings": 1}.items()
    }
    assert manifest.num_judgements == 7
    (demonstration,) = lines(tmp_path / "s/sft/train.jsonl")
    assert [m["role"] for m in demonstration["messages"]] == ["user", "assistant"]
    assert demonstration["messages"][1]["content"] == f"I would say {HARD}"
    thumbs = lines(tmp_path / "s/unpaired/train.jsonl")
    assert sorted(row["label"] for row in thumbs) == [False, True]
    assert thumbs[0]["completion"] == [{"role": "assistant", "content": f"thumbs0 {HARD}"}]
    scored = {row["completion_id"]: row["scores"] for row in lines(tmp_path / "s/scores/train.jsonl")}
    assert scored == {"scores0": {"help": 4, "care": 5}, "scores1": {"help": 1, "care": 2}}
    (ranking,) = lines(tmp_path / "s/rankings/train.jsonl")
    assert (ranking["completion_ids"], ranking["ranks"]) == (["ranking1", "ranking0", "ranking2"], [1, 2, 2])
    assert ranking["completions"][0][0]["content"] == f"ranking1 {HARD}"
    assert ranking["annotator_id"] == people[0]


def test_lines_are_the_records_bytes(every_kind, tmp_path):
    """Lines are put together from parts; a model that reads one and writes it again gives the same row."""
    export_snapshot(every_kind, tmp_path / "s", project="p", seed=0, fractions=ALL)
    for line in (tmp_path / "s/train.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        row = Preference.model_validate_json(line)
        assert json.dumps(row.model_dump(mode="json"), ensure_ascii=False) == line
        assert row.prompt[0].content == f"Question: {HARD}"


def test_every_row_says_who_when_and_of_what(every_kind, tmp_path, people):
    """What weights, splits and slices need, in every file but TRL's own."""
    before = time.time()
    export_snapshot(every_kind, tmp_path / "s", project="p", seed=0, fractions=ALL, unpaired_from_pairs=True)
    names = ("train.jsonl", "unpaired/train.jsonl", "scores/train.jsonl", "rankings/train.jsonl")
    (prompt_id,) = {row["prompt_id"] for name in names for row in lines(tmp_path / "s" / name)}
    for name in names:
        for row in lines(tmp_path / "s" / name):
            assert row["group_id"] == prompt_id
            assert row["annotator_id"] in people
            assert row["source"] == f"source {HARD}"
            assert before - 60 < row["rated_at"] <= before
            if name == "train.jsonl":
                assert row["chosen_model"] == f"model of {row['chosen_id']} {HARD}"
                assert row["rejected_model"] == f"model of {row['rejected_id']} {HARD}"
            elif "completion_ids" in row:
                assert row["model_ids"] == [f"model of {c} {HARD}" for c in row["completion_ids"]]
            else:
                assert row["model_id"] == f"model of {row['completion_id']} {HARD}"
                assert row["completion"][0]["content"] == f"{row['completion_id']} {HARD}"
    answers = {row["judgement_id"] for name in names for row in lines(tmp_path / "s" / name)}
    assert len(answers) == 6  # all but the demonstration
    for row in lines(tmp_path / "s/trl/train.jsonl"):
        assert list(row) == ["prompt", "chosen", "rejected"]


def test_a_snapshot_of_before_these_columns_loads(every_kind, tmp_path):
    export_snapshot(every_kind, tmp_path / "s", project="p", seed=0, fractions=ALL)
    for row in lines(tmp_path / "s/train.jsonl"):
        for name in ("source", "chosen_model", "rejected_model", "rated_at"):
            del row[name]
        old = Preference.model_validate(row)
        assert (old.source, old.chosen_model, old.rejected_model, old.rated_at) == ("", "", "", None)


def test_pairs_are_thumbs_where_that_is_asked_for(every_kind, tmp_path):
    options = {"project": "p", "seed": 0, "fractions": ALL}
    plain = export_snapshot(every_kind, tmp_path / "a", **options)
    both = export_snapshot(every_kind, tmp_path / "b", **options, unpaired_from_pairs=True)
    assert both.files["unpaired"]["train"] == plain.files["unpaired"]["train"] + 2
    said = {
        row["completion"][0]["content"]: row["label"] for row in lines(tmp_path / "b/unpaired/train.jsonl")
    }
    assert (said[f"pairwise1 {HARD}"], said[f"pairwise0 {HARD}"]) == (True, False)
    assert both.content_hash != plain.content_hash


def test_every_file_loads_with_datasets(every_kind, tmp_path):
    datasets = pytest.importorskip("datasets")
    manifest = export_snapshot(every_kind, tmp_path / "s", project="p", seed=0, fractions=ALL)
    for name, rows in manifest.files.items():
        files = {"train": str(tmp_path / "s" / name / "train.jsonl")}
        loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "hf"))
        assert len(loaded["train"]) == rows["train"]
    assert not [p for p in (tmp_path / "s").glob("*/*.jsonl") if not p.stat().st_size]
    assert all((tmp_path / "s" / f"{split}.jsonl").exists() for split in SPLITS)


def test_what_is_left_out_is_counted(store, rate, people, tmp_path):
    first = rate("thumbs", 1, people[0], thumb="up")
    rate("thumbs", 1, people[1], thumb="up")
    again = submit_again(store, people[0])
    assert (first.version, again.version) == (1, 2)
    manifest = export_snapshot(store, tmp_path / "s", project="p", seed=0, fractions=ALL)
    assert manifest.left_out == {"corrected": 1}
    assert sorted(row["label"] for row in lines(tmp_path / "s/unpaired/train.jsonl")) == [False, True]


def submit_again(store, person):
    mine = text("SELECT lease_id FROM leases WHERE annotator_id = :person AND state = 'submitted'")
    with store.read() as connection:
        lease_id = connection.execute(mine, {"person": person}).scalar_one()
        view = view_lease(connection, lease_id, person)
    return submit(store, answer(view, person, thumb="down"), lease_id=lease_id, client_key="a second thought")
