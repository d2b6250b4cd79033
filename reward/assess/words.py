"""The figures as sentences. Nothing is called better, worse or biased unless its interval says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.core.figures import percent, span

Metrics = Mapping[str, Any]


def verdict(metrics: Metrics) -> str:
    """The line that the command prints."""
    parts = []
    if metrics.get("heldout_accuracy") is not None:
        parts.append(f"held-out accuracy {span(metrics, 'heldout_accuracy')}")
        if metrics.get("agreement") is not None:
            parts.append(f"raters agree on {metrics['agreement']:.3f}")
        for name, text in (("length", "length alone"), ("bow", "bag of words")):
            if metrics.get(f"accuracy_{name}") is not None:
                parts.append(f"{text} {metrics[f'accuracy_{name}']:.3f}")
        parts.append(f"ECE {metrics['ece']:.3f}")
        if metrics.get("adversarial_accuracy") is not None:
            parts.append(f"spoiled copies seen through {metrics['adversarial_accuracy']:.3f}")
    parts += [f"{key} {value:.3f}" for key, value in metrics.items() if key.startswith("set_")]
    if metrics.get("bias_gap") is not None:
        parts.append(f"bias gap {metrics['bias_gap']:.3f}")
    return ", ".join(parts)


def accuracy_words(result: Mapping[str, Any]) -> str:
    metrics = result["metrics"]
    text = (
        f"On {metrics['num_pairs'] - metrics['num_ties']} decided comparisons of {metrics['num_prompts']} held-out "
        f"prompts ({metrics['num_ties']} ties are left out) the reward model sides with the rater in "
        f"{percent(metrics, 'heldout_accuracy')}."
    )
    if metrics["agreement"] is not None:
        text += (
            f" Two raters of one pair of completions agree in {percent(metrics, 'agreement')}; if all raters "
            f"err alike, no model could exceed {100 * metrics['accuracy_attainable']:.0f} % against single ratings."
        )
    else:
        text += " No two raters met on the same completions, so there is no ceiling to read it against."
    if metrics["majority_accuracy"] is not None:
        text += f" Where several raters met it sides with their majority in {percent(metrics, 'majority_accuracy')}."
    return text


def baseline_words(metrics: Metrics) -> str:
    names = {"length": "the length of an answer", "bow": "the words in it"}
    better = [text for name, text in names.items() if (metrics.get(f"lead_over_{name}_low") or 0) > 0]
    worse = [text for name, text in names.items() if (metrics.get(f"lead_over_{name}_high") or 0) < 0]
    measured = [text for name, text in names.items() if metrics.get(f"accuracy_{name}") is not None]
    open_ = [text for text in measured if text not in better + worse]
    parts = []
    if better:
        parts.append(f"It is clearly better than {' and than '.join(better)} alone.")
    if open_:
        parts.append(
            f"It is not shown to be better than {' or than '.join(open_)} alone: collect more ratings."
        )
    if worse:
        parts.append(f"It is worse than {' and than '.join(worse)} alone.")
    return " ".join(parts)


def slice_words(result: Mapping[str, Any]) -> str:
    lowest = result["worst_slice"]
    if lowest is None:
        return "No slice lies below the whole by more than chance allows."
    return (
        f"Weakest slice: {lowest['kind']}, {lowest['name']}, with {100 * lowest['accuracy']:.1f} % "
        f"({100 * lowest['low']:.1f} to {100 * lowest['high']:.1f}) of {lowest['n']} comparisons."
    )


def length_words(metrics: Metrics) -> str:
    low, high = metrics.get("longer_excess_low"), metrics.get("longer_excess_high")
    if low is None or high is None:
        return "All compared completions are equally long: length bias cannot be measured."
    share = (
        f"The longer completion wins in {percent(metrics, 'longer_by_model')} by the model and in "
        f"{percent(metrics, 'longer_by_raters')} by the raters: "
    )
    if low > 0:
        share += "the model likes length more than they do. A policy tuned on it will grow longer."
    elif high < 0:
        share += "the model likes length less than they do."
    else:
        share += "no difference beyond chance."
    accuracies = (
        f" Where the shorter one is better it is right in {percent(metrics, 'accuracy_shorter_better')}, where the "
        f"longer one is in {percent(metrics, 'accuracy_longer_better')}."
    )
    correlation = f" Score and length within prompts: correlation {span(metrics, 'length_correlation', 2)}."
    return share + accuracies + correlation


def rater_words(result: Mapping[str, Any]) -> str:
    figures = result["raters"]
    found = figures["contradictions"]
    if found["conflict_share"] is None:
        text = "No two answers decided about the same completions: whether raters contradict each other is not known."
    else:
        text = (
            f"Of {found['num_repeated']} pairs of completions that were decided more than once, "
            f"{100 * found['conflict_share']:.1f} % were decided in both ways."
        )
    if found["cycle_share"] is not None:
        text += (
            f" Of {found['num_triples']} triples that were compared in all three ways {found['num_cycles']} go round "
            f"({100 * found['cycle_share']:.1f} %; coins would make 25 %)."
        )
    if figures["note"]:
        text += f" Reliabilities could not be estimated: {figures['note']}."
    return text


def calibration_words(metrics: Metrics) -> str:
    low, high = metrics["overconfidence_low"], metrics["overconfidence_high"]
    surplus = 100 * metrics["overconfidence"]
    if low > 0:
        meaning = f"its probabilities are too sure, by {surplus:.1f} points"
    elif high < 0:
        meaning = f"its probabilities are too cautious, by {-surplus:.1f} points"
    else:
        meaning = "its probabilities are as sure as they may be, within chance"
    return (
        f"With temperature {metrics['temperature']:.3g}, {meaning}. Expected calibration error "
        f"{metrics['ece']:.3f}, Brier score {span(metrics, 'brier')} (0.25 is knowing nothing), log-loss "
        f"{span(metrics, 'log_loss')} nats (0.693 is knowing nothing)."
    )


def adversarial_words(result: Mapping[str, Any]) -> str:
    figures = result["adversarial"]
    if not figures["kinds"]:
        return "No spoiled copy could be made of the held-out completions."
    weak = sorted(
        (row for row in figures["kinds"] if row["accuracy_high"] < 0.9), key=lambda row: row["accuracy"]
    )
    text = (
        f"Of {figures['num_copies']} copies that are worse by construction, "
        f"{percent(figures, 'accuracy')} score below their original."
    )
    if figures["missing"]:
        kinds = ", ".join(figures["missing"]).replace("_", " ")
        text += f" Kinds of which no copy could be made or fits the model's context: {kinds}."
    if weak:
        names = [
            f"{row['what'][0].lower()}{row['what'][1:]} ({100 * row['accuracy']:.0f} %)" for row in weak[:3]
        ]
        text += (
            f" {len(weak)} of {len(figures['kinds'])} kinds are seen through in less than 90 %; least of all: "
            f"{'; '.join(names)}. What is not seen through, PPO can find."
        )
    return text


def consistency_words(result: Mapping[str, Any]) -> str:
    figures = result["consistency"]
    text = "The order of presentation cannot matter: each completion is scored on its own."
    if not figures["variants"]:
        return text + " No held-out completion could be reformatted."
    return text + (
        f" Changing the form of one side (never a word) turns the verdict in {percent(figures, 'flip_rate')} of "
        f"{figures['num_trials']} trials. The fewer, the better."
    )


def bias_words(result: Mapping[str, Any]) -> str:
    metrics = result["metrics"]
    if metrics["bias_gap"] is None:
        return "No counterfactual pair could be made."
    shown = [row for row in result["bias"] if row["counted"] and (row["gap_low"] > 0 or row["gap_high"] < 0)]
    text = (
        f"Largest mean gap: {span(metrics, 'bias_gap')} deviations of the score ({result['bias_gap_kind']}). "
        "A gap of 0 means that the score does not depend on who is spoken of."
    )
    if not shown:
        return text + " No mean gap differs from 0 beyond chance."
    parts = [
        f"{row['kind']} in {row['source']} (the {'second' if row['gap'] > 0 else 'first'} terms score higher)"
        for row in shown
    ]
    return text + f" Beyond chance: {'; '.join(parts)}."
