"""classify.html: the figures of `classify.json` with pictures and words, one file, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.core import html, plots

MAX_TEXT = 240
MAX_LABELS_SHOWN = 30

Result = Mapping[str, Any]


def page(result: Result) -> str:
    """The whole page; sections of what was not measured are missing."""
    sections: list[tuple[str, str]] = [("", _headline(result))]
    sections += [("", html.note(text)) for text in result.get("notes", [])]
    if result["baselines"]:
        sections.append(("Beside simpler predictors", _baselines(result)))
    sections += [("Label by label", _labels(result)), ("Calibration", _calibration(result))]
    if result["curves"]:
        sections.append(("Training", _curves(result)))
    if result["mistakes"]:
        sections.append(("Surest mistakes", _mistakes(result)))
    if result.get("contradictions"):
        sections.append(("Texts with more than one label", _contradictions(result)))
    if result.get("counts"):
        sections.append(("The data", html.table(result["counts"])))
    sections.append(("How it was measured", html.paragraph(_METHOD)))
    lead = f"What it gets right on {result['n']} texts that it has not seen, and how sure it is."
    return html.page(f"Classifier: {result['name']}", sections, lead=lead, footer=_footer(result))


_METHOD = (
    "Intervals hold 95 % and come from a bootstrap over families of near-duplicate texts. A family is in one split. "
    "Macro F1 is the mean over the labels that the test texts have. The temperature and the best step were chosen on "
    "the validation texts; the test texts were used once. The same figures are in classify.json, each text with its "
    "probabilities in predictions.jsonl."
)


def _footer(result: Result) -> str:
    parts = [f"Base: {result['base']}." if result.get("base") else ""]
    if result.get("weights"):
        parts.append(f"Method {result['method']}: {result['weights']} trained.")
    return " ".join(part for part in parts if part)


def _headline(result: Result) -> str:
    cards = [
        (_percent(result, "accuracy"), f"accuracy, 95 % interval {_interval(result, 'accuracy')}"),
        (_percent(result, "macro_f1"), f"macro F1, 95 % interval {_interval(result, 'macro_f1')}"),
        (_percent(result, "weighted_f1"), f"weighted F1, 95 % interval {_interval(result, 'weighted_f1')}"),
        (f"{result['calibration']['ece']:.3f}", "expected calibration error"),
    ]
    cards += [(_percent(row, "macro_f1"), f"macro F1 of {_short_name(row)}") for row in result["baselines"]]
    return html.cards(cards) + html.paragraph(_words(result))


def _words(result: Result) -> str:
    worst = min(
        (row for row in result["per_label"] if row["f1"] is not None), key=lambda row: row["f1"], default=None
    )
    parts = []
    bow = next((row for row in result["baselines"] if row["name"] == "bow"), None)
    if bow is not None:
        ahead = bow["lead"]
        span = f"{100 * ahead['macro_f1']:+.1f} points, {_interval(ahead, 'macro_f1')}"
        if ahead["macro_f1_low"] > 0:
            parts.append(f"It is clearly better than a bag of words in macro F1 ({span}).")
        elif ahead["macro_f1_high"] < 0:
            parts.append(f"A bag of words is clearly better in macro F1 ({span}).")
        else:
            parts.append(f"Whether it is better than a bag of words in macro F1 is not settled ({span}).")
    if worst is not None:
        parts.append(f"Its weakest label is {worst['label']!r} with an F1 of {100 * worst['f1']:.1f} %.")
    return " ".join(parts)


def _baselines(result: Result) -> str:
    rows = [("classifier", result)] + [(_short_name(row), row) for row in result["baselines"]]
    pictures = [
        html.figure(
            plots.interval_plot(
                [
                    plots.Row(name, row[score], row[f"{score}_low"], row[f"{score}_high"], name)
                    for name, row in rows
                ],
                title,
                "share of the test texts" if score == "accuracy" else "mean F1 of the labels",
            ),
            f"{title} with 95 % intervals.",
            alt="; ".join(f"{name} {_percent(row, score)}" for name, row in rows),
        )
        for score, title in (("accuracy", "Accuracy"), ("macro_f1", "Macro F1"))
    ]
    table = [
        {
            "baseline": row["text"],
            "accuracy": _percent(row, "accuracy"),
            "macro F1": _percent(row, "macro_f1"),
            "classifier leads in macro F1 by": f"{100 * row['lead']['macro_f1']:+.1f} points "
            f"({_interval(row['lead'], 'macro_f1')})",
        }
        for row in result["baselines"]
    ]
    return html.figures(pictures) + html.table(table)


def _labels(result: Result) -> str:
    shown = result["per_label"][:MAX_LABELS_SHOWN]
    rows = [
        plots.Row(
            _short(row["label"], 24),
            row["f1"],
            row["f1_low"],
            row["f1_high"],
            faint=row["n"] < 10,
        )
        for row in shown
        if row["f1"] is not None
    ]
    names = [_short(label, 18) for label in result["labels"]]
    pictures = []
    if len(names) <= MAX_LABELS_SHOWN:
        matrix = plots.matrix_plot(
            result["confusion"], names, "Confusion", "predicted label", "label of the text"
        )
        pictures.append(
            html.figure(
                matrix,
                "Counts; the shade is the share of the row. Green: right, red: wrong.",
                alt="; ".join(
                    f"{name}: {', '.join(map(str, row))}"
                    for name, row in zip(names, result["confusion"], strict=True)
                ),
            )
        )
    picture = plots.interval_plot(rows, "F1 of each label", "F1", reference=("macro", result["macro_f1"]))
    alt = "; ".join(f"{row['label']} {_percent(row, 'f1')}" for row in shown)
    pictures.append(
        html.figure(picture, "With 95 % intervals; labels with fewer than 10 texts are faint.", alt=alt)
    )
    table = [
        {
            "label": row["label"],
            "texts": row["n"],
            "predicted": row["predicted"],
            "precision": _triple(row, "precision"),
            "recall": _triple(row, "recall"),
            "F1": _triple(row, "f1"),
        }
        for row in result["per_label"]
    ]
    return html.figures(pictures) + html.table(table)


def _calibration(result: Result) -> str:
    before, after = result["calibration_before"], result["calibration"]
    series: dict[str, tuple[plots.Numbers, plots.Numbers]] = {
        "perfect": ([0.0, 1.0], [0.0, 1.0]),
        f"temperature {result['temperature']:.2f}": _bins(after),
        "as trained": _bins(before),
    }
    picture = plots.line_plot(
        series, "Reliability", "probability of the predicted label", "share that is right"
    )
    table = [
        {
            "": name,
            "calibration error": f"{row['ece']:.3f}",
            "Brier score": f"{row['brier']:.3f}",
            "log-loss": f"{row['log_loss']:.3f}",
            "overconfidence": f"{100 * row['overconfidence']:+.1f} points",
        }
        for name, row in (("as trained", before), ("with temperature", after))
    ]
    caption = (
        "Test texts in ten bins of how probable the predicted label is said to be; the temperature comes from the "
        "validation texts."
    )
    return html.figures(
        [
            html.figure(
                picture,
                caption,
                alt=f"calibration error {before['ece']:.3f} before, {after['ece']:.3f} after",
            ),
            html.table(table),
        ]
    )


def _bins(figures: Result) -> tuple[plots.Numbers, plots.Numbers]:
    bins = figures["reliability"]
    return [b["confidence"] for b in bins], [b["frequency"] for b in bins]


def _curves(result: Result) -> str:
    rows = [row for row in result["curves"] if "validation_loss" in row]
    steps = [row["step"] for row in rows]
    best = result["best_step"]
    loss = plots.line_plot(
        {
            "validation": (steps, [row["validation_loss"] for row in rows]),
            "training": (steps, [row.get("train_loss") for row in rows]),
        },
        "Loss",
        "step",
        "nats per text",
    )
    scores = plots.line_plot(
        {
            "macro F1": (steps, [row["validation_macro_f1"] for row in rows]),
            "accuracy": (steps, [row["validation_accuracy"] for row in rows]),
        },
        "On validation",
        "step",
        "score",
    )
    caption = f"Step {best} of {result['num_steps']} is kept. {_fit_words(rows, best)}"
    return html.figures(
        [
            html.figure(loss, caption, alt=f"loss by step; best step {best}"),
            html.figure(scores, "Macro F1 and accuracy on the validation texts."),
        ]
    )


def _fit_words(rows: list[Result], best: int) -> str:
    """Names over- and underfitting where the curves show them."""
    lowest = min(row["validation_loss"] for row in rows)
    last = rows[-1]
    if last["step"] > best and last["validation_loss"] > 1.1 * lowest:
        return "After it the model overfits: training loss falls while validation loss rises."
    if last["step"] == best:
        return "Validation loss was still falling: the model may be trained too little."
    return "Validation loss has levelled off."


def _mistakes(result: Result) -> str:
    table = [
        {
            "where": row["where"],
            "text": _short(row["text"]),
            "label": row["label"],
            "predicted": f"{row['predicted']} ({100 * row['probability']:.0f} %)",
        }
        for row in result["mistakes"]
    ]
    lead = html.paragraph("Where it was surest and wrong. Hard texts, or texts that carry a wrong label.")
    return lead + html.table(table)


def _contradictions(result: Result) -> str:
    table = [
        {
            "text": _short(row["text"]),
            "labels": ", ".join(row["labels"]),
            "rows": ", ".join(where.rpartition("/")[2] for where in row["where"][:6]),
        }
        for row in result["contradictions"]
    ]
    return html.paragraph(f"{result['num_contradictions']} in all.") + html.table(table)


def _short_name(row: Result) -> str:
    return "bag of words" if row["name"] == "bow" else "most frequent label"


def _percent(row: Result, name: str) -> str:
    return "none" if row[name] is None else f"{100 * row[name]:.1f} %"


def _interval(row: Result, name: str) -> str:
    return f"{100 * row[f'{name}_low']:.1f} to {100 * row[f'{name}_high']:.1f}"


def _triple(row: Result, name: str) -> str:
    if row[name] is None:
        return "none"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return (
        _percent(row, name) if low is None else f"{_percent(row, name)} ({100 * low:.1f} to {100 * high:.1f})"
    )


def _short(text: str, limit: int = MAX_TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
