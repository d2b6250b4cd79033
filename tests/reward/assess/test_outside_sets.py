"""Sets in RewardBench's format: what is read, what is refused, and what the figures are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward.assess.outside import load_set, set_figures
from rlhf.core.errors import DataError


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_every_form_of_a_row_is_the_same_comparison(tmp_path: Path, pool: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "subset": "s", "id": 7, "extra": [1]},
        {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": ["b"]},
        {"prompt": "p", "chosen": ["a"], "rejected": [[assistant("b")]]},
        {"prompt": "p", "chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]},
        {"chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]},
    ]
    found = load_set(write(tmp_path / "set.jsonl", rows), pool)
    assert {(row.chosen, row.rejected) for row in found.rows} == {((0,), (1,))}
    assert pool.texts == ["a", "b"]
    assert [(row.subset, row.row_id) for row in found.rows[:2]] == [("s", "7"), ("", "2")]


def test_csv_is_read_too(tmp_path: Path, pool: Any) -> None:
    path = tmp_path / "set.csv"
    path.write_text("prompt,chosen,rejected,subset\np,a,b,easy\n")
    (row,) = load_set(path, pool).rows
    assert row.subset == "easy"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "'rejected' is missing; found the columns prompt, chosen"),
        ({"chosen": "a", "rejected": "b"}, "'prompt' is missing or empty"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "'prompt' is missing or empty"),
        (
            {"prompt": 3, "chosen": "a", "rejected": "b"},
            "'prompt': expected text or a list of messages; found 3",
        ),
        (
            {"prompt": "p", "chosen": [], "rejected": "b"},
            "'chosen': expected text or a list of messages; found []",
        ),
        (
            {"prompt": "p", "chosen": [{"role": "x", "content": "a"}], "rejected": "b"},
            "expected messages of role",
        ),
        ({"prompt": "p", "chosen": [user("a")], "rejected": "b"}, "'chosen' ends with a user message"),
        (
            {"prompt": "p", "chosen": "a", "rejected": [user("q"), assistant("b")]},
            "'rejected' begins with other messages than the prompt",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, pool: Any, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "set.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}, row])
    with pytest.raises(DataError) as caught:
        load_set(path, pool)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


def test_rows_that_are_too_long_are_counted_and_named(tmp_path: Path, pool: Any) -> None:
    long = {"prompt": "p", "chosen": "w " * 60, "rejected": "b"}
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    found = load_set(write(tmp_path / "set.jsonl", [good, long, good]), pool)
    figures = set_figures(np.array([1.0, 0.0]), found, seed=0)
    assert figures["n"] == 2
    assert (figures["num_too_long"], figures["too_long"]) == (1, ["set.jsonl:2"])
    with pytest.raises(DataError, match="each of its 1 rows has a text of more than 60 tokens"):
        load_set(write(tmp_path / "long.jsonl", [long]), pool)


def test_accuracy_per_subset_and_their_mean(tmp_path: Path, pool: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p1", "chosen": "3", "rejected": "1", "subset": "easy"},
        {"prompt": "p2", "chosen": "1", "rejected": "3", "subset": "easy"},
        {"prompt": "p3", "chosen": "2", "rejected": "2.0", "subset": "easy"},  # equal scores
        {"prompt": "p4", "chosen": "3", "rejected": ["1", "2", "4"], "subset": "hard"},  # one is better
        {"prompt": "p5", "chosen": "4", "rejected": ["4.0", "4.00", "1"], "subset": "hard"},  # two are equal
        {"prompt": "p6", "chosen": ["4", "1"], "rejected": ["2", "3"], "subset": "hard"},  # one of two chosen
    ]
    found = load_set(write(tmp_path / "bench.jsonl", rows), pool)
    figures = set_figures(pool.scored(float), found, seed=0)
    easy, hard = figures["subsets"]
    assert (easy["subset"], easy["n"], easy["accuracy"]) == ("easy", 3, pytest.approx(0.5))
    # 0, 1/3 and 1/2
    assert (hard["subset"], hard["n"], hard["accuracy"]) == ("hard", 3, pytest.approx(5 / 18))
    assert easy["chance"] == 0.5
    # 1/4, 1/4, 1/3
    assert hard["chance"] == pytest.approx((1 / 4 + 1 / 4 + 1 / 3) / 3)
    assert figures["accuracy"] == pytest.approx((1.5 + 5 / 6) / 6)
    assert figures["macro_accuracy"] == pytest.approx((1 / 2 + 5 / 18) / 2)
