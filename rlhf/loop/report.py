"""One round of the loop as a page for people and as numbers for programs: report.html and report.json.

Everything is read from the run directories (manifest.json, metrics.jsonl, evaluation.json, pairs.jsonl), so
the report says what happened and nothing else. The page is one file without scripts or outside requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feedback_app.quality.agreement import Agreement
from rlhf.core import html, plots
from rlhf.core.files import read_rows, write_json, write_text
from rlhf.core.metrics import read_metrics
from rlhf.core.run import METRICS, Manifest, Workspace, read_manifest

NUM_EXAMPLES = 8
REPORT_HTML, REPORT_JSON = "report.html", "report.json"


@dataclass(frozen=True)
class ReportInputs:
    """Where the round's runs are and what is known beside them.

    simulated: what in this round is not from people, in plain words; empty when nothing is.
    against_truth: accuracy of raters and reward model against a known truth, where there is one:
        {"num_comparisons", "raters": {"accuracy", "low", "high"}, "reward": the same}.
    facts: anything else worth keeping in report.json.
    """

    title: str
    workspace: Path
    sft: Path
    reward: Path
    ppo: Path
    evaluation: Path
    agreement: Agreement
    seconds: Mapping[str, float]
    base: Path | None = None
    simulated: str = ""
    rubric: str = ""
    against_truth: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_report(inputs: ReportInputs) -> dict[str, Any]:
    """Write WORKSPACE/report.html and report.json; returns what is in report.json.

    Raises DataError when a run is not finished or its files are damaged.
    """
    figures = collect_figures(inputs)
    write_json(inputs.workspace / REPORT_JSON, figures)
    write_text(inputs.workspace / REPORT_HTML, render(inputs, figures))
    return figures


def collect_figures(inputs: ReportInputs) -> dict[str, Any]:
    """The numbers of the round as nested objects."""
    reward, ppo = read_manifest(inputs.reward), read_manifest(inputs.ppo)
    evaluation = read_manifest(inputs.evaluation).metrics
    truth = inputs.against_truth or {}
    test = reward.extra["splits"]["test"]
    before = evaluation["distinct_2_before"]
    agreement = inputs.agreement
    return {
        "title": inputs.title,
        "simulated": inputs.simulated,
        "base": dict(read_manifest(inputs.base).metrics) if inputs.base else None,
        "sft": dict(read_manifest(inputs.sft).metrics),
        "raters": {
            "agreement": agreement.raw,
            "agreement_low": agreement.interval.low if agreement.interval else None,
            "agreement_high": agreement.interval.high if agreement.interval else None,
            "alpha": agreement.alpha,
            "num_raters": agreement.n_annotators,
            "num_pairs_rated_twice": agreement.n_items,
        }
        | _against_truth(truth.get("raters")),
        "reward": dict(reward.metrics)
        | {"num_heldout": test["num_pairs"], "num_ties": test["num_ties"]}
        | _against_truth(truth.get("reward")),
        "ppo": {key: ppo.metrics.get(key) for key in ("step", "best_iteration", "score", "kl", "length")},
        "evaluate": {key: value for key, value in evaluation.items() if not key.startswith("score_")}
        | {
            "gold_before": evaluation.get("score_before"),
            "gold_after": evaluation.get("score_after"),
            "gold_before_interval": _bounds(evaluation, "score_before"),
            "gold_after_interval": _bounds(evaluation, "score_after"),
            "distinct_2_ratio": evaluation["distinct_2_after"] / before if before else None,
        },
        "seconds": dict(inputs.seconds),
        "seconds_total": sum(inputs.seconds.values()),
        "facts": dict(inputs.facts),
        "code_commit": ppo.code_commit,
        "packages": ppo.packages,
        "hardware": ppo.hardware,
    }


def render(inputs: ReportInputs, figures: Mapping[str, Any]) -> str:
    """The page."""
    sections = [
        ("", html.note(f"Simulated. {inputs.simulated}") if inputs.simulated else ""),
        ("In short", _headline(figures)),
        ("Before and after", _examples(inputs)),
        ("Reinforcement learning", _ppo_section(inputs, figures)),
        ("Reward model", _reward_section(inputs, figures)),
        ("Learning curves before that", _earlier_section(inputs)),
        ("How it was judged", _judging_section(inputs, figures)),
        ("Where the time went", _time_section(figures)),
        ("Where it came from", _lineage(inputs)),
    ]
    lead = (
        "Ratings of pairs, a reward model from the ratings, PPO against it, and the verdict on new prompts."
    )
    manifest = read_manifest(inputs.ppo)
    footer = f"Made by rlhf-loop, code {manifest.code_commit[:12]}, {manifest.created[:10]}."
    return html.page(
        inputs.title, [(title, body) for title, body in sections if body], lead=lead, footer=footer
    )


# --- sections -------------------------------------------------------------------------------------------
def _headline(figures: Mapping[str, Any]) -> str:
    e, r, raters = figures["evaluate"], figures["reward"], figures["raters"]
    cards = [
        (f"{e['win_rate']:.0%}", f"win rate after PPO, 95 % interval {_span(e, 'win_rate')}"),
        (f"{_num(e['gold_before'])} \u2192 {_num(e['gold_after'])}", "mean score by the judge, 0 to 1"),
        (f"{_num(e['kl'], 1)} nats", "distance from the supervised model (KL per completion)"),
        (_percent(r["heldout_accuracy"]), f"reward model agrees with held-out ratings, {_span(r, 'heldout_accuracy')}"),
        (_percent(raters["agreement"]), "two raters agree on a pair (ties left out)"),
        (f"{figures['seconds_total'] / 60:.1f} min", "for the whole round"),
    ]  # fmt: skip
    text = (
        f"On {e['num_prompts']} prompts that no stage had seen, the tuned policy's reply was judged better than "
        f"the supervised model's in {e['win_rate']:.1%} of cases (ties, {e['ties']:.1%}, count half). Replies "
        f"went from {e['length_before']:.1f} to {e['length_after']:.1f} tokens; their variety (distinct-2) is "
        f"{_percent(e['distinct_2_ratio'])} of what it was."
    )
    return html.cards(cards) + html.paragraph(text)


def _examples(inputs: ReportInputs) -> str:
    """Evenly spaced held-out prompts: chosen by position, not by result."""
    rows = [row for _, row in read_rows(inputs.evaluation / "pairs.jsonl")]
    step = max(1, len(rows) // NUM_EXAMPLES)
    shown = rows[::step][:NUM_EXAMPLES]
    note = (
        f"{len(shown)} of {len(rows)} held-out prompts, evenly spaced, not picked by result. The coloured number "
        "is the judge's score."
    )
    body = "".join(_example(row) for row in shown)
    head = "<tr><th>prompt</th><th>before</th><th>after</th></tr>"
    return html.paragraph(note) + f'<div class="scroll"><table>{head}{body}</table></div>'


def _example(row: Mapping[str, Any]) -> str:
    before = _reply(row["baseline"], row.get("score_before"))
    after = _reply(row["candidate"], row.get("score_after"))
    return (
        f'<tr><td style="width:30%;color:var(--soft)">{html.escape(row["prompt"])}</td>'
        f'<td style="width:35%">{before}</td><td style="width:35%">{after}</td></tr>'
    )


def _reply(text: str, score: float | None) -> str:
    """A completion behind its score, from red (0) over yellow to green (1)."""
    if score is None:
        return html.escape(text)
    hue = round(120 * min(1.0, max(0.0, score)))
    chip = (
        f"background:hsl({hue} 65% 45% / 0.22);border:1px solid hsl({hue} 65% 45% / 0.6);border-radius:9px;"
        "padding:0 7px;margin-right:6px;font-variant-numeric:tabular-nums"
    )
    return f'<span style="{chip}">{score:.2f}</span>{html.escape(text)}'


def _ppo_section(inputs: ReportInputs, figures: Mapping[str, Any]) -> str:
    rows = read_metrics(inputs.ppo / METRICS)
    trained = [row for row in rows if "score" in row]
    measured = [row for row in rows if "eval_score" in row]
    pictures = [
        html.figure(
            plots.line_plot(
                {"training prompts": _xy(trained, "score"), "prompts kept for evaluation": _xy(measured, "eval_score")},
                "Reward", "iteration", "reward-model score",
            ),
            "What PPO maximises: the reward model's raw score of sampled completions.",
        ),
        html.figure(
            plots.scatter_plot(
                {"iterations": ([row["kl"] for row in trained], [row["score"] for row in trained])},
                "Reward against KL", "KL to the supervised model, nats per completion", "reward-model score",
                connect=True,
            ),
            "What each nat of distance bought; every dot is one iteration.",
        ),
        html.figure(
            plots.line_plot({"KL": _xy(trained, "kl")}, "KL", "iteration", "nats per completion"),
            "How far the policy has moved from the supervised model.",
        ),
        html.figure(
            plots.line_plot(
                {"entropy": _xy(trained, "entropy")}, "Entropy", "iteration", "nats per token"
            ),
            "How undecided the policy is; towards 0 it would always say the same.",
        ),
        html.figure(
            plots.line_plot({"tokens": _xy(trained, "length")}, "Length", "iteration", "tokens per completion"),
            "Completion length: a reward that likes length would show here.",
        ),
        html.figure(
            plots.line_plot(
                {"clipped": _xy(trained, "clip_share"), "explained variance": _xy(trained, "explained_variance")},
                "Health of the updates", "iteration", "share",
            ),
            "Share of clipped ratios, and how much of the returns the value head explains.",
        ),
    ]  # fmt: skip
    best = figures["ppo"]["best_iteration"]
    return html.paragraph(f"The policy of iteration {best} was kept.") + html.figures(pictures)


def _reward_section(inputs: ReportInputs, figures: Mapping[str, Any]) -> str:
    rows = read_metrics(inputs.reward / METRICS)
    test = read_manifest(inputs.reward).extra["splits"]["test"]
    pictures = [html.figure(_accuracy_plot(inputs, figures), "Bars with 95 % intervals, on held-out pairs.")]
    bins = test.get("reliability")
    if bins:
        probabilities = [b["confidence"] for b in bins for _ in range(b["size"])]
        outcomes = [b["frequency"] for b in bins for _ in range(b["size"])]
        pictures.append(
            html.figure(
                plots.reliability_plot(probabilities, outcomes, "Calibration on held-out pairs"),
                f"Of the pairs that the model gives 80 %, do 80 % come true? Error {test['calibration_error']:.3f}.",
            )
        )
    losses = {"training": _xy(rows, "train_loss"), "validation": _xy(rows, "validation_loss")}
    pictures.append(
        html.figure(plots.line_plot(losses, "Reward model loss", "epoch", "loss"), "The best epoch was kept.")
    )
    pictures.append(
        html.figure(
            plots.line_plot(
                {"validation": _xy(rows, "validation_accuracy")}, "Validation accuracy", "epoch", "accuracy"
            ),
            "Share of decided validation pairs ordered as the rater did.",
        )
    )
    return html.figures(pictures)


def _accuracy_plot(inputs: ReportInputs, figures: Mapping[str, Any]) -> bytes:
    reward, raters = figures["reward"], figures["raters"]
    values = {
        "reward model,\nheld-out ratings": reward["heldout_accuracy"],
        "rater with\nrater": raters["agreement"],
    }
    spans = {
        "reward model,\nheld-out ratings": (reward["heldout_accuracy_low"], reward["heldout_accuracy_high"]),
        "rater with\nrater": (raters["agreement_low"], raters["agreement_high"]),
    }
    for name, source in (("reward model,\ntruth", reward), ("raters,\ntruth", raters)):
        if inputs.against_truth:
            values[name] = source["accuracy_against_truth"]
            spans[name] = (source["accuracy_against_truth_low"], source["accuracy_against_truth_high"])
    known = {name: value for name, value in values.items() if value is not None}
    return plots.bar_plot(
        known,
        "Who agrees with whom",
        "",
        "share of pairs",
        intervals={name: spans[name] for name in known},
        reference=("chance", 0.5),
    )


def _earlier_section(inputs: ReportInputs) -> str:
    pictures: list[str] = []
    if inputs.base is not None:
        rows = read_metrics(inputs.base / METRICS)
        pictures.append(
            html.figure(
                plots.line_plot(
                    {"training": _xy(rows, "loss")}, "Pretraining", "step", "loss, nats per token"
                ),
                "The base model, from random weights.",
            )
        )
    rows = read_metrics(inputs.sft / METRICS)
    series = {
        "training": _xy([row for row in rows if "loss" in row], "loss"),
        "validation": _xy([row for row in rows if "validation_loss" in row], "validation_loss"),
    }
    pictures.append(
        html.figure(
            plots.line_plot(series, "Supervised tuning", "step", "loss, nats per completion token"),
            "Step 0 of the validation is the base model; the best step was kept.",
        )
    )
    return html.figures(pictures)


def _judging_section(inputs: ReportInputs, figures: Mapping[str, Any]) -> str:
    raters = figures["raters"]
    parts = [
        f"{raters['num_raters']} raters; {raters['num_pairs_rated_twice']} pairs were judged by two or more. "
        f"Krippendorff's alpha over first, second, tie and both bad: {_num(raters['alpha'])}.",
        f"The final comparison was judged by {Path(figures['evaluate']['judge']).name}.",
    ]
    if inputs.against_truth:
        parts.append(
            f"Against the known truth, on {inputs.against_truth['num_comparisons']} held-out ratings that are no "
            f"ties: raters {_percent(raters['accuracy_against_truth'])}, reward model "
            f"{_percent(figures['reward']['accuracy_against_truth'])}."
        )
    rubric = f"<pre>{html.escape(inputs.rubric)}</pre>" if inputs.rubric else ""
    return "".join(html.paragraph(part) for part in parts) + rubric


def _time_section(figures: Mapping[str, Any]) -> str:
    seconds = figures["seconds"]
    plot = plots.bar_plot(seconds, "Seconds per stage", "", "seconds")
    rows = [{"stage": name, "seconds": round(value, 1)} for name, value in seconds.items()]
    rows.append({"stage": "together", "seconds": round(figures["seconds_total"], 1)})
    return html.figures([html.figure(plot, "Wall-clock time of each stage."), html.table(rows)])


def _lineage(inputs: ReportInputs) -> str:
    runs: Sequence[Path] = [
        p for p in (inputs.base, inputs.sft, inputs.reward, inputs.ppo, inputs.evaluation) if p
    ]
    workspace = Workspace(inputs.workspace)
    rows = []
    for path in runs:
        manifest: Manifest = read_manifest(path)
        parents = [f"{name} {parent.sha256[:10]}" for name, parent in manifest.parents.items()]
        rows.append(
            {
                "run": workspace.relative(path),
                "stage": manifest.stage,
                "made from": ", ".join(parents),
                "seed": manifest.seed,
            }
        )
    return html.paragraph(
        "Every run keeps its settings, its metrics and the hashes of its inputs."
    ) + html.table(rows)


# --- small things ---------------------------------------------------------------------------------------
def _xy(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float | None]]:
    return [row["step"] for row in rows], [row.get(key) for row in rows]


def _against_truth(figures: Mapping[str, float] | None) -> dict[str, float]:
    if figures is None:
        return {}
    return {
        "accuracy_against_truth": figures["accuracy"],
        "accuracy_against_truth_low": figures["low"],
        "accuracy_against_truth_high": figures["high"],
    }


def _bounds(figures: Mapping[str, Any], name: str) -> list[float | None]:
    return [figures.get(f"{name}_low"), figures.get(f"{name}_high")]


def _span(figures: Mapping[str, Any], name: str) -> str:
    low, high = _bounds(figures, name)
    return f"{low:.1%} to {high:.1%}" if low is not None and high is not None else "unknown"


def _num(value: float | None, digits: int = 2) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"
