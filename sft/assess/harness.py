"""Tasks of EleutherAI's lm-evaluation-harness (extra lm-eval), on models that are loaded already.

Imported only when --harness.tasks names some. Most tasks fetch their data from the hub; those of a folder of your own
(--harness.include, files as the harness describes them) need not.
"""

from __future__ import annotations

import importlib
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.core.errors import ConfigError, DataError
from rlhf.core.figures import flat
from rlhf.core.stats import Interval, bootstrap_mean
from rlhf.core.validation import one_line
from sft.assess.config import HarnessSettings
from sft.assess.subjects import Subject

# (task, metric, filter) -> value of each question by its number
Values = dict[tuple[str, str, str], dict[int, float]]


class Harness:
    """The tasks, found and ready to run. Raises ConfigError where the package or a task is missing."""

    def __init__(self, settings: HarnessSettings, include: Path | None) -> None:
        self.settings = settings
        try:
            package = importlib.import_module("lm_eval")
            tasks = importlib.import_module("lm_eval.tasks")
            huggingface = importlib.import_module("lm_eval.models.huggingface")
        except ImportError as error:
            raise ConfigError(
                "--harness.tasks: lm-eval is not installed; expected pip install 'rlhf-loop[lm-eval]' "
                f"({one_line(str(error))[:120]})"
            ) from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it explains every default it takes
        self._evaluate, self._wrapper = package.simple_evaluate, huggingface.HFLM
        self._manager = tasks.TaskManager(include_path=None if include is None else str(include))
        unknown = [name for name in settings.tasks if not self._manager.match_tasks([name])]
        if unknown:
            raise ConfigError(f"--harness.tasks: lm-eval knows no task {unknown[0]!r}")

    def run(self, subject: Subject, seed: int) -> tuple[Values, list[dict[str, Any]]]:
        """(values of single questions, aggregated results with standard errors). Raises DataError where a task's data
        cannot be had."""
        model = subject.backbone.sampling_model(subject.role)
        codec = subject.codec
        wrapped = self._wrapper(
            pretrained=model,
            tokenizer=codec.tokenizer,
            batch_size=self.settings.batch_size,
            max_length=codec.max_tokens,
        )
        try:
            found = self._evaluate(
                model=wrapped,
                tasks=list(self.settings.tasks),
                num_fewshot=self.settings.shots,
                limit=self.settings.limit,
                task_manager=self._manager,
                apply_chat_template=codec.tokenizer.chat_template is not None,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                bootstrap_iters=1000,
            )
        except (OSError, ValueError, KeyError, ConnectionError) as error:
            names = ", ".join(self.settings.tasks)
            raise DataError(
                f"--harness.tasks {names}: lm-eval cannot run them: {one_line(str(error))[:300]}"
            ) from error
        return single_values(found["samples"]), aggregated(found["results"])


def single_values(samples: dict[str, list[dict[str, Any]]]) -> Values:
    """Those metrics of single questions that are plain numbers, so that means of them can be compared in pairs."""
    values: Values = defaultdict(dict)
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                value = row[metric]
                if isinstance(value, bool | int | float | np.number) and np.isfinite(float(value)):
                    values[(task, metric, row["filter"])][int(row["doc_id"])] = float(value)
    return dict(values)


def aggregated(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per task, metric and filter, with the harness's own standard error where it gives one."""
    rows = []
    for task, found in results.items():
        for key, value in found.items():
            metric, _, name = key.partition(",")
            if not name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = found.get(f"{metric}_stderr,{name}")
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": name,
                    "value": float(value),
                    "standard_error": float(error) if isinstance(error, int | float) else None,
                }
            )
    return rows


def figures(
    tuned: tuple[Values, list[dict[str, Any]]], base: tuple[Values, list[dict[str, Any]]] | None, seed: int
) -> list[dict[str, Any]]:
    """One row per task and metric: value of the tuned model, of the base (`_base`), and the paired gain (`_gain`).

    Metrics of single questions get bootstrap intervals over questions; others (perplexity of a corpus) the normal
    interval of the harness's standard error, and no gain.
    """
    of_base = {} if base is None else {_key(row): row for row in base[1]}
    rows = []
    for row in tuned[1]:
        key = _key(row)
        named = {"task": row["task"], "metric": row["metric"], "filter": row["filter"]}
        before, after = (None if base is None else base[0].get(key)), tuned[0].get(key)
        mean = None if after is None else float(np.mean(list(after.values())))
        if after is None or mean is None or not np.isclose(mean, row["value"]):  # not a mean over questions
            rows.append({**named, "n": None, **flat("value", _normal(row))})
            rows[-1] |= flat("value_base", _normal(of_base[key]) if key in of_base else None)
            rows[-1] |= flat("value_gain", None)
            continue
        both = sorted(after.keys() & before.keys()) if before is not None else []
        gain = [after[i] - before[i] for i in both] if before is not None else []
        rows.append({**named, "n": len(after)})
        rows[-1] |= flat("value", bootstrap_mean(list(after.values()), seed=seed))
        rows[-1] |= flat("value_base", bootstrap_mean(list(before.values()), seed=seed) if before else None)
        rows[-1] |= flat("value_gain", bootstrap_mean(gain, seed=seed) if gain else None)
    return rows


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["task"], row["metric"], row["filter"]


def _normal(row: dict[str, Any]) -> Interval:
    half = 1.96 * (row["standard_error"] or 0.0)
    return Interval(row["value"], row["value"] - half, row["value"] + half, 0)
