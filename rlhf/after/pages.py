"""Report pages of `rlhf merge` and `rlhf distill`: self-contained, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.core import html, plots
from rlhf.core.figures import span

Result = Mapping[str, Any]


def merge_page(result: Result) -> str:
    """What went in, and the held-out loss of everything that was compared."""
    parts = [{"adapter": part["name"], "weight": float(part["weight"])} for part in result["parts"]]
    how = result["how"] + (f", density {result['density']:g}" if result["density"] else "")
    sections = [("", html.paragraph(_merge_words(result)))]
    if result["rows"]:
        sections.append(("Held-out loss", losses(result["rows"], result)))
    sections.append(("What went in", html.paragraph(f"Combination: {how}.") + html.table(parts)))
    return html.page("Merged model", sections, lead="Adapters folded into their base.")


def _merge_words(result: Result) -> str:
    rows = result["rows"]
    if not rows:
        return "Nothing was measured: give --data with held-out demonstrations to compare the result with its parts."
    best = min(rows[2:], key=lambda row: row["loss"])
    gap = best["over_result"]
    low, high = best["over_result_low"], best["over_result_high"]
    said = f"The best part alone is {best['model']} ({span(best, 'loss', 4)} nats per token). "
    if low > 0:
        return said + f"The result is better than it by {gap:.4f} ({low:.4f} to {high:.4f})."
    if high < 0:
        return said + f"The result is worse than it by {-gap:.4f} ({-high:.4f} to {-low:.4f})."
    return said + f"The result cannot be told from it (difference {gap:.4f}, {low:.4f} to {high:.4f})."


def losses(rows: Sequence[Result], result: Result, better: str = "over_result") -> str:
    """Picture and table of the losses of several models on the same rows."""
    # What the student was before lies far off and would press the others together.
    drawn = [row for row in rows if row["model"] != "student before"]
    marks = [
        plots.Row(row["model"], row["loss"], row["loss_low"], row["loss_high"], row["model"]) for row in drawn
    ]
    picture = plots.interval_plot(marks, "Lower is better", "nats per target token")
    table = [
        {
            "model": row["model"],
            "loss": span(row, "loss", 4),
            f"above that of the {rows[0]['model']}": span(row, better, 4) if i else "",
        }
        for i, row in enumerate(rows)
    ]
    alt = "; ".join(f"{row['model']} {span(row, 'loss', 4)}" for row in rows)
    told = f"{result['num_rows']} held-out rows; dots with 95 % intervals, bootstrapped over prompts."
    if result["num_too_long"]:
        told += f" {result['num_too_long']} rows longer than the context were left out."
    return html.figures([html.figure(picture, told, alt=alt)]) + html.table(table)


def distill_page(result: Result) -> str:
    """Size, speed and held-out loss of everybody, and how the training went."""
    metrics, rows = result["metrics"], result["rows"]
    cards = [
        (f"{metrics['size_share']:.0%}", "of the teacher's parameters"),
        (f"{metrics['speed_factor']:.2f}x", "the teacher's speed of writing"),
        (
            f"{metrics['loss']:.3f}",
            f"nats per token held out, 95 % interval {metrics['loss_low']:.3f} to {metrics['loss_high']:.3f}",
        ),
        (f"{metrics['loss_teacher']:.3f}", "is the teacher's"),
        (f"{metrics['loss_before']:.3f}", "was the student's before"),
    ]
    sizes = [
        {
            "model": row["model"],
            "parameters": f"{row['parameters']:,}",
            "MB": f"{row['bytes'] / 1e6:.1f}",
            "tokens/s": f"{row['tokens_per_s']:.0f}",
        }
        for row in rows
    ]
    series = {
        name: ([epoch for epoch, _ in curve], [loss for _, loss in curve])
        for name, curve in result["curves"].items()
    }
    picture = plots.line_plot(series, "Validation loss", "epoch", "nats per target token")
    method = (
        f"Loss: {result['distill_weight']:g} times the generalised Jensen-Shannon divergence (beta {result['beta']:g}, "
        f"temperature {result['temperature']:g}) from the teacher, the rest the loss on the demonstrations' tokens. "
        "The student without teacher had the same data and at most as many steps. Speed is that of writing "
        "completions on the machine of the run, the fastest of three."
    )
    sections = [
        ("", html.cards(cards) + html.paragraph(_distill_words(metrics))),
        ("Held-out loss", losses(rows, result, "over_student")),
        ("Size and speed", html.table(sizes)),
        ("Training", html.figures([html.figure(picture, "On the validation prompts, after each epoch.")])),
        ("How it was done", html.paragraph(method)),
    ]
    return html.page("Distilled student", sections, lead="A smaller model that learned from a larger one.")


def _distill_words(metrics: Result) -> str:
    if metrics.get("loss_alone") is None:
        return "What the teacher added is not known: the student was not trained without it (--compare)."
    gain, low, high = (metrics[f"gain_over_alone{end}"] for end in ("", "_low", "_high"))
    told = f"({low:.4f} to {high:.4f} nats per token)"
    if low > 0:
        return (
            f"Learning from the teacher gained {gain:.4f} over learning from the demonstrations alone {told}."
        )
    if high < 0:
        return f"Learning from the teacher lost {-gain:.4f} against learning from the demonstrations alone {told}."
    return f"Learning from the teacher cannot be told from learning from the demonstrations alone {told}."
