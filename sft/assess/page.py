"""sft_eval.html: the figures of `sft_eval.json` with pictures and words, one file, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.core import html, plots
from rlhf.core.figures import span
from sft.assess import words

MAX_TEXT = 280
MAX_TURNED_SHOWN = 40
SHARES = ("exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l")

Result = Mapping[str, Any]


def page(result: Result, name: str) -> str:
    """The whole page; sections of what was not measured are missing."""
    metrics = result["metrics"]
    sections: list[tuple[str, str]] = [("", _headline(result))]
    sections += [("", html.note(text)) for text in result["notes"]]
    if metrics.get("num_items"):
        sections += [("Held-out quality", _quality(result)), ("Side by side", _samples(result))]
    if metrics.get("text_perplexity") is not None:
        sections.append(("Held-out text", _texts(metrics)))
    if "forgetting" in result:
        sections.append(("What was lost", _forgetting(result)))
    if metrics.get("num_questions"):
        sections.append(("Facts", _facts(result)))
    if metrics.get("num_contexts"):
        sections.append(("Groundedness", _grounded(metrics)))
    if "bias" in result:
        sections.append(("Bias", _bias(result)))
    if "harness" in result:
        sections.append(("lm-evaluation-harness", _harness(result["harness"])))
    sections.append(("How it was measured", _method(result)))
    lead = "What tuning gained over the untouched base and over few-shot prompting of it, and what it cost."
    return html.page(f"Evaluation of supervised tuning: {name}", sections, lead=lead)


def _headline(result: Result) -> str:
    metrics = result["metrics"]
    cards: list[tuple[str, str]] = []
    for opponent, text in words.OPPONENTS.items():
        found = result.get(f"against_{opponent}")
        if found is not None:
            shown = {"better": "yes", "worse": "no, it loses", "open": "not shown"}[found]
            cards.append((shown, f"beats {text}, by {words.LABELS[result['judge_by']]}"))
    for name, text, digits in (
        ("perplexity", "perplexity of held-out completions", 2),
        ("token_f1", "token F1 of its answers", 3),
        ("text_perplexity", "perplexity of held-out text", 2),
        ("general_perplexity", "perplexity of general text", 2),
        ("own_perplexity", "perplexity of the base's own completions", 2),
        ("bias_gap", "largest mean bias gap, nats per token", 3),
    ):
        if metrics.get(name) is None:
            continue
        base = metrics.get(f"{name}_base")
        before = "" if base is None else f"; the base {base:.{digits}f}"
        cards.append(
            (
                f"{metrics[name]:.{digits}f}",
                f"{text}, {metrics[f'{name}_low']:.{digits}f} to {metrics[f'{name}_high']:.{digits}f}{before}",
            )
        )
    if metrics.get("facts_lost") is not None:
        cards.append((str(metrics["facts_lost"]), "answers turned from right to wrong"))
    return html.cards(cards)


def _rows(metrics: Mapping[str, Any], names: Sequence[str]) -> list[plots.Row]:
    """One row per measure and system that was measured, the systems in colours of their own."""
    rows = []
    for name in names:
        for system, label in words.SYSTEMS.items():
            key = f"{name}_{system}" if system else name
            if metrics.get(key) is not None:
                shown = label if len(names) == 1 else f"{words.LABELS[name]}, {label}"
                rows.append(plots.Row(shown, *_interval(metrics, key), group=label))
    return rows


def _quality(result: Result) -> str:
    metrics = result["metrics"]
    text = html.paragraph(words.quality_words(result))
    if words.few_shot_words(result):
        text += html.paragraph(words.few_shot_words(result))
    likelihood = plots.interval_plot(
        _rows(metrics, ["nll"]), "Surprise of held-out completions", "nats per token, less is better"
    )
    overlap = plots.interval_plot(
        _rows(metrics, SHARES), "Answers beside the references", "0 to 1, more is better"
    )
    table = []
    for name, label in words.LABELS.items():
        digits = 2 if name == "bleu" else 3
        row = {"measure": label}
        for system, title in words.SYSTEMS.items():
            row[title] = span(metrics, f"{name}_{system}" if system else name, digits)
        row["gain over base"] = words.signed(metrics, f"{name}_gain", digits)
        row["gain over few-shot"] = words.signed(metrics, f"{name}_gain_over_few_shot", digits)
        table.append({key: value for key, value in row.items() if value != "not measured"})
    alt = "; ".join(f"{row['measure']}: {row.get('tuned', '')}" for row in table)
    caption = "Dots with 95 % intervals, bootstrapped over prompts."
    left = html.figure(likelihood, caption, alt=alt)
    return text + html.figures([left, html.figure(overlap, caption, alt=alt)]) + html.table(table)


def _samples(result: Result) -> str:
    rows = []
    for sample in result["samples"]:
        row = {"prompt": _short(sample["prompt"]), "reference": _short(sample["reference"])}
        for system, title in (("base", "base"), ("few_shot", "few-shot"), ("tuned", "tuned")):
            if system in sample:
                row[title] = _short(sample[system]["answer"]) or "(empty)"
        rows.append(row)
    metrics = result["metrics"]
    ended = [
        f"{title} {metrics[f'answer_tokens{end}']:.1f} tokens, {100 * metrics[f'answers_ended{end}']:.0f} % ended"
        for end, title in (("_base", "base"), ("_few_shot", "few-shot"), ("", "tuned"))
        if f"answer_tokens{end}" in metrics
    ]
    text = f"Answers on average: {'; '.join(ended)}. All of them are in answers.jsonl."
    return html.table(rows) + html.paragraph(text)


def _texts(metrics: Mapping[str, Any]) -> str:
    return html.paragraph(
        f"On {metrics['num_texts']} held-out texts perplexity went from {span(metrics, 'text_perplexity_base', 2)} to "
        f"{span(metrics, 'text_perplexity', 2)} ({words.signed(metrics, 'text_perplexity_rise')} nats per token)."
    )


def _forgetting(result: Result) -> str:
    metrics, section = result["metrics"], result["forgetting"]
    text = html.paragraph(words.forgetting_words(metrics))
    rows = [
        plots.Row(label, *_interval(metrics, f"{name}_rise"), group=label)
        for name, label in (
            ("general_perplexity", "general text"),
            ("own_perplexity", "the base's own completions"),
        )
        if metrics.get(name) is not None
    ]
    if not rows:
        return text
    rows += [
        plots.Row(
            _short(row["source"], 34),
            *_interval(row, "perplexity_rise"),
            group="source",
            faint=row["small"],
        )
        for row in section.get("sources", [])
    ]
    picture = plots.interval_plot(
        rows, "Rise of surprise after tuning", "nats per token", reference=("as before", 0.0)
    )
    alt = "; ".join(f"{row.label} {row.mean:+.3f} ({row.low:+.3f} to {row.high:+.3f})" for row in rows)
    caption = "Right of the dashed line the tuned model expects less of what it reads. Faint: few texts."
    text += html.figures([html.figure(picture, caption, alt=alt)])
    lost = [
        {
            "text": _short(row["text"]),
            "source": row["source"],
            "nats before": row["nats_before"],
            "nats after": row["nats_after"],
        }
        for row in section.get("most_lost", [])
    ]
    return text + (html.folded("The texts that lost most", html.table(lost)) if lost else "")


def _facts(result: Result) -> str:
    metrics = result["metrics"]
    rows = [
        plots.Row(label, *_interval(metrics, name), group=label)
        for name, label in (("facts_base", "base"), ("facts", "tuned"))
    ]
    picture = plots.interval_plot(rows, "Right answers", "share of the fixed questions")
    table = [
        {
            "turned": row["turned"],
            "question": _short(row["question"]),
            "expected": _short(row["expected"], 80),
            "base": _short(row["before"]) or "(empty)",
            "tuned": _short(row["after"]) or "(empty)",
        }
        for row in result["turned"][:MAX_TURNED_SHOWN]
    ]
    shown = html.paragraph(words.facts_words(metrics))
    shown += html.figures([html.figure(picture, "Dots with 95 % intervals.", alt=words.facts_words(metrics))])
    if not table:
        return shown + html.paragraph("No answer changed sides.")
    more = len(result["turned"]) - len(table)
    shown += html.paragraph("Answers that changed sides, those that turned wrong first:") + html.table(table)
    return shown + (html.paragraph(f"{more} more are in sft_eval.json.") if more else "")


def _grounded(metrics: Mapping[str, Any]) -> str:
    rows = [
        plots.Row(label, *_interval(metrics, name), group=label)
        for name, label in (
            ("grounded_base", "base"),
            ("grounded", "tuned"),
            ("grounded_reference", "references"),
        )
    ]
    picture = plots.interval_plot(
        rows, "Groundedness in the given context", "share of content that stands there"
    )
    caption = "Names, numbers and words of the answer that the context holds, next to each other or apart."
    said = words.grounded_words(metrics)
    return html.paragraph(said) + html.figures([html.figure(picture, caption, alt=said)])


def _bias(result: Result) -> str:
    rows = []
    for row in result["bias"]:
        for name, label in (("gap_base", "base"), ("gap", "tuned")):
            if row.get(name) is not None:
                shown = f"{row['kind']}, {row['source']}, {label}"
                ends = _interval(row, name)
                rows.append(plots.Row(shown, *ends, group=label, faint=not row["counted"]))
    picture = plots.interval_plot(
        rows, "Likelier with the second term", "nats per shared token", reference=("no gap", 0.0)
    )
    table = [
        {
            "kind": row["kind"],
            "in": row["source"],
            "pairs": row["n"],
            "tuned": words.signed(row, "gap"),
            "base": words.signed(row, "gap_base"),
            "change": words.signed(row, "gap_change"),
            "largest": f"{row['largest_gap']:+.2f} ({row['largest_terms']})",
        }
        for row in result["bias"]
    ]
    answers = [
        {
            "prompt": _short(row["first_prompt"]),
            "answer": _short(row["first"]) or "(empty)",
            "with the other term": _short(row["second_prompt"]),
            "its answer": _short(row["second"]) or "(empty)",
        }
        for row in result["bias_answers"]
    ]
    caption = (
        "Texts that differ in one term of a person: templates, and held-out demonstrations with the term swapped. "
        "Faint rows have too few pairs to count."
    )
    alt = "; ".join(f"{row['kind']} in {row['in']} {row['tuned']}" for row in table)
    said = html.paragraph(words.bias_words(result)) + html.figures([html.figure(picture, caption, alt=alt)])
    said += html.folded("The gaps as a table", html.table(table))
    return said + (html.folded("Answers that differ most", html.table(answers)) if answers else "")


def _harness(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        {
            "task": row["task"],
            "metric": row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})",
            "questions": row["n"],
            "base": span(row, "value_base"),
            "tuned": span(row, "value"),
            "gain": words.signed(row, "value_gain"),
        }
        for row in rows
    ]
    return html.table(table)


def _method(result: Result) -> str:
    return html.paragraph(
        "Every interval holds 95 % and comes from a bootstrap over prompts (over texts, term pairs or questions where "
        "those are measured); gains are measured on the same rows for both sides. Surprise is counted over the words "
        "of a completion without its end token, so that it is the same question to a base that was never told how "
        "completions end. Words of answers are compared in lower case without punctuation; exact match and token F1 "
        "also leave articles out. The same figures are in sft_eval.json, each answer in answers.jsonl."
    )


def _interval(figures: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    return figures[name], figures[f"{name}_low"], figures[f"{name}_high"]


def _short(text: str, limit: int = MAX_TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
