"""reward_eval.html: the figures of `reward_eval.json` with pictures and words, one file, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward.assess import words
from reward.assess.slices import MIN_PAIRS, MIN_PROMPTS
from rlhf.core import html, plots

MAX_SLICES_SHOWN = 40
MAX_RATERS_OPEN = 12
MAX_TEXT = 240

Result = Mapping[str, Any]


def page(result: Result, name: str) -> str:
    """The whole page; sections of what was not measured are missing."""
    sections: list[tuple[str, str]] = [("", _headline(result))]
    sections += [("", html.note(text)) for text in result["notes"]]
    if "slices" in result:
        sections += [
            ("Who agrees with the raters", _accuracy(result)),
            ("Where it is weak", _slices(result)),
            ("Raters", _raters(result)),
            ("Length", _length(result)),
            ("Calibration", _calibration(result)),
            ("Spoiled copies", _adversarial(result)),
            ("Form", _consistency(result)),
        ]
    sections.append(("Bias", _bias(result)))
    if result["sets"]:
        sections.append(("Outside sets", _sets(result)))
    sections.append(("How it was measured", _method(result)))
    lead = "What it gets right on held-out texts, what it falls for, and whom it treats differently."
    footer = f"{result['num_texts']} distinct texts were scored."
    return html.page(f"Reward evaluation: {name}", sections, lead=lead, footer=footer)


def _headline(result: Result) -> str:
    metrics = result["metrics"]
    cards: list[tuple[str, str]] = []

    def card(name: str, text: str, *, share: bool = True) -> None:
        value = metrics.get(name)
        if value is None:
            return
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        scale, unit, digits = (100, " %", 1) if share else (1, "", 3)
        interval = ""
        if low is not None and high is not None:
            interval = f", 95 % interval {scale * low:.{digits}f} to {scale * high:.{digits}f}"
        cards.append((f"{scale * value:.{digits}f}{unit}", text + interval))

    card("heldout_accuracy", "of held-out comparisons are ordered as the rater did")
    card("agreement", "two raters of the same completions agree")
    card("accuracy_length", "is what the length of an answer alone gets right")
    card("accuracy_bow", "is what the words in it alone get right")
    card("ece", "expected calibration error", share=False)
    card("accuracy_shorter_better", "right where the shorter one is better")
    card("adversarial_accuracy", "of spoiled copies score below their original")
    card("consistency_flip_rate", "of verdicts turn when only the form changes")
    card("bias_gap", f"largest mean bias gap, in deviations ({result['bias_gap_kind']})", share=False)
    cards += [
        (f"{100 * figures['macro_accuracy']:.1f} %", f"{figures['file']}, mean of its subsets")
        for figures in result["sets"]
    ]
    text = ""
    if "slices" in result:
        text = html.paragraph(
            " ".join([words.accuracy_words(result), words.baseline_words(metrics), words.slice_words(result)])
        )
    return html.cards(cards) + text


def _accuracy(result: Result) -> str:
    metrics = result["metrics"]
    sources = [
        ("reward model", "heldout_accuracy"),
        ("bag of words", "accuracy_bow"),
        ("length", "accuracy_length"),
        ("rater with rater", "agreement"),
    ]
    rows = [
        plots.Row(text, *_interval(metrics, name), text)
        for text, name in sources
        if metrics.get(name) is not None
    ]
    picture = html.figure(
        plots.interval_plot(
            rows, "Share of held-out comparisons", "ordered as the rater did", reference=("chance", 0.5)
        ),
        "Dots with 95 % intervals, bootstrapped over prompts.",
        alt="; ".join(f"{text} {words.percent(metrics, name)}" for text, name in sources),
    )
    table = [
        {
            "baseline": row["what"],
            "accuracy": words.percent(row, f"accuracy_{row['name']}"),
            "reward model leads by": words.percent(row, f"lead_over_{row['name']}"),
        }
        for row in result["baselines"]
    ]
    return html.figures([picture]) + html.table(table)


def _slices(result: Result) -> str:
    found: Sequence[Result] = result["slices"]
    if not found:
        return html.paragraph("The held-out comparisons do not fall into slices that could be told apart.")
    metrics = result["metrics"]
    shown = found[:MAX_SLICES_SHOWN]
    rows = [
        plots.Row(
            _short(row["name"], 34),
            row["accuracy"],
            row["low"],
            row["high"],
            group=row["kind"],
            faint=row["small"],
        )
        for row in shown
    ]
    picture = plots.interval_plot(
        rows,
        "Accuracy per slice",
        "ordered as the rater did",
        reference=("all", metrics["heldout_accuracy"]),
        band=(metrics["heldout_accuracy_low"], metrics["heldout_accuracy_high"]),
    )
    table = [
        {"slice": row["kind"], "of": row["name"], "pairs": row["n"], "accuracy": _triple(row)}
        for row in found
    ]
    caption = (
        f"Dashed line and grey band: all comparisons. Slices of fewer than {MIN_PAIRS} comparisons are shown "
        f"together; they, and those of fewer than {MIN_PROMPTS} prompts, are faint. One in twenty is outside by chance."
    )
    alt = "; ".join(f"{row['name']} {_triple(row)}" for row in shown)
    return (
        html.paragraph(words.slice_words(result))
        + html.figures([html.figure(picture, caption, alt=alt)])
        + html.folded(f"The {len(table)} slices as a table", html.table(table))
    )


def _raters(result: Result) -> str:
    found: Sequence[Result] = result["raters"]["rows"]
    text = html.paragraph(words.rater_words(result))
    measured = [row for row in found if row["reliability"] is not None][:MAX_SLICES_SHOWN]
    if measured:
        names = [_short(row["annotator_id"], 34) or "(not signed)" for row in measured]
        rows = [
            plots.Row(name, *_interval(row, "reliability")) for name, row in zip(names, measured, strict=True)
        ]
        picture = plots.interval_plot(
            rows, "Reliability of the raters", "names the better one", reference=("chance", 0.5)
        )
        caption = "Reliability by Dawid-Skene with 1.96 standard errors to either side, from all splits."
        alt = "; ".join(
            f"{name} {words.percent(row, 'reliability')}" for name, row in zip(names, measured, strict=True)
        )
        text += html.figures([html.figure(picture, caption, alt=alt)])
    table = [
        {
            "rater": row["annotator_id"] or "(not signed)",
            "answers": row["num_answers"],
            "weight in training": "not known" if row["weight"] is None else f"{row['weight']:.2f}",
            "agrees with others": words.percent(row, "agreement"),
            "beside others": row["num_shared"],
            "asked twice": row["num_repeated"],
            "of these contradicted": row["num_contradicted"],
            "reliability": words.percent(row, "reliability"),
        }
        for row in found
    ]
    shown = html.table(table)
    return text + (shown if len(table) <= MAX_RATERS_OPEN else html.folded(f"The {len(table)} raters", shown))


def _length(result: Result) -> str:
    metrics = result["metrics"]
    text = html.paragraph(words.length_words(metrics))
    names = {
        "longer wins, by raters": "longer_by_raters",
        "longer wins, by the model": "longer_by_model",
        "right, shorter is better": "accuracy_shorter_better",
        "right, longer is better": "accuracy_longer_better",
    }
    rows = [
        plots.Row(text, *_interval(metrics, name), name.split("_")[0])
        for text, name in names.items()
        if metrics[name] is not None
    ]
    if not rows:
        return text
    picture = plots.interval_plot(rows, "Length", "share of comparisons", reference=("one half", 0.5))
    caption = "Upper two: how often the longer completion wins. Lower two: how often the model is right."
    alt = "; ".join(f"{text} {words.percent(metrics, name)}" for text, name in names.items())
    return text + html.figures([html.figure(picture, caption, alt=alt)])


def _calibration(result: Result) -> str:
    figures = result["calibration"]
    probabilities = [b["confidence"] for b in figures["reliability"] for _ in range(b["size"])]
    outcomes = [b["frequency"] for b in figures["reliability"] for _ in range(b["size"])]
    picture = plots.reliability_plot(probabilities, outcomes, "Reliability on held-out comparisons")
    caption = "Of what the model gives 80 %, do 80 % come true? Each comparison counts from both sides."
    alt = "; ".join(
        f"predicted {b['confidence']:.2f}, observed {b['frequency']:.2f}" for b in figures["reliability"]
    )
    table = [
        {
            "ratings": row["ratings"],
            "pairs of completions": row["n"],
            "ECE": f"{row['ece']:.3f}",
            "Brier score": f"{row['brier']:.3f}",
            "of always 0.5": f"{row['brier_reference']:.3f}",
        }
        for row in figures["by_raters"]
    ]
    beside = html.paragraph("Against the mean vote of the raters (a tie is one half):") + html.table(table)
    return html.paragraph(words.calibration_words(result["metrics"])) + html.figures(
        [html.figure(picture, caption, alt=alt), f"<div>{beside}</div>"]
    )


def _adversarial(result: Result) -> str:
    kinds: Sequence[Result] = result["adversarial"]["kinds"]
    text = html.paragraph(words.adversarial_words(result))
    if not kinds:
        return text
    rows = [
        plots.Row(row["kind"].replace("_", " "), row["accuracy"], row["accuracy_low"], row["accuracy_high"])
        for row in kinds
    ]
    picture = plots.interval_plot(
        rows, "Originals above their spoiled copies", "share", reference=("chance", 0.5)
    )
    alt = "; ".join(f"{row['kind']} {words.percent(row, 'accuracy')}" for row in kinds)
    table = [
        {
            "copy": row["kind"].replace("_", " "),
            "made by": row["what"],
            "copies": row["n"],
            "seen through": words.percent(row, "accuracy"),
            "mean margin": f"{row['mean_margin']:+.2f}",
        }
        for row in kinds
    ]
    failures = [
        {
            "copy": row["kind"].replace("_", " "),
            "prompt": _short(failure["prompt"]),
            "original": _short(failure["original"]),
            "scored higher": _short(failure["spoiled"]) or "(empty)",
            "by": f"{-failure['margin']:.2f}",
        }
        for row in kinds
        for failure in row["failures"][:1]
    ]
    caption = "Margins are in deviations of the score; each copy is worse than its original by construction."
    shown = html.figures([html.figure(picture, caption, alt=alt)])
    shown += html.folded("How each copy is made, and the figures", html.table(table))
    if not failures:
        return text + shown
    return text + shown + html.folded("The most confident failure of each kind", html.table(failures))


def _consistency(result: Result) -> str:
    table = [
        {
            "change of form": row["what"],
            "trials": row["n"],
            "verdict turned": words.percent(row, "flip_rate"),
            "score moves by (median)": f"{row['median_size']:.2f}",
            "95 % below": f"{row['size_95']:.2f}",
            "mean, signed": f"{row['mean_change']:+.2f}",
        }
        for row in result["consistency"]["variants"]
    ]
    text = html.paragraph(words.consistency_words(result))
    return text + (
        html.table(table) + html.paragraph("Moves are in deviations of the score.") if table else ""
    )


def _bias(result: Result) -> str:
    found: Sequence[Result] = result["bias"]
    text = html.paragraph(words.bias_words(result))
    if not found:
        return text
    rows = [
        plots.Row(
            f"{row['kind']}, {row['source']}",
            row["gap"],
            row["gap_low"],
            row["gap_high"],
            group=row["kind"],
            faint=not row["counted"],
        )
        for row in found
    ]
    picture = plots.interval_plot(
        rows, "Mean gap, second term minus first", "deviations of the score", reference=("no gap", 0.0)
    )
    table = [
        {
            "kind": row["kind"],
            "in": row["source"],
            "pairs": row["n"],
            "mean gap": words.span(row, "gap"),
            "mean size": f"{row['absolute_gap']:.3f}",
            "largest": f"{row['largest_gap']:+.2f} ({row['largest_terms']})",
        }
        for row in found
    ]
    alt = "; ".join(f"{row['kind']} in {row['source']} {words.span(row, 'gap')}" for row in found)
    caption = (
        "Texts that differ in one term only: templates of the project, and held-out texts with the term swapped. "
        "Above 0 the second term scores higher; faint rows have too few pairs to count."
    )
    return text + html.figures([html.figure(picture, caption, alt=alt)]) + html.table(table)


def _sets(result: Result) -> str:
    parts = []
    for figures in result["sets"]:
        left_out = f" {figures['num_too_long']} rows were too long." if figures["num_too_long"] else ""
        parts.append(
            html.paragraph(
                f"{figures['file']}: {words.percent(figures, 'accuracy')} of {figures['n']} rows, "
                f"{100 * figures['macro_accuracy']:.1f} % as the mean of the subsets; chance is "
                f"{100 * figures['chance']:.0f} %.{left_out}"
            )
        )
        rows = [
            plots.Row(_short(row["subset"], 34), row["accuracy"], row["accuracy_low"], row["accuracy_high"])
            for row in figures["subsets"]
        ]
        table = [
            {
                "subset": row["subset"],
                "rows": row["n"],
                "accuracy": words.percent(row, "accuracy"),
                "chance": f"{100 * row['chance']:.0f} %",
            }
            for row in figures["subsets"]
        ]
        picture = plots.interval_plot(
            rows[:MAX_SLICES_SHOWN],
            figures["file"],
            "chosen above all rejected",
            reference=("chance", figures["chance"]),
        )
        alt = "; ".join(f"{row['subset']} {words.percent(row, 'accuracy')}" for row in figures["subsets"])
        parts.append(
            html.figures([html.figure(picture, "Subsets with 95 % intervals.", alt=alt), html.table(table)])
        )
    return "".join(parts)


def _method(result: Result) -> str:
    unit = result["metrics"]["score_std"]
    return html.paragraph(
        "Every interval holds 95 % and comes from a bootstrap over prompts (over term pairs for templates). Equal "
        "scores count one half. Baselines are fitted on the training comparisons and measured on the same held-out "
        f"ones as the model. One deviation of the score is {unit:.3g}. The same figures are in reward_eval.json, each "
        "comparison with its scores in scores.jsonl."
    )


def _interval(figures: Result, name: str) -> tuple[float, float, float]:
    return figures[name], figures[f"{name}_low"], figures[f"{name}_high"]


def _triple(row: Result) -> str:
    return f"{100 * row['accuracy']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _short(text: str, limit: int = MAX_TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
