"""classify.json, classify.html and predictions.jsonl of labelled texts that a classifier has judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.core.files import write_json, write_jsonl, write_text
from rlhf.core.metrics import finite, read_metrics
from sft.classify.baselines import Baseline
from sft.classify.data import LabelledText
from sft.classify.measure import SCORES, calibration, classification, lead, probabilities
from sft.classify.page import page

NUM_MISTAKES = 12


@dataclass
class Judged:
    """Held-out texts with their labels [N], the classifier's logits [N, K] and what the baselines said."""

    rows: Sequence[LabelledText]
    targets: np.ndarray
    logits: np.ndarray
    labels: Sequence[str]
    temperature: float
    baselines: Sequence[Baseline] = field(default_factory=list)

    @property
    def predicted(self) -> np.ndarray:
        found: np.ndarray = self.logits.argmax(1)
        return found

    @property
    def families(self) -> list[str]:
        return [row.family for row in self.rows]


def write_report(
    out: Path, judged: Judged, about: dict[str, Any], seed: int, metrics_file: Path | None = None
) -> dict[str, Any]:
    """The three files in `out`. Returns the headline figures for the manifest.

    about: name, base and what else is known of the classifier; metrics_file: its training, for the curves.
    """
    chances = probabilities(judged.logits, judged.temperature)
    result: dict[str, Any] = {
        **about,
        **classification(judged.targets, judged.predicted, judged.labels, judged.families, seed),
        "labels": list(judged.labels),
        "temperature": judged.temperature,
        "calibration": calibration(chances, judged.targets),
        "calibration_before": calibration(probabilities(judged.logits, 1.0), judged.targets),
        "baselines": [_baseline(judged, baseline, seed) for baseline in judged.baselines],
        "mistakes": _mistakes(judged, chances),
        "curves": read_metrics(metrics_file) if metrics_file is not None else [],
    }
    result = finite(result)
    write_jsonl(out / "predictions.jsonl", predictions(judged, chances))
    write_json(out / "classify.json", result)
    write_text(out / "classify.html", page(result))
    names = [name for score in SCORES for name in (score, f"{score}_low", f"{score}_high")]
    metrics = {name: result[name] for name in names}
    metrics |= {name: result["calibration"][name] for name in ("ece", "brier", "log_loss")}
    for row in result["baselines"]:
        metrics |= {f"{score}_{row['name']}": row[score] for score in SCORES}
    return metrics | {"num_test": result["n"]}


def _baseline(judged: Judged, baseline: Baseline, seed: int) -> dict[str, Any]:
    """Scores of a baseline, and `lead`: how far the classifier is ahead of it on the same texts."""
    labels, families = judged.labels, judged.families
    found = classification(judged.targets, baseline.predicted, labels, families, seed)
    ahead = lead(judged.targets, judged.predicted, baseline.predicted, len(labels), families, seed)
    scores = {
        key: value for key, value in found.items() if key.removesuffix("_low").removesuffix("_high") in SCORES
    }
    return {"name": baseline.name, "text": baseline.text, **scores, "lead": ahead}


def predictions(judged: Judged, chances_NK: np.ndarray) -> list[dict[str, Any]]:
    """One row per held-out text: where it stands, its label, what was predicted, and how probable each label is."""
    return [
        {
            "where": f"{Path(row.where).name}",
            "text": row.text,
            "label": row.label,
            **prediction(judged.labels, chances),
        }
        for row, chances in zip(judged.rows, chances_NK, strict=True)
    ]


def prediction(labels: Sequence[str], chances_K: np.ndarray) -> dict[str, Any]:
    """predicted, its probability, and those of all labels."""
    best = int(chances_K.argmax())
    return {
        "predicted": labels[best],
        "probability": float(chances_K[best]),
        "probabilities": dict(zip(labels, chances_K.tolist(), strict=True)),
    }


def _mistakes(judged: Judged, chances_NK: np.ndarray) -> list[dict[str, Any]]:
    """The wrong predictions that the classifier was surest of: hard texts, or wrong labels."""
    wrong = np.flatnonzero(judged.predicted != judged.targets)
    surest = wrong[np.argsort(-chances_NK[wrong].max(1), kind="stable")][:NUM_MISTAKES]
    return [
        {
            "where": Path(judged.rows[i].where).name,
            "text": judged.rows[i].text,
            "label": judged.rows[i].label,
            **prediction(judged.labels, chances_NK[i]),
        }
        for i in surest.tolist()
    ]
