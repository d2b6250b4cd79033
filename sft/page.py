"""OUT/report.html: the figures of report.json with pictures and words, one file, light and dark. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.core import html, plots
from sft.curves import Reading, Verdict

MAX_SHOWN_CHARS = 600


def page(result: Mapping[str, Any], curves: Reading, verdicts: Sequence[Verdict], name: str) -> str:
    metrics = result["metrics"]
    sections = [
        ("", _headline(metrics)),
        (
            "",
            "".join(
                html.note(v.text) if v.kind != "levelled off" else html.paragraph(v.text) for v in verdicts
            ),
        ),
        ("Learning curves", _curves(curves, metrics)),
        ("Data", _data(result)),
    ]
    if result["samples"]:
        sections.append(("Answers before and after", _samples(result["samples"])))
    lead = f"{result['base']} tuned by method {result['method']}."
    return html.page(
        f"Supervised tuning: {name}", sections, lead=lead, footer="Losses are nats per target token."
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    before, after = metrics["validation_loss_before"], metrics["validation_loss"]
    cards = [
        (f"{before:.3f} → {after:.3f}", "validation loss, base and tuned, nats per token"),
        (f"{math.exp(min(before, 50)):.2f} → {math.exp(min(after, 50)):.2f}", "perplexity, base and tuned"),
        (f"{metrics['best_step']} of {metrics['num_steps']}", "steps: the best one was kept"),
        (
            f"{metrics['num_trained_parameters']:,}",
            f"trained parameters, {100 * metrics['share_trained']:.2f} % of the base's",
        ),
    ]
    if "validation_loss_merged" in metrics:
        cards.append(
            (
                f"{metrics['validation_loss_merged']:.3f}",
                "validation loss of the model merged in full precision",
            )
        )
    return html.cards(cards)


def _curves(curves: Reading, metrics: Mapping[str, Any]) -> str:
    if not curves.steps:
        return html.paragraph("There was no validation after the first.")
    series = {
        "training": (curves.steps, curves.training),
        "validation": ([0, *curves.steps], [curves.first, *curves.validation]),
    }
    picture = plots.line_plot(series, "Loss", "step", "nats per token")
    alt = f"validation loss from {curves.first:.3f} to {min(curves.validation):.3f} over {curves.steps[-1]} steps"
    caption = (
        f"Training loss is the mean since the validation before, with dropout. Step {metrics['best_step']} was kept. "
        "Every step is in metrics.jsonl, and drawn in sft.png."
    )
    return html.figures([html.figure(picture, caption, alt=alt)])


def _data(result: Mapping[str, Any]) -> str:
    rows, pictures = [], []
    for task in result["tasks"]:
        lengths = task["lengths"]
        rows.append({k: v for k, v in task.items() if k not in ("lengths", "histogram")} | lengths)
        picture = plots.bar_plot(
            task["histogram"] if len(task["histogram"]) < 7 else _every_other(task["histogram"]),
            f"Lengths: {task['name']}",
            "tokens",
            "training rows",
        )
        alt = "; ".join(f"{name} tokens: {count}" for name, count in task["histogram"].items())
        pictures.append(html.figure(picture, "Prompt and completion together.", alt=alt))
    packing = result["packing"]
    words = ""
    if packing is not None:
        words = html.paragraph(
            f"Packed into {packing['blocks']} blocks of {packing['tokens of a block']} tokens, "
            f"{100 * packing['filled']:.1f} % of which are filled."
        )
    return html.table(rows) + words + html.figures(pictures)


def _every_other(bins: Mapping[str, int]) -> dict[str, int]:
    """Two bins as one, so that the names below the bars have room."""
    names, counts = list(bins), list(bins.values())
    merged = {}
    for i in range(0, len(names), 2):
        last = names[min(i + 1, len(names) - 1)]
        merged[f"{names[i].split('-')[0]}-{last.split('-')[1]}"] = sum(counts[i : i + 2])
    return merged


def _samples(samples: Sequence[Mapping[str, str]]) -> str:
    rows = [{name: _cut(text) for name, text in row.items()} for row in samples]
    return html.paragraph(
        "The most probable answers to validation prompts; 'wanted' is what the data says."
    ) + html.table(rows)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + " ..."
