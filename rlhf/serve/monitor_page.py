"""/monitor: how the service does and what people say, on one page with plots; light and dark, no script."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.core import html, plots
from rlhf.serve.drift import WATCH, PromptFeatures, Shift, shifts
from rlhf.serve.thumbs import GROUP, Group, Ratings, by_model, p_chart

NUM_BUCKETS = 40
MAX_DRIFT_PROMPTS = 2000
NUM_WINDOWS = 8
MIN_PROMPTS = 20
WINDOW = 50

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figures:
    """What the page is drawn from; times are seconds since the epoch."""

    now: float
    rows: Rows
    scores: Rows
    loads: Sequence[tuple[float, int, int]]
    events: Sequence[tuple[float, str, str]]
    models: Mapping[str, str]
    fault: str
    canary_share: float
    reference: Sequence[PromptFeatures]
    live: Sequence[PromptFeatures]
    named_reference: bool
    ratings: Ratings


def monitor_page(figures: Figures) -> str:
    """The whole page; a section whose figures are missing says what it waits for."""
    sections = [("", _headline(figures))]
    if figures.fault:
        sections.append(("", html.note(f"Not as the registry says: {figures.fault}")))
    sections += [
        ("Requests", _requests(figures)),
        ("What people say", _ratings(figures)),
        ("Reward model", _scores(figures)),
        ("Prompts", _drift(figures)),
        ("Models", _models(figures)),
    ]
    served = ", ".join(f"{name} is {model}" for name, model in figures.models.items()) or "no model is loaded"
    footer = f"Drawn {_clock(figures.now)}. Figures hold no text: words are counted in hash bins."
    return html.page("What is served", sections, lead=served, footer=footer)


def _headline(figures: Figures) -> str:
    hour = [row for row in figures.rows if row["at"] > figures.now - 3600]
    done = [row for row in hour if row["state"] == "ok"]
    cards = [(str(len(hour)), "requests in the last hour")]
    if done:
        seconds = [row["seconds"] for row in done]
        cards += [
            (_seconds(float(np.quantile(seconds, 0.5))), "median time of an answer"),
            (_seconds(float(np.quantile(seconds, 0.95))), "95 % of answers take at most"),
        ]
        span = max(60.0, figures.now - min(row["at"] for row in hour))
        tokens = sum(row["completion_tokens"] for row in hour)
        cards.append((f"{tokens / span:,.1f}", "tokens a second, mean"))
    cut = sum(finish == "length" for row in done for finish in row["finishes"])
    ended = sum(len(row["finishes"]) for row in done)
    if ended:
        cards.append((f"{100 * cut / ended:.0f} %", "of answers were cut at their limit"))
    failed = sum(row["state"] == "failed" for row in hour)
    if failed:
        cards.append((str(failed), "requests failed"))
    thumbs = figures.ratings.thumbs
    if thumbs:
        share = sum(thumb.up for thumb in thumbs) / len(thumbs)
        cards.append((f"{100 * share:.0f} %", f"of {len(thumbs)} thumbs point up"))
    return html.cards(cards)


# ---- requests --------------------------------------------------------------------------------------------


def _requests(figures: Figures) -> str:
    rows = figures.rows
    if not rows:
        return html.paragraph("No request yet.")
    start = max(rows[0]["at"], figures.now - 86_400)
    unit, name = _unit(figures.now - start)
    edges = np.linspace(start, figures.now, NUM_BUCKETS + 1)
    buckets: list[list[Mapping[str, Any]]] = [[] for _ in range(NUM_BUCKETS)]
    for row in rows:
        if row["at"] >= start:
            buckets[min(NUM_BUCKETS - 1, int(np.searchsorted(edges, row["at"], side="right")) - 1)].append(
                row
            )
    xs = [float((edge - figures.now) / unit) for edge in edges[1:]]
    width = float(edges[1] - edges[0]) or 1.0
    when = f"{name} before now"

    def quantile(key: str, q: float) -> list[float | None]:
        found = [[row[key] for row in bucket if row[key] is not None] for bucket in buckets]
        return [float(np.quantile(values, q)) if values else None for values in found]

    latency = plots.line_plot(
        {
            "95 %": (xs, quantile("seconds", 0.95)),
            "median": (xs, quantile("seconds", 0.5)),
            "first token, median": (xs, quantile("first_token_s", 0.5)),
        },
        "Time of an answer",
        when,
        "seconds",
    )
    tokens = plots.line_plot(
        {
            "written": (xs, [sum(r["completion_tokens"] for r in bucket) / width for bucket in buckets]),
            "read": (xs, [sum(r["prompt_tokens"] for r in bucket) / width for bucket in buckets]),
        },
        "Tokens",
        when,
        "tokens a second",
    )
    pictures = [
        html.figure(latency, "Of requests that ended in the same stretch of time."),
        html.figure(tokens, "Prompts read and completions written."),
    ]
    if figures.loads:
        load_xs = [(at - figures.now) / 60 for at, _, _ in figures.loads]
        load = plots.line_plot(
            {
                "being written": (load_xs, [float(writing) for _, _, writing in figures.loads]),
                "waiting": (load_xs, [float(waiting) for _, waiting, _ in figures.loads]),
            },
            "Queue",
            "minutes before now",
            "completions",
        )
        pictures.append(html.figure(load, "Looked at once a second, for at most an hour."))
    return html.figures(pictures)


# ---- people ----------------------------------------------------------------------------------------------


def _ratings(figures: Figures) -> str:
    ratings = figures.ratings
    if not ratings.counts:
        return html.paragraph(
            "Nobody has said anything yet. `rlhf chat` collects thumbs, choices and corrections."
        )
    counts = ", ".join(f"{number} {_KINDS.get(kind, kind)}" for kind, number in ratings.counts)
    parts = [html.paragraph(f"So far: {counts}.")]
    groups = p_chart(ratings.thumbs)
    if not groups:
        parts.append(
            html.paragraph(f"The p-chart begins with {GROUP} thumbs; there are {len(ratings.thumbs)}.")
        )
    parts.append(html.figures([*([_p_chart(groups)] if groups else []), *_thumbs_by_model(ratings)]))
    if ratings.choices:
        rows = [
            {
                "model": first,
                "against": second,
                "share of choices": f"{wins / number:.2f}",
                "comparisons": number,
            }
            for first, second, wins, number in ratings.choices
        ]
        parts.append(html.table(rows))
    return "".join(parts)


def _p_chart(groups: Sequence[Group]) -> str:
    numbers = list(range(1, len(groups) + 1))
    mean = sum(group.share for group in groups) / len(groups)
    name = "mean, shaded: control limits"
    chart = plots.line_plot(
        {"thumbs up": (numbers, [group.share for group in groups]), name: (numbers, [mean] * len(numbers))},
        "Thumbs up, p-chart",
        f"groups of {GROUP} thumbs, in order",
        "share",
        {name: (numbers, [group.low for group in groups], [group.high for group in groups])},
    )
    outside = [str(number) for number, group in zip(numbers, groups, strict=True) if group.out_of_control]
    told = f"outside the limits: group {', '.join(outside)}" if outside else "all within the limits"
    caption = f"Limits are mean +- 3 standard errors of a group; {told}."
    return html.figure(chart, caption, alt=f"p-chart, {told}")


def _thumbs_by_model(ratings: Ratings) -> list[str]:
    rows = [
        plots.Row(_plotted(_short(model)), *interval[:3])
        for model, interval in by_model(ratings.thumbs).items()
    ]
    if not rows:
        return []
    picture = plots.interval_plot(rows, "Thumbs up by model", "share")
    caption = "With 95 % intervals (Wilson). Models that served at different times met different questions."
    return [html.figure(picture, caption)]


_KINDS = {
    "thumbs": "thumbs",
    "pairwise": "choices between two answers",
    "demonstration": "corrections",
    "ranking": "rankings",
    "scores": "scores",
}


# ---- scores ----------------------------------------------------------------------------------------------


def _scores(figures: Figures) -> str:
    if not figures.scores:
        return html.paragraph("No answer is scored; start with --score-with RUN to score a share of them.")
    by_route: dict[str, list[float]] = defaultdict(list)
    for row in figures.scores:
        by_route[f"{row['route']} ({_short(row['model'])})"].append(float(row["score"]))
    everything = [score for scores in by_route.values() for score in scores]
    low, high = float(np.quantile(everything, 0.005)), float(np.quantile(everything, 0.995))
    num_bins = min(24, max(6, round(len(everything) ** 0.5)))
    edges = np.linspace(low, high if high > low else low + 1, num_bins + 1)
    middles = [float(m) for m in (edges[1:] + edges[:-1]) / 2]
    histogram = plots.line_plot(
        {
            _plotted(name): (
                middles,
                [float(c) / len(scores) for c in np.histogram(np.clip(scores, low, high), edges)[0]],
            )
            for name, scores in by_route.items()
        },
        "Scores of live answers",
        "reward-model score",
        "share of answers",
    )
    rows = [
        {
            "model": name,
            "answers": len(scores),
            "mean": float(np.mean(scores)),
            "deviation": float(np.std(scores)),
            "lowest tenth": float(np.quantile(scores, 0.1)),
        }
        for name, scores in by_route.items()
    ]
    return html.figures([html.figure(histogram, "The ends hold what lies beyond them.")]) + html.table(rows)


# ---- prompts ---------------------------------------------------------------------------------------------


def _drift(figures: Figures) -> str:
    reference, live = figures.reference[:MAX_DRIFT_PROMPTS], figures.live[-MAX_DRIFT_PROMPTS:]
    of = "the training prompts" if figures.named_reference else "the first prompts that were served"
    if min(len(live), len(reference)) < MIN_PROMPTS:
        return html.paragraph(
            f"Drift is measured from {MIN_PROMPTS} live prompts on, against {of}; there are {len(live)} "
            f"against {len(reference)}."
        )
    found = shifts(reference, live)
    sentence = "; ".join(_shift_words(shift) for shift in found)
    rows = [
        {
            "what": shift.what,
            "PSI": shift.psi,
            "chance gives up to": shift.level,
            "live prompts": shift.live,
            "reference prompts": shift.reference,
        }
        for shift in found
    ]
    size = max(WINDOW, -(-len(live) // NUM_WINDOWS))
    windows = [live[start : start + size] for start in range(0, len(live) - size // 2, size)]
    picture = ""
    if len(windows) > 1:
        series = [shifts(reference, window) for window in windows]
        numbers = list(range(1, len(windows) + 1))
        chart = plots.line_plot(
            {
                name: (numbers, [value(window[k]) for window in series])
                for k, what in enumerate(shift.what for shift in found)
                for name, value in ((what, _psi), (f"{what}, chance", _level))
            },
            "Population-stability index",
            f"stretches of {size} prompts, in order",
            "PSI",
        )
        caption = f"Against {of}. 'chance' is what 95 % of random divisions of the same prompts stay below."
        picture = html.figures([html.figure(chart, caption)])
    return html.paragraph(f"Against {of}: {sentence}.") + picture + html.table(rows)


def _psi(shift: Shift) -> float:
    return shift.psi


def _level(shift: Shift) -> float:
    return shift.level


def _shift_words(shift: Shift) -> str:
    if shift.is_change:
        verdict = "they have changed"
    elif shift.psi > max(WATCH, shift.level):
        verdict = "worth a look"
    else:
        verdict = "no more than chance" if shift.psi <= shift.level else "small"
    return f"{shift.what} {shift.psi:.3f} ({verdict})"


# ---- models ----------------------------------------------------------------------------------------------


def _models(figures: Figures) -> str:
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in figures.rows:
        by_name[row["model"]].append(row)
    rows = [
        {
            "model": model,
            "requests": len(found),
            "tokens written": sum(row["completion_tokens"] for row in found),
            "median seconds": float(np.quantile([row["seconds"] for row in found], 0.5)),
            "failed": sum(row["state"] == "failed" for row in found),
            "left by the caller": sum(row["state"] == "gone" for row in found),
        }
        for model, found in by_name.items()
    ]
    told = [
        {"when": _clock(at), "what": kind, "details": text}
        for at, kind, text in reversed(figures.events[-20:])
    ]
    canary = ""
    if figures.canary_share:
        canary = html.paragraph(
            f"The candidate answers {100 * figures.canary_share:g} % of the conversations while there is one."
        )
    return canary + html.table(rows) + (html.table(told) if told else "")


# ---- words -----------------------------------------------------------------------------------------------


def _short(model: str) -> str:
    return model if len(model) <= 28 else f"...{model[-25:]}"


def _plotted(name: str) -> str:
    """Whatever stands between two dollar signs would be drawn as a formula, or fail as one."""
    return name.replace("$", r"\$")


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _unit(span_s: float) -> tuple[float, str]:
    return (1.0, "seconds") if span_s < 300 else (60.0, "minutes") if span_s < 3 * 3600 else (3600.0, "hours")


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at)) if math.isfinite(at) else ""
