"""Using a classifier: `rlhf label FILE`, and `classify_texts` for other code, such as a filter for unsafe answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.core.adapters import CONFIG_FILE, base_path
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.files import BadRow, write_jsonl
from rlhf.core.guards import TokenBudget
from rlhf.core.inputs import find_model, find_path, required
from rlhf.core.metrics import progress
from rlhf.core.run import MANIFEST, Launch, is_finished, read_manifest
from rlhf.core.settings import ModelSettings
from rlhf.core.tables import read_table
from sft.classify.config import LabelConfig
from sft.classify.data import LabelledText, label_of, text_of
from sft.classify.measure import probabilities
from sft.classify.model import CLASSIFIER_FILE, TextClassifier, open_saved
from sft.classify.report import Judged, prediction, write_report

ROWS_PER_CALL = 512


def run(config: LabelConfig, launch: Launch) -> None:
    """Write the rows with their labels; where the file has labels already, also a folder with the report."""
    source = find_path(config.file, launch)
    target = launch.out or source.with_name(f"{source.name.split('.')[0]}.labelled.jsonl")
    report = target.with_name(f"{target.name.split('.')[0]}-report")
    for path in (target, report):
        if path.exists() and not launch.force:
            raise ConfigError(f"{path}: exists already; choose another --out, or --force to replace it")
    name = required(config.classifier, "classifier", "a classify run, or its adapter or model folder")
    classifier = open_classifier(name, launch, config.model, config.base)
    rows, labelled = _read(source, config, classifier)
    tokens, used = _tokens(
        [text.text for text in labelled], [text.where for text in labelled], classifier, config
    )
    logits = _logits(classifier, tokens, config.micro_batch_tokens)
    chances = probabilities(logits, classifier.labelling.temperature)
    place = {row: k for k, row in enumerate(used)}
    nothing = {"predicted": None, "probability": None, "probabilities": None}
    write_jsonl(
        target,
        (
            row | (prediction(classifier.labels, chances[place[i]]) if i in place else nothing)
            for i, row in enumerate(rows)
        ),
    )
    print(f"label: {len(used)} of {len(rows)} texts: {_shares(classifier, chances)}; written to {target}")
    if labelled[0].label:
        known = [labelled[i] for i in used]
        _report(report, known, logits, classifier, config, name)


def _read(
    source: Path, config: LabelConfig, classifier: TextClassifier
) -> tuple[list[dict[str, Any]], list[LabelledText]]:
    """(rows as they stand, their texts; with labels where the file has that column). Raises DataError."""
    text_column = config.text_column or classifier.labelling.text_column
    label_column = config.label_column or classifier.labelling.label_column
    wanted = config.label_column is not None
    rows: list[dict[str, Any]] = []
    texts: list[LabelledText] = []

    def parse(number: int, row: dict[str, Any]) -> tuple[dict[str, Any], LabelledText]:
        text = text_of(row, text_column)
        # A column that is there to be filled is none of labels.
        empty = row.get(label_column) in (None, "")
        label = label_of(row, label_column) if wanted or not empty else ""
        if label and label not in classifier.labels:
            raise BadRow(f"label {label!r}; the classifier knows {', '.join(classifier.labels)}")
        if texts and bool(label) != bool(texts[0].label):
            raise BadRow(f"'{label_column}' is in some of the rows only; expected it in all or none")
        return row, LabelledText(f"{source}:{number}", text, label, family=text)

    for _, (row, text) in read_table(source, parse):
        rows.append(row)
        texts.append(text)
    return rows, texts


def _tokens(
    texts: Sequence[str], where: Sequence[str], classifier: TextClassifier, config: LabelConfig
) -> tuple[list[list[int]], list[int]]:
    """(tokens of the texts that are used, their places). Raises DataError for one that is too long."""
    limit = classifier.labelling.max_tokens
    rows, used = [], []
    for place, text in enumerate(texts):
        ids = classifier.tokens(text)
        if len(ids) > limit:
            if config.on_too_long == "error":
                raise DataError(
                    f"{where[place]}: the text has {len(ids)} tokens; the classifier takes {limit} (--on-too-long "
                    "truncate or drop)"
                )
            if config.on_too_long == "drop":
                continue
            ids = classifier.tokens(text, truncate=True)
        rows.append(ids)
        used.append(place)
    if not rows:
        raise DataError(f"all {len(texts)} texts are longer than the classifier's {limit} tokens")
    return rows, used


def _logits(
    classifier: TextClassifier, rows: Sequence[list[int]], max_tokens: int, *, silent: bool = False
) -> np.ndarray:
    """[N, K], a part at a time so that progress is seen."""
    budget = TokenBudget(max_tokens, shorter="max_tokens")
    parts = []
    with progress("texts", len(rows), stage="label", silent=silent) as tracker:
        for start in range(0, len(rows), ROWS_PER_CALL):
            part = rows[start : start + ROWS_PER_CALL]
            lengths = [len(row) for row in part]
            parts.append(
                budget.fit(lambda tokens, part=part: classifier.logits(part, tokens), lengths).numpy()  # type: ignore[misc]
            )
            tracker.advance(len(part))
    return np.concatenate(parts)


def _shares(classifier: TextClassifier, chances_NK: np.ndarray) -> str:
    counts = np.bincount(chances_NK.argmax(1), minlength=len(classifier.labels))
    shown = [f"{label} {count}" for label, count in zip(classifier.labels, counts, strict=True) if count]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


def _report(
    out: Path,
    rows: Sequence[LabelledText],
    logits: np.ndarray,
    classifier: TextClassifier,
    config: LabelConfig,
    name: str,
) -> None:
    number = {label: k for k, label in enumerate(classifier.labels)}
    judged = Judged(
        rows=rows,
        targets=np.array([number[row.label] for row in rows]),
        logits=logits,
        labels=classifier.labels,
        temperature=classifier.labelling.temperature,
    )
    out.mkdir(parents=True, exist_ok=True)
    metrics = write_report(out, judged, {"name": f"{name} on {Path(config.file).name}"}, config.seed)
    print(
        f"label: accuracy {metrics['accuracy']:.3f}, macro F1 {metrics['macro_f1']:.3f} on the {len(rows)} labels in "
        f"the file; page at {out / 'classify.html'}"
    )


# ---- for other code -------------------------------------------------------------------------------------


def open_classifier(
    name: str, launch: Launch, settings: ModelSettings, base: str | None = None
) -> TextClassifier:
    """A classify run, or the adapter or model folder of one. Raises DataError for a run that is not finished."""
    path = find_path(name, launch)
    if (path / MANIFEST).is_file():
        stage = read_manifest(path).stage
        if stage != "classify":
            raise DataError(f"{path}: holds a {stage} run; expected a classify run")
        if not is_finished(path):
            raise DataError(f"{path}: is an unfinished run; continue it with --resume")
    places = (path, path / "adapter", path / "model")
    folder = next((place for place in places if (place / CLASSIFIER_FILE).is_file()), None)
    if folder is None:
        raise DataError(f"{path}: holds no {CLASSIFIER_FILE}; expected a finished classify run")
    found = None
    if (folder / CONFIG_FILE).is_file():
        found = find_model(base, launch) if base else base_path(folder, launch)
    return open_saved(folder, found, settings)


@functools.lru_cache(maxsize=4)
def _opened(name: str, workspace: str, device: str) -> TextClassifier:
    launch = Launch(workspace=Path(workspace), db="")
    return open_classifier(name, launch, ModelSettings(device=device))


def classify_texts(
    run: str | Path,
    texts: Sequence[str],
    *,
    workspace: Path | str = "rlhf-workspace",
    device: str = "auto",
    max_tokens: int = 16_384,
) -> list[dict[str, float]]:
    """The calibrated probability of each label for each text, as a filter or a monitor asks for it.

    run: a finished classify run; it is loaded once and kept. A text that is too long is judged by its beginning; an
    empty one as it is. Raises what `open_classifier` raises.
    """
    if not texts:
        return []
    classifier = _opened(str(run), str(workspace), device)
    rows = [classifier.tokens(text, truncate=True) or [classifier.pad_id] for text in texts]
    chances = probabilities(
        _logits(classifier, rows, max_tokens, silent=True), classifier.labelling.temperature
    )
    return [dict(zip(classifier.labels, row, strict=True)) for row in chances.tolist()]
