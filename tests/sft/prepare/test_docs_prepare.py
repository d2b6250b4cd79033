"""docs/prepare.md: every example row is read as the layout that it stands for, and every setting it names exists."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from sft.prepare.config import Layout, PrepareConfig

DOCS = (Path(__file__).resolve().parents[3] / "docs" / "prepare.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\| `([\w-]+)` \| [^|]+ \| `(\{.*\})` \|$", DOCS, re.MULTILINE)


def test_there_is_an_example_of_each_layout() -> None:
    assert {name for name, _ in EXAMPLES} == set(get_args(Layout)) - {"auto"}


def test_the_examples_are_prepared_as_they_stand(prepare: Callable[..., Any]) -> None:
    rows = [json.loads(row) for _, row in EXAMPLES]
    found = prepare(rows)
    assert found.report["inputs"][0]["layouts"] == {name: 1 for name, _ in EXAMPLES}
    assert found.report["rows"]["kept"] == len(EXAMPLES)


def test_the_settings_in_the_text_exist() -> None:
    table = DOCS[DOCS.index("| step | settings |") : DOCS.index("### Personal data")]
    named = {
        name
        for cell in re.findall(r"\| ([^|]+) \|$", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)[`:]", cell)
    }
    named -= {"mask", "drop", "report", "off"} - {"drop"}
    assert len(named) > 12
    assert named <= set(PrepareConfig.model_fields)
    for option in re.findall(r"--([a-z][a-z-]+)", DOCS):
        known = set(PrepareConfig.model_fields) | {"out", "force", "dry_run"}
        assert option.replace("-", "_") in known, option
