"""Import: what people bring ends up as tasks and answers, bad rows in quarantine, nothing twice."""

from __future__ import annotations

import gc
import json

import pytest
from sqlalchemy import text

from feedback_app.config import ImportConfig
from feedback_app.importing import import_file
from feedback_app.importing import run as run_import
from feedback_app.store.annotations import judgements
from feedback_app.store.leases import lease_next
from feedback_app.store.snapshots import export_snapshot
from rlhf.core.errors import DataError
from rlhf.core.files import read_jsonl
from rlhf.core.records import Preference
from rlhf.core.run import Launch

pytestmark = pytest.mark.databases("sqlite", "postgresql")


@pytest.fixture
def bring(store, tmp_path):
    """bring(rows, **settings) writes the rows (objects or raw lines) to a file and imports it."""

    def _bring(rows, **settings):
        path = tmp_path / "brought.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        config = ImportConfig(file=path, project="p", **settings)
        return import_file(store, config, quarantine=tmp_path / "bad.jsonl")

    return _bring


def test_prompts_alone(store, bring):
    counts = bring([{"prompt": "one"}, {"messages": [{"role": "user", "content": "two"}]}, {"prompt": "one"}])
    assert (counts.rows, counts.prompts, counts.tasks) == (3, 2, 0)


def test_completions_become_a_task_for_every_pair(store, bring, people):
    rows = [{"prompt": "q", "completions": ["a", {"text": "b", "model_id": "m"}, "c"]}]
    counts = bring(rows, overlap=2)
    assert (counts.prompts, counts.completions, counts.tasks) == (1, 3, 3)
    assert bring(rows, overlap=2).tasks == 0
    assert lease_next(store, people[0], "p") is not None


def test_ratings_become_answers_in_the_right_direction(store, bring, tmp_path):
    rows = [
        {"prompt": "q1", "chosen": "good", "rejected": "bad", "annotator_id": "ann", "margin": 3},
        {"prompt": "q1", "chosen": "bad", "rejected": "good", "annotator_id": "bob", "reason": "I disagree"},
        {"prompt": "q2", "chosen": "x", "rejected": "y", "annotator_id": "ann", "tie": True},
        {"prompt": "q3", "chosen": "x", "rejected": "y", "margin": 0.37},
    ]
    counts = bring(rows)
    assert (counts.tasks, counts.ratings, counts.corrected, len(counts.annotators)) == (3, 4, 0, 3)
    again = bring(rows)
    assert (again.ratings, again.known_ratings, again.tasks) == (0, 4, 0)
    found = {(j.prompt_id, j.annotator_id): j for j in judgements(store, "p")}
    assert len(found) == 4
    export_snapshot(store, tmp_path / "s", project="p", seed=0, fractions=(1.0, 0.0, 0.0))
    back = {
        (p.prompt[0].content, *_sides(p), p.margin, p.tie)
        for p in read_jsonl(tmp_path / "s/train.jsonl", Preference)
    }
    assert back == {
        ("q1", "good", "bad", 3.0, False),
        ("q1", "bad", "good", 1.0, False),
        ("q2", "x", "y", 0.0, True),
        ("q3", "x", "y", 1.0, False),
    }


@pytest.mark.parametrize("name", ["train.jsonl", "unpaired/train.jsonl"])
def test_a_snapshot_can_be_imported_with_its_models(store, bring, tmp_path, name):
    sides = {"model_chosen": "one", "model_rejected": "two", "annotator_id": "ann", "source": "logs"}
    bring([{"prompt": f"q{i}", "chosen": "good", "rejected": "bad", **sides} for i in range(3)])
    everything = {"seed": 0, "fractions": (1.0, 0.0, 0.0), "unpaired_from_pairs": True}
    export_snapshot(store, tmp_path / "s", project="p", **everything)
    config = ImportConfig(file=tmp_path / "s" / name, project="again")
    counts = import_file(store, config, quarantine=tmp_path / "worse.jsonl")
    assert (counts.ratings, counts.bad_rows) == (6 if "unpaired" in name else 3, 0)
    export_snapshot(store, tmp_path / "t", project="again", seed=0, fractions=(1.0, 0.0, 0.0))
    for row in map(json.loads, (tmp_path / "t" / name).read_text().splitlines()):
        said = [row[c] for c in ("chosen_model", "rejected_model", "model_id", "source") if c in row]
        expected = ["one" if row["label"] else "two"] if "label" in row else ["one", "two"]
        assert said == [*expected, "logs"]


