"""compare.html: which method won, at what price, in pictures, a table and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.core import html, plots
from rlhf.loop.compare.config import BEST_OF_N, CompareConfig

Row = Mapping[str, Any]


def page(result: Mapping[str, Any], config: CompareConfig) -> str:
    """The whole page from what `rlhf.loop.compare.run.collect` gives, with failures and artifacts."""
    rows: Sequence[Row] = result["methods"]
    sections: list[tuple[str, str]] = []
    if result["simulated"]:
        sections.append(
            ("", html.note("Simulated: the ratings behind these runs were made by programs, not people."))
        )
    sections += [("", html.note(f"{name} failed: {why}")) for name, why in result["failed"].items()]
    if result["num_seen"]:
        sections.append(("", html.note(seen_words(result["num_seen"]))))
    if rows:
        sections += [
            ("", _headline(rows, config)),
            ("Who answers better", _pictures(rows)),
            ("The figures", _table(rows)),
            ("The price", _price(rows, config)),
        ]
    sections.append(("How it was compared", _method(result, config)))
    lead = "The same backbone, data and held-out prompts for every method, and the same compute for its training."
    return html.page("Ways of tuning, compared", sections, lead=lead, footer=_footer(result))


def _headline(rows: Sequence[Row], config: CompareConfig) -> str:
    best = rows[0]
    better = [row["method"] for row in rows if row["better"]]
    trained = [row for row in rows if row["method"] != BEST_OF_N]
    cards = [
        (best["method"], f"highest win rate: {_interval(best)}"),
        (str(len(better)), f"of {len(rows)} methods are shown to be better than the backbone"),
        (budget_words(config), "for the training of each"),
    ]
    cheapest = min((row for row in trained if row["better"]), key=lambda row: row["used"], default=None)
    if cheapest is not None and cheapest["used"] < 0.95:
        cards.append((cheapest["method"], f"used least of it: {_percent(cheapest['used'])}"))
    return html.cards(cards) + html.paragraph(_verdict(rows))


def _verdict(rows: Sequence[Row]) -> str:
    """What the intervals allow to say."""
    best = rows[0]
    close = [row["method"] for row in rows[1:] if row["win_rate_high"] >= best["win_rate_low"]]
    worse = [row["method"] for row in rows if row["win_rate_high"] < 0.5]
    undecided = [row["method"] for row in rows if not row["better"] and row["method"] not in worse]
    parts = []
    if close:
        parts.append(f"The intervals of {_names(close)} overlap with that of {best['method']}.")
    elif len(rows) > 1:
        parts.append(f"No other interval reaches that of {best['method']}.")
    if undecided:
        parts.append(
            f"{_names(undecided)}: not shown to be better than the backbone with these settings and this budget."
        )
    if worse:
        parts.append(f"{_names(worse)}: worse than the backbone.")
    return " ".join(parts)


def _pictures(rows: Sequence[Row]) -> str:
    wins = plots.interval_plot(
        [
            plots.Row(
                row["method"], row["win_rate"], row["win_rate_low"], row["win_rate_high"], row["method"]
            )
            for row in rows
        ],
        "Win rate over the backbone",
        "share of prompts, ties count half",
        reference=("no difference", 0.5),
    )
    known = [row for row in rows if row["kl"] is not None]
    distance = plots.scatter_plot(
        {row["method"]: ([row["kl"]], [row["win_rate"]]) for row in known},
        "What was paid in distance",
        "KL to the backbone, nats per completion",
        "win rate",
    )
    figures = [
        html.figure(
            wins,
            "Dots with 95 % intervals, bootstrapped over prompts.",
            alt="; ".join(f"{row['method']} {_interval(row)}" for row in rows),
        )
    ]
    if known:
        figures.append(
            html.figure(
                distance,
                "Further to the left is nearer to the backbone. Of best-of-n the largest KL that it can have.",
                alt="; ".join(
                    f"{row['method']}: KL {row['kl']:.2f}, win rate {row['win_rate']:.3f}" for row in known
                ),
            )
        )
    return html.figures(figures)


def _table(rows: Sequence[Row]) -> str:
    return html.table(
        [
            {
                "method": row["method"],
                "win rate": _interval(row),
                "better?": "yes" if row["better"] else "worse" if row["win_rate_high"] < 0.5 else "not shown",
                "KL, nats": _number(row["kl"], 2, prefix="at most " if row["kl_is_bound"] else ""),
                "tokens per answer": _change(row, "length", 1),
                "distinct word pairs": _change(row, "distinct_2", 3),
                "ended in time": _percent(row["finished_after"]),
                "judge's score": _change(row, "score", 3),
            }
            for row in rows
        ]
    )


def _price(rows: Sequence[Row], config: CompareConfig) -> str:
    table = html.table(
        [
            {
                "method": row["method"],
                "seconds of training": _number(row["seconds_training"], 0),
                "million tokens": _number(row["tokens_spent"], 2, scale=1e-6),
                "share of the budget": _percent(row["used"]),
                "peak memory, MiB": _number(row["peak_memory_mib"], 0),
                "drawn per answer": str(round(row["answers_drawn"])),
            }
            for row in rows
        ]
    )
    known = {row["method"]: float(row["peak_memory_mib"]) / 1024 for row in rows if row["peak_memory_mib"]}
    seconds = {row["method"]: float(row["seconds_training"]) for row in rows}
    figures = []
    if any(seconds.values()):
        figures.append(
            html.figure(
                _dots(seconds, "Seconds of training", "seconds"),
                "Measured in each run, without loading, evaluations and checkpoints.",
            )
        )
    if known:
        figures.append(
            html.figure(
                _dots(known, "Peak memory", "GiB"),
                "Of the process that trained, imports included." if config.isolate else "",
            )
        )
    words = (
        "Tokens are passes through the model: one forward counts 1, with its backward 3. A method that used less than "
        "its budget ended by itself: its validation loss no longer fell. Methods that draw several completions per "
        "answer pay that again for every answer they give."
    )
    return html.figures(figures) + table + html.paragraph(words)


def _dots(values: Mapping[str, float], title: str, unit: str) -> bytes:
    """One line per method: their names would run into each other below bars."""
    rows = [plots.Row(f"{name}  {value:.3g}", value, value, value, name) for name, value in values.items()]
    return plots.interval_plot(rows, title, unit)


def _method(result: Mapping[str, Any], config: CompareConfig) -> str:
    text = (
        f"Each method trained an adapter on {config.backbone} with a budget of {budget_words(config)}, {config.seeds} "
        f"time{'s' if config.seeds > 1 else ''}. Offline methods learned from {config.snapshot or 'nothing'}, online "
        f"ones from {config.reward or 'nothing'} on {config.prompts or 'no prompts'}. At the end all answered the same "
        f"held-out prompts with the same random numbers, and {result['judge']} compared their answers with the "
        "backbone's own. A method is called better when the lower end of its 95 % interval is above one half. The "
        "interval is over prompts: "
        + (
            "it does not say how much another seed would change."
            if config.seeds == 1
            else "win rates of the single runs are below."
        )
    )
    parts = [html.paragraph(text)]
    if config.seeds > 1:
        parts.append(
            html.table(
                [
                    {
                        "method": row["method"],
                        "win rates": ", ".join(f"{w:.3f}" for w in row["single_win_rates"]),
                    }
                    for row in result["methods"]
                ]
            )
        )
    settings = [
        {"method": row["method"], "settings other than the defaults": ", ".join(row["settings"]) or "none"}
        for row in result["methods"]
    ]
    parts.append(html.folded("Settings that were tried", html.table(settings)))
    return "".join(parts)


def _footer(result: Mapping[str, Any]) -> str:
    artifacts = ", ".join(f"{name}: {artifact}" for name, artifact in result["artifacts"].items())
    return f"In the registry: {artifacts}." if artifacts else ""


# ---- numbers as text -----------------------------------------------------------------------------------------


def seen_words(count: int) -> str:
    """That held-out prompts were not held out."""
    return (
        f"{count} of the held-out prompts are also among those that methods learned from or were chosen by: what is "
        "said of them favours these methods."
    )


def budget_words(config: CompareConfig) -> str:
    """The budget as people write it."""
    if config.budget_tokens is not None:
        return f"{config.budget_tokens / 1e6:g} million tokens"
    return f"{config.budget_seconds:g} seconds"


def _interval(row: Row) -> str:
    return f"{row['win_rate']:.3f} [{row['win_rate_low']:.3f}, {row['win_rate_high']:.3f}]"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None, digits: int, *, scale: float = 1.0, prefix: str = "") -> str:
    return "" if value is None else f"{prefix}{scale * value:,.{digits}f}"


def _change(row: Row, name: str, digits: int) -> str:
    before, after = row.get(f"{name}_before"), row.get(f"{name}_after")
    if before is None or after is None:
        return ""
    return f"{before:.{digits}f} -> {after:.{digits}f}"


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
