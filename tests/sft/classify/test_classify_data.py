"""Labelled rows: what is refused and where, and that families of near-duplicates stay together."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.core.errors import DataError
from sft.classify.config import ClassifyConfig, LabelConfig
from sft.classify.data import SPLITS, LabelledData, load_labelled, read_labelled
from sft.classify.model import Labelling
from sft.classify.predict import _read

WORDS = (
    *("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"),
    *("india", "juliet", "kilo", "lima", "mike", "november", "oscar", "papa"),
)


def texts(number: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(number)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def load(path: Path, **changes: Any) -> LabelledData:
    beside = {name: changes.pop(name, None) for name in ("validation", "test")}
    return load_labelled(ClassifyConfig(**changes), path, **beside)


def split_of(data: LabelledData, text: str) -> set[str]:
    return {split for split in SPLITS if any(row.text == text for row in data.rows[split])}


def test_near_duplicates_and_groups_are_in_one_split(tmp_path: Path) -> None:
    first = texts(120)
    rows = [{"text": text, "label": "ab"[i % 2], "who": str(i % 60)} for i, text in enumerate(first)]
    copies = [
        {"text": f"{text} zulu", "label": "ab"[i % 2], "who": str(i % 60)} for i, text in enumerate(first)
    ]
    data = load(write(tmp_path / "rows.parquet", rows + copies), test_fraction=0.3)
    assert data.num_families == 120
    for text in first:
        assert split_of(data, text) == split_of(data, f"{text} zulu")
    assert 20 < len({row.family for row in data.rows["test"]}) < 55
    # By group too: texts i and i + 60 are of one person.
    data = load(tmp_path / "rows.parquet", test_fraction=0.3, group_column="who")
    assert data.num_families == 60
    for i in range(60):
        assert split_of(data, first[i]) == split_of(data, first[i + 60])


def test_a_family_keeps_its_split_while_rows_are_added(tmp_path: Path) -> None:
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(texts(200))]
    before = load(write(tmp_path / "a.parquet", rows[:150]))
    after = load(write(tmp_path / "b.parquet", rows))
    assert before.labels == ("0", "1", "2")
    for row in rows[:150]:
        assert split_of(before, row["text"]) == split_of(after, row["text"])


def test_what_resembles_a_test_row_is_not_trained_on(tmp_path: Path) -> None:
    made = texts(90)
    test = write(
        tmp_path / "test.parquet", [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(made[:30])]
    )
    leaks = [{"text": f"{text}!", "label": "a"} for text in made[:10]]
    rows = [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(made[30:])]
    data = load(write(tmp_path / "rows.parquet", rows + leaks), test=test)
    assert data.num_leaked == 10
    assert [row.text for row in data.rows["test"]] == made[:30]
    assert not any(row.text.endswith("!") for row in data.rows["train"] + data.rows["validation"])


def test_rare_labels_are_trained_and_no_split_is_empty(tmp_path: Path) -> None:
    for seed in range(12):
        made = texts(9, seed)
        labels = ["rare", *["often"] * 7, "other"]
        rows = [{"text": t, "label": label} for t, label in zip(made, labels, strict=True)]
        data = load(write(tmp_path / "rows.parquet", rows), seed=seed)
        assert all(data.rows[split] for split in SPLITS)
        assert {row.label for row in data.rows["train"]} == {"rare", "often", "other"}
    few = [{"text": t, "label": label} for t, label in zip(texts(3), "abc", strict=True)]
    with pytest.raises(DataError, match=r"nothing is left for validation.*more texts of each label"):
        load(write(tmp_path / "few.parquet", few))


def test_a_text_with_two_labels_is_named(tmp_path: Path) -> None:
    made = texts(30)
    rows = [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(made)]
    rows.append({"text": made[4].upper(), "label": "b"})
    (found,) = load(write(tmp_path / "rows.parquet", rows)).contradictions
    assert found["labels"] == ["a", "b"]
    assert [where.rpartition(":")[2] for where in found["where"]] == ["5", "31"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "x"}', "rows.jsonl:2: 'label' is missing; found the columns text"),
        ('{"text": "  ", "label": "a"}', "rows.jsonl:2: 'text': expected a text"),
        (
            '{"text": "x", "label": 0.5}',
            "rows.jsonl:2: 'label': expected a text, a whole number, true or false",
        ),
        ('{"text": "x", "label": null}', "rows.jsonl:2: 'label'"),
        ('{"text": "x", "label": "c"}', "rows.jsonl:2: label 'c'; expected one of a, b"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "one", "label": "a"}}\n{line}\n{{"text": "two", "label": "b"}}\n')
    with pytest.raises(DataError, match=said.replace("(", r"\(")):
        load(path, labels=("a", "b"))


def test_labels_may_be_numbers_and_truth_values_in_any_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("body,kind\none,10\ntwo,9\nthree,10\n")
    rows = read_labelled(tmp_path / "rows.csv", "body", "kind")
    assert [row.label for row in rows] == ["10", "9", "10"]
    (tmp_path / "rows.jsonl").write_text('{"text": "one", "label": true}\n{"text": "two", "label": false}\n')
    assert [row.label for row in read_labelled(tmp_path / "rows.jsonl", "text", "label")] == ["true", "false"]
    with pytest.raises(DataError, match="every row has the label 'same'"):
        load(write(tmp_path / "one.parquet", [{"text": t, "label": "same"} for t in texts(5)]))


def test_a_column_of_labels_that_is_still_empty_is_none(tmp_path: Path) -> None:
    classifier: Any = SimpleNamespace(labelling=Labelling(("a", "b"), 8), labels=("a", "b"))
    path = tmp_path / "new.csv"
    path.write_text("text,label\nhello,\nthere,\n")
    _, texts = _read(path, LabelConfig(file="new.csv"), classifier)
    assert [(text.text, text.label) for text in texts] == [("hello", ""), ("there", "")]
    path.write_text("text,label\nhello,a\nthere,\n")
    with pytest.raises(DataError, match="in some of the rows only"):
        _read(path, LabelConfig(file="new.csv"), classifier)
