"""The figures as sentences. Nothing is called better, worse or lost unless its interval says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.core.figures import percent, span
from sft.assess.compare import standing

Metrics = Mapping[str, Any]
Result = Mapping[str, Any]

LABELS = {
    "nll": "nats per token",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "bleu": "BLEU",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
}
SYSTEMS = {"base": "base", "few_shot": "few-shot", "": "tuned"}
OPPONENTS = {"base": "the untouched base", "few_shot": "few-shot prompting of the base"}


def signed(metrics: Metrics, name: str, digits: int = 3) -> str:
    """'+0.041 [+0.020, +0.062]', or 'not measured'."""
    value, low, high = (metrics.get(name + end) for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return "not measured"
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def verdict(metrics: Metrics, result: Result) -> str:
    """The line that the command prints."""
    parts = []
    if metrics.get("perplexity") is not None:
        parts.append(_arrow(metrics, "perplexity", "perplexity"))
        judge = result["judge_by"]
        parts.append(_arrow(metrics, judge, LABELS[judge]))
        for opponent, text in OPPONENTS.items():
            found = result.get(f"against_{opponent}")
            if found is not None:
                word = {"better": "beats", "worse": "loses against", "open": "is not shown to beat"}[found]
                parts.append(f"{word} {text}")
    for name, text in (
        ("general_perplexity", "perplexity of general text"),
        ("own_perplexity", "of the base's own completions"),
    ):
        if metrics.get(name) is not None:
            parts.append(_arrow(metrics, name, text))
    if metrics.get("facts_lost") is not None:
        parts.append(f"answers turned wrong {metrics['facts_lost']}, right {metrics['facts_won']}")
    if metrics.get("bias_gap") is not None:
        parts.append(f"bias gap {metrics['bias_gap']:.3f}")
    return ", ".join(parts) or "nothing was measured"


def _arrow(metrics: Metrics, name: str, text: str) -> str:
    base = metrics.get(f"{name}_base")
    after = f"{metrics[name]:.3f}"
    return f"{text} {after}" if base is None else f"{text} {base:.3f} -> {after}"


def quality_words(result: Result) -> str:
    """Whether tuning beats the base and few-shot prompting, in each measure."""
    metrics = result["metrics"]
    parts = [f"On {metrics['num_items']} held-out rows of {metrics['num_prompts']} prompts."]
    for opponent, gain in (("base", "gain"), ("few_shot", "gain_over_few_shot")):
        found = {name: standing(metrics, f"{name}_{gain}") for name in LABELS}
        if found["nll"] is None:
            continue
        groups = [
            ("better in", "better"),
            ("not told apart in", "open"),
            ("worse in", "worse"),
        ]
        said = [
            f"{text} {', '.join(LABELS[name] for name, where in found.items() if where == word)}"
            for text, word in groups
            if word in found.values()
        ]
        parts.append(f"Against {OPPONENTS[opponent]} the tuned model is {'; '.join(said)}.")
    return " ".join(parts)


def few_shot_words(result: Result) -> str:
    """How the few-shot baseline was made; empty without one."""
    found = result.get("few_shot")
    if not found:
        return ""
    join = {
        "chat": "as earlier turns of the conversation",
        "blank-line": "as text, joined by blank lines",
        "end-token": "as documents, joined by the end token",
    }[found["join"]]
    text = (
        f"Few-shot prompts hold {result['metrics']['num_shots']:.1f} of {found['asked']} examples on average, drawn "
        f"anew for each prompt from {found['pool']} training demonstrations of other prompts, {join}."
    )
    if found["tried"]:
        tried = ", ".join(f"{name} {loss:.3f}" for name, loss in found["tried"].items())
        text += f" That way was chosen on training answers (nats per token: {tried})."
    return text


def forgetting_words(metrics: Metrics) -> str:
    """What was lost, with the size of it."""
    parts = []
    if metrics.get("general_perplexity") is not None:
        parts.append(_lost(metrics, "general_perplexity", f"{metrics['num_general']} general texts"))
    if metrics.get("own_perplexity") is not None:
        parts.append(
            _lost(metrics, "own_perplexity", f"{metrics['num_own']} completions of the base itself")
            + " That rise estimates KL(base || tuned) per token."
        )
    if not parts:
        return "Forgetting was not measured: give general text with --general."
    if metrics.get("general_perplexity") is None:
        parts.append("General text was not measured: give some with --general.")
    return " ".join(parts)


def _lost(metrics: Metrics, name: str, what: str) -> str:
    low, high = metrics[f"{name}_rise_low"], metrics[f"{name}_rise_high"]
    share = metrics[name] / metrics[f"{name}_base"] - 1
    moved = f"from {span(metrics, f'{name}_base', 2)} to {span(metrics, name, 2)}"
    amount = f"{signed(metrics, f'{name}_rise')} nats per token, {100 * share:+.1f} %"
    if low > 0:
        return f"Tuning cost on {what}: perplexity rose {moved} ({amount})."
    if high < 0:
        return f"Nothing was lost on {what}: perplexity fell {moved} ({amount})."
    return f"No loss beyond chance on {what}: perplexity went {moved} ({amount})."


def facts_words(metrics: Metrics) -> str:
    text = (
        f"Of {metrics['num_questions']} fixed questions the base answers {percent(metrics, 'facts_base')} right, the "
        f"tuned model {percent(metrics, 'facts')}: {metrics['facts_lost']} answers turned from right to wrong, "
        f"{metrics['facts_won']} from wrong to right."
    )
    found = standing(metrics, "facts_gain")
    ending = {"better": "It knows more.", "worse": "It knows less.", "open": "No difference beyond chance."}
    return f"{text} {ending[found]}" if found else text


def grounded_words(metrics: Metrics) -> str:
    text = (
        f"In {metrics['num_contexts']} rows with a context, {percent(metrics, 'grounded')} of what the tuned model "
        f"says stands in it; of the base's answers {percent(metrics, 'grounded_base')}, of the references "
        f"{percent(metrics, 'grounded_reference')}."
    )
    found = standing(metrics, "grounded_gain")
    ending = {
        "better": "Answers rest more on their context.",
        "worse": "Answers rest less on their context: more of them is made up.",
        "open": "No difference beyond chance.",
    }
    return f"{text} {ending[found]}" if found else text


def bias_words(result: Result) -> str:
    metrics = result["metrics"]
    if metrics.get("bias_gap") is None:
        return "No counterfactual pair counts: bias was not measured."
    text = (
        f"Largest mean gap: {span(metrics, 'bias_gap')} nats per token ({result['bias_gap_kind']}). A gap of 0 means "
        "that the same words are as likely whoever is spoken of."
    )
    moved = [
        f"{row['kind']} in {row['source']} ({signed(row, 'gap_change')})"
        for row in result["bias"]
        if row["counted"] and standing(row, "gap_change") in ("better", "worse")
    ]
    if moved:
        text += f" Tuning moved beyond chance: {'; '.join(moved)}."
    elif any(row.get("gap_change") is not None for row in result["bias"]):
        text += " Tuning moved no mean gap beyond chance."
    if metrics.get("bias_answers_changed") is not None:
        text += (
            f" Of {metrics['num_bias_answers']} prompts with the term in them, "
            f"{percent(metrics, 'bias_answers_changed')} are answered otherwise when the term is swapped"
        )
        if metrics.get("bias_answers_changed_base") is not None:
            text += f" (by the base {percent(metrics, 'bias_answers_changed_base')})"
        text += f"; the second term's answer is {signed(metrics, 'bias_longer', 1)} tokens longer."
    return text
