"""A Python function named on the command line: `file.py:function` or `package.module:function`.

It is somebody else's code, so whatever it does wrong is reported with its name and the row.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Prompt
from rlhf.core.validation import one_line


def is_callable_spec(text: str) -> bool:
    """True for `something:name`, which no run directory is called."""
    module, _, function = text.rpartition(":")
    return bool(module) and function.isidentifier() and not Path(text).exists()


def load_callable(spec: str) -> Callable[..., Any]:
    """Import the function that `spec` names. Raises ConfigError when it is not there."""
    module_name, _, function_name = spec.rpartition(":")
    try:
        if module_name.endswith(".py"):
            path = Path(module_name)
            if not path.is_file():
                raise ConfigError(f"{spec}: no such file {module_name}")
            # The whole path is the name: a person's json.py must not stand in for Python's.
            location = importlib.util.spec_from_file_location(f"{path.stem}@{path.resolve()}", path)
            assert location is not None
            assert location.loader is not None
            module = importlib.util.module_from_spec(location)
            # dataclasses, pickle and typing look a class's module up by its name.
            sys.modules[location.name] = module
            location.loader.exec_module(module)
        else:
            # `python -m` looks in the current directory; the installed command would not.
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            module = importlib.import_module(module_name)
    except ConfigError:
        raise
    except Exception as error:  # importing runs the person's code, which may raise anything
        raise ConfigError(
            f"{spec}: cannot be imported ({type(error).__name__}: {one_line(str(error))})"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{spec}: {module_name} has no function {function_name!r}")
    return function


class ScoringFunction:
    """A callable `f(prompts, completions) -> one number per completion`, checked on every call.

    prompts are the texts of the last messages; a function whose first parameter is called `messages` gets
    the whole conversations as lists of {"role", "content"} instead. completions are texts.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.function = load_callable(spec)
        self.num_parameters, self._wants_messages = _signature(self.function)

    def __call__(self, prompts: Sequence[Prompt], *texts: Sequence[str]) -> list[float]:
        """Raises DataError naming the function, and the row where the result is not a finite number."""
        if self._wants_messages:
            asked: list[Any] = [[m.model_dump() for m in prompt.messages] for prompt in prompts]
        else:
            asked = [prompt.text for prompt in prompts]
        try:
            result = self.function(asked, *[list(column) for column in texts])
            scores = [float(value) for value in result]
        except Exception as error:  # the person's code may raise anything
            what = f"{type(error).__name__}: {one_line(str(error))}"
            raise DataError(f"{self.spec} failed on rows 0-{len(prompts) - 1} ({what})") from error
        if len(scores) != len(prompts):
            raise DataError(
                f"{self.spec} returned {len(scores)} numbers; expected {len(prompts)}, one per row"
            )
        for row, score in enumerate(scores):
            if not math.isfinite(score):
                raise DataError(
                    f"{self.spec} returned {score} for row {row} (prompt {prompts[row].prompt_id}); "
                    "expected a finite number"
                )
        return scores


def _signature(function: Callable[..., Any]) -> tuple[int, bool]:
    """(number of positional parameters, whether the first is called `messages`)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return 2, False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    return len(required), bool(positional) and positional[0].name == "messages"
