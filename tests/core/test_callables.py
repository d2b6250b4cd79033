"""Somebody's Python function: whatever it does wrong is reported with its name and the row."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.core.callables import ScoringFunction, is_callable_spec
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Prompt

PROMPTS = [Prompt.model_validate({"prompt": text, "prompt_id": f"p{i}"}) for i, text in enumerate("abc")]
TEXTS = ["one", "three", ""]
CODE = """
import math
import json

CONSTANT = 3

def length(prompts, completions):
    assert prompts == ["a", "b", "c"], prompts
    return [len(text) for text in completions]

def asked(messages, completions):
    return [len(m) if m[0] == {"role": "user", "content": "a"} else -1 for m in messages]

def raises(prompts, completions):
    raise KeyError("the key\\nis not there")

def not_a_number(prompts, completions):
    return [0.5, math.nan, 1.0]

def infinite(prompts, completions):
    return [0.5, 1.0, math.inf]

def too_few(prompts, completions):
    return [1.0, 2.0]

def words(prompts, completions):
    return ["good", "bad", "bad"]

def nothing(prompts, completions):
    pass

def compares(prompts, first, second):
    return [len(a) - len(b) for a, b in zip(first, second)]

def wrong_arity(prompts):
    return [1.0, 1.0, 1.0]

def with_options(prompts, completions, scale=2, *, extra=None):
    return [scale] * len(prompts)
"""


@pytest.fixture
def spec(tmp_path: Path):
    (tmp_path / "judge.py").write_text(CODE)
    return lambda name: f"{tmp_path}/judge.py:{name}"


def test_scores_of_texts_and_of_messages(spec) -> None:
    assert ScoringFunction(spec("length"))(PROMPTS, TEXTS) == [3.0, 5.0, 0.0]
    assert ScoringFunction(spec("asked"))(PROMPTS, TEXTS) == [1.0, -1.0, -1.0]
    assert ScoringFunction(spec("compares"))(PROMPTS, TEXTS, ["x"] * 3) == [2.0, 4.0, -1.0]


def test_required_parameters_tell_a_score_from_a_comparison(spec) -> None:
    assert ScoringFunction(spec("length")).num_parameters == 2
    assert ScoringFunction(spec("compares")).num_parameters == 3
    assert ScoringFunction(spec("with_options")).num_parameters == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "failed on rows 0-2 .KeyError: .*the key"),
        ("not_a_number", "returned nan for row 1 .prompt p1.; expected a finite number"),
        ("infinite", "returned inf for row 2 .prompt p2."),
        ("too_few", "returned 2 numbers; expected 3, one per row"),
        ("words", "failed on rows 0-2 .ValueError: could not convert string"),
        ("nothing", "failed on rows 0-2 .TypeError"),
        ("wrong_arity", "failed on rows 0-2 .TypeError"),
    ],
)
def test_a_bad_result_names_the_function_and_the_row(spec, name: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"judge\.py:{name} {message}") as caught:
        ScoringFunction(spec(name))(PROMPTS, TEXTS)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_imported_is_a_usage_error(spec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no function 'lenght'"):
        ScoringFunction(spec("lenght"))
    with pytest.raises(ConfigError, match="has no function 'CONSTANT'"):
        ScoringFunction(spec("CONSTANT"))
    with pytest.raises(ConfigError, match=r"no such file .*other.py"):
        ScoringFunction(f"{tmp_path}/other.py:f")
    with pytest.raises(ConfigError, match=r"no_such_package:f: cannot be imported .ModuleNotFoundError"):
        ScoringFunction("no_such_package:f")
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"broken.py:f: cannot be imported .SyntaxError"):
        ScoringFunction(f"{tmp_path}/broken.py:f")
    assert ScoringFunction("statistics:mean").num_parameters == 1  # an installed module


def test_what_is_a_callable_and_what_a_path(tmp_path: Path) -> None:
    assert is_callable_spec("judge.py:score")
    assert is_callable_spec("package.module:score")
    assert not is_callable_spec("runs/reward")
    assert not is_callable_spec(":score")
    assert not is_callable_spec("runs/reward:2")
    (tmp_path / "run:one").mkdir()
    assert not is_callable_spec(str(tmp_path / "run:one"))


def test_a_file_may_hold_a_dataclass_with_postponed_annotations(tmp_path: Path) -> None:
    """dataclasses look their module up in sys.modules while the file is being run."""
    path = tmp_path / "judge_with_dataclass.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Weight:\n"
        "    value: float = 2.0\n"
        "def score(prompts, completions):\n"
        "    return [Weight().value * len(c) for c in completions]\n"
    )
    prompt = Prompt.model_validate({"prompt": "x"})
    assert ScoringFunction(f"{path}:score")([prompt], ["abc"]) == [6.0]
