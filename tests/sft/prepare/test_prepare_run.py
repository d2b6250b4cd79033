"""`rlhf prepare` from files to files: what comes out, what is said about it, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlhf.cli as cli
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import read_numbered
from rlhf.core.run import read_manifest
from sft.data import DemonstrationRow
from sft.prepare.config import PrepareConfig


def rows(number: int) -> list[dict[str, Any]]:
    """Rows of which no two are alike."""
    found = []
    for i in range(number):
        a, b = "abcdefghijklmnopqrstuvwxyz"[i % 26], "abcdefghijklmnopqrstuvwxyz"[i // 26]
        found.append({"prompt": f"{a * 9} {b * 9}?", "completion": f"{a * 20} {b * 30}"})
    return found


def test_what_comes_out_is_what_sft_reads(prepare: Callable[..., Any]) -> None:
    found = prepare(
        rows(60), validation_fraction=0.2, test_fraction=0.2, near_duplicates=0.8, order="shuffle"
    )
    counts = {name: len(split) for name, split in found.splits.items()}
    assert sum(counts.values()) == 60
    assert min(counts.values()) >= 4
    groups = {}
    for name in counts:
        for _, row in read_numbered(found.out / f"{name}.jsonl", DemonstrationRow):
            assert row.source == "data"
            assert groups.setdefault(row.group_id, name) == name
    manifest = read_manifest(found.out)
    assert manifest.stage == "prepare"
    assert manifest.metrics["train_rows"] == counts["train"]
    assert set(manifest.parents) == {"data"}
    assert manifest.extra["files"].keys() == {
        "train.jsonl",
        "validation.jsonl",
        "test.jsonl",
        "quarantine.jsonl",
    }
    assert sorted(path.name for path in found.out.iterdir()) == [
        *("manifest.json", "quarantine.jsonl", "report.html", "report.json"),
        *("test.jsonl", "train.jsonl", "validation.jsonl"),
    ]


def test_every_row_is_accounted_for(prepare: Callable[..., Any]) -> None:
    data = [
        {"prompt": "one", "completion": " An  answer \u00a0here\u200b \r\n"},
        {"prompt": "one", "completion": "An  answer  here"},  # the same once it is clean
        {"prompt": "two", "completion": ""},
        {"prompt": "three", "completion": "As an AI language model, I cannot say."},
        {"prompt": "four", "completion": "x"},
        {"prompt": "five", "completion": "y" * 300},
        {"prompt": "six", "completion": "secret drop-me text"},
        {"nothing": 1},
        {"prompt": "seven", "completion": "kept, mail a@example.com"},
    ]
    found = prepare(data, min_chars=2, max_chars=200, drop="drop-me")
    assert found.answers == ["An  answer  here", "kept, mail [EMAIL]"]
    assert found.report["rows"] == {
        "read": 9,
        "kept": 2,
        "reasons": {
            **{"empty": 1, "boilerplate": 1, "too short": 1, "too long": 1, "with the pattern to drop": 1},
            **{"bad row": 1, "exact duplicate": 1},
        },
    }
    assert [
        (row["line"], row["reason"].split(" (")[0].split(" of ")[0].split(";")[0]) for row in found.quarantine
    ] == [
        (3, "empty"),
        (4, "boilerplate"),
        (5, "too short"),
        (6, "too long"),
        (7, "with the pattern to drop"),
        (8, "found the columns nothing"),
        (2, "exact duplicate"),
    ]
    assert found.quarantine[-1]["reason"].endswith("data.jsonl:1")
    assert found.report["personal_data"] == {"mode": "mask", "items": {"EMAIL": 1}, "rows": {"EMAIL": 1}}
    assert sum(found.report["lengths"]["before"]) == 8
    assert sum(found.report["lengths"]["after"]) == 2
    page = (found.out / "report.html").read_text()
    assert "a@example.com" not in page
    assert "email addresses" in page


def test_personal_data_is_masked_reported_or_dropped(prepare: Callable[..., Any]) -> None:
    data = [{"prompt": "q", "completion": "mail a@example.com"}, {"prompt": "r", "completion": "none"}]
    assert prepare(data, pii="report", out="a").answers == ["mail a@example.com", "none"]
    dropped = prepare(data, pii="drop", out="b")
    assert dropped.answers == ["none"]
    assert dropped.quarantine[0]["reason"] == "personal data (EMAIL)"
    assert "a@example.com" not in json.dumps(dropped.quarantine)
    assert prepare(data, pii="off", out="c").answers == ["mail a@example.com", "none"]


def test_near_copies_and_ids(prepare: Callable[..., Any]) -> None:
    text = "the quick brown fox jumps over the lazy dog and runs away into the dark and silent wood"
    data = [
        {"prompt": "q", "completion": text, "id": 1},
        {"prompt": "q", "completion": f"{text}!", "id": 2},
        {"prompt": "r", "completion": "another thing", "id": 1},
        {"prompt": "s", "completion": "a third thing", "id": 3},
    ]
    found = prepare(data, near_duplicates=0.8)
    assert found.answers == [text, "a third thing"]
    reasons = [row["reason"].split(" of ")[0] for row in found.quarantine]
    assert reasons == ["duplicate id", "near duplicate"]
    assert len(prepare(data, unique_ids=False, out="b").rows) == 4
    example = found.report["duplicates"]["examples"][0]
    assert (example["kept"].rpartition(":")[2], example["taken"].rpartition(":")[2]) == ("1", "2")


def test_above_a_size_only_exact_copies_are_looked_for(prepare: Callable[..., Any]) -> None:
    text = "the quick brown fox jumps over the lazy dog and runs away into the dark and silent wood"
    data = [{"prompt": "q", "completion": text}, {"prompt": "q", "completion": f"{text}!"}]
    found = prepare(data, near_duplicates=0.8, near_duplicates_max_rows=1)
    assert len(found.rows) == 2
    assert found.report["notes"] == [
        "2 rows are more than near_duplicates_max_rows (1): only exact duplicates were looked for, and prompts are "
        "of one family when they are equal."
    ]


def test_languages(prepare: Callable[..., Any]) -> None:
    data = [
        {"prompt": "q", "completion": "This sentence is plainly written in the English language."},
        {"prompt": "r", "completion": "Dieser Satz ist ganz offensichtlich auf Deutsch geschrieben worden."},
        {"prompt": "s", "completion": "42"},
    ]
    found = prepare(data, languages=("en",))
    assert found.answers == [data[0]["completion"], "42"]
    assert found.quarantine[0]["reason"] == "language (de)"
    assert found.report["languages"] == {"en": 1, "de": 1, "unsure": 1}
    with pytest.raises(ConfigError, match="'xx' is not known"):
        prepare(data, languages=("xx",), out="b")


def test_mixtures_and_raw_text(prepare: Callable[..., Any]) -> None:
    files = {"a.jsonl": rows(12), "b.jsonl": [{**row, "prompt": f"b {row['prompt']}"} for row in rows(6)]}
    found = prepare(files, weights="a=1,b=1")
    assert [row["source"] for row in found.splits["train"]].count("a") == 6
    assert found.report["mixture"] == {"left_out": 6, "repeated": 0}
    repeated = prepare(files, balance="source", repeat=True, out="b")
    assert [row["source"] for row in repeated.splits["train"]].count("b") == 12
    texts = prepare({"t.txt": "First text,\nof two lines.\n\nSecond text.\n"}, out="c")
    assert texts.splits["train"] == [{"text": "First text,\nof two lines."}, {"text": "Second text."}]


def test_what_is_too_long_for_a_model_is_counted_in_its_tokens(
    prepare: Callable[..., Any], chat_model: Path
) -> None:
    data = [{"prompt": "say a", "completion": "a" * 4}, {"prompt": "say b", "completion": "b" * 400}]
    found = prepare(data, model=str(chat_model))
    assert [row["messages"][-1]["content"] for row in found.rows] == ["aaaa"]
    assert found.quarantine[0]["reason"] == "too many tokens"


def test_the_same_inputs_give_the_same_files(prepare: Callable[..., Any]) -> None:
    settings = {"validation_fraction": 0.2, "test_fraction": 0.2, "near_duplicates": 0.8, "order": "shuffle"}
    first, second = (prepare(rows(60), out=out, **settings) for out in ("a", "b"))
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "report.json", "report.html"):
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes()


def test_nothing_is_overwritten(
    prepare: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(rows(5))
    data, out = str(tmp_path / "data.jsonl"), str(tmp_path / "out")
    assert cli.main(["prepare", "--data", data, "--out", out]) == 2
    assert "is not empty" in capsys.readouterr().err
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    assert cli.main(["prepare", "--data", data, "--out", out, "--force"]) == 0
    assert (tmp_path / "out.old-1" / "train.jsonl").read_bytes() == before
    assert cli.main(["prepare", "--data", data, "--out", data]) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_dry_run_says_what_is_there_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"instruction": "i", "output": "o"}\n{"text": "t"}\n{"x": 1}\n')
    assert cli.main(["prepare", "--data", str(path), "--out", str(tmp_path / "o"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "d: of the first 3 rows: alpaca 1, text 1; 1 cannot be used, first:" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is required"),
        (["--data", "missing.jsonl"], "no such file"),
        (["--data", "d.jsonl", "--check", "missing.jsonl"], "no such file"),
        (["--data", "d.jsonl", "--weights", "other=1"], "no source is called 'other'"),
        (["--data", "d.jsonl", "--weights", "d=1", "--balance", "source"], "exclude each other"),
        (["--data", "d.jsonl", "--balance", "label"], "needs label_column"),
        (["--data", "d.jsonl", "--keep", "("], "no regular expression"),
        (["--data", "d.jsonl", "--pii", "hide"], "--pii"),
        (["--data", "d.jsonl", "--min-chars", "500"], "no row is left of 1 (1 too short); first:"),
        (["--data", "bad.jsonl"], "no row is left of 1 (1 bad row); first:"),
        (["--data", "empty.jsonl"], "file is empty"),
        (["--data", "d.jsonl", "--model", "nowhere/none"], "nowhere/none"),
        (["--data", "d.jsonl", "--patterns", "none.yaml"], "no such file"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "empty.jsonl").write_text("")
    assert cli.main(["prepare", *arguments, "--out", "o"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlhf: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "d.jsonl", "empty.jsonl"]


def test_a_broken_file_does_not_cost_the_others(prepare: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    named = (str(tmp_path / "torn.jsonl.gz"), str(tmp_path / "data.jsonl"))
    found = prepare({}, data=named)
    assert len(found.rows) == 3
    assert "cannot be read on" in found.quarantine[0]["reason"]
    assert "could not be read to its end" in found.report["notes"][0]
    with pytest.raises(DataError, match="not a complete gzip file"):
        prepare({}, data=named[:1], out="b")


def test_preparing_loads_no_torch() -> None:
    program = (
        "import sys, sft.prepare.run\n"
        "assert not {'torch', 'transformers', 'datasets', 'presidio_analyzer'} & {m.split('.')[0] for m in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="expected less than 1"):
        PrepareConfig(validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValueError, match="max_tokens needs model"):
        PrepareConfig(max_tokens=100)