def _sides(preference):
    sides = (preference.chosen[0].content, preference.rejected[0].content)
    return sorted(sides) if preference.tie else sides


def test_unnamed_ratings_of_one_pair_are_different_people(store, bring):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    counts = bring([row, row, {"prompt": "q", "chosen": "b", "rejected": "a"}])
    assert (counts.ratings, len(counts.annotators)) == (3, 3)
    assert sorted(j.preference for j in judgements(store, "p")) == ["first", "first", "second"]


def test_imported_pairs_can_be_rated_further(store, bring, people):
    bring([{"prompt": "q", "chosen": "a", "rejected": "b"}], overlap=2)
    assert lease_next(store, people[0], "p") is not None
    assert lease_next(store, people[1], "p") is None


def test_trl_conversations_and_implicit_prompts(store, bring):
    user, good, bad = (
        {"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "hello"), ("assistant", "go"))
    )
    counts = bring(
        [
            {"prompt": [user], "chosen": [good], "rejected": [bad]},
            {"chosen": [user, good], "rejected": [user, bad]},
            {"prompt": [user], "chosen": [user, good], "rejected": [user, bad]},
        ]
    )
    assert (counts.prompts, counts.tasks, counts.completions, counts.ratings) == (1, 1, 2, 3)


def test_bad_rows_go_to_quarantine_with_their_reason(store, bring, tmp_path):
    counts = bring(
        [
            {"prompt": "fine"},
            "{broken",
            {"question": "what?"},
            {"prompt": "q", "chosen": "same", "rejected": "same"},
            {"prompt": "q", "chosen": "a", "rejected": "b", "strength": 9},
            '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}',
            {"chosen": "a", "rejected": "b"},
            {"prompt": "q", "completions": []},
            {"prompt": "q", "colour": "red"},
        ]
    )
    assert (counts.rows, counts.bad_rows) == (1, 8)
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [row["line"] for row in bad] == list(range(2, 10))
    reasons = " | ".join(row["reason"] for row in bad)
    for part in (
        "found the columns question",
        "same text",
        "strength",
        "NaN",
        "'prompt' is missing",
        "1 to 9",
        "colour",
    ):
        assert part in reasons


def test_a_file_without_a_good_row_changes_nothing(store, bring):
    with pytest.raises(DataError, match="no usable row among 2"):
        bring(["{broken", {"question": "?"}])
    with store.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM projects")).scalar() == 0


def test_a_kind_that_does_not_fit_is_refused(store, bring):
    with pytest.raises(DataError, match="no usable row among 1"):
        bring([{"prompt": "one"}], format="preference")


def test_the_command_says_what_happened(tmp_path, db_url, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "completions": ["a", "b"]}\nnonsense\n')
    (tmp_path / "rubric.md").write_text("Be **kind**.")
    launch = Launch(workspace=tmp_path, db=db_url)
    before = gc.get_threshold()
    run_import(ImportConfig(file=path, project="p", rubric=tmp_path / "rubric.md", simulated=True), launch)
    out = capsys.readouterr().out
    assert "1 rows into project 'p'" in out
    assert "1 prompts, 2 completions, 1 tasks" in out
    assert "1 bad rows" in out
    assert "pairs.jsonl.quarantine.jsonl" in out
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
