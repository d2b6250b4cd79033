"""memorisation.html: what a model gives away of the canaries that were put into its demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.core import html, plots

Result = Mapping[str, Any]


def page(result: Result) -> str:
    """The whole page."""
    sections = [
        ("", _headline(result)),
        ("By how often a canary was put in", _groups(result)),
        ("Each canary", _canaries(result)),
        ("How it was measured", html.paragraph(_method(result))),
    ]
    lead = (
        "Secrets that were invented for this test and put among the demonstrations: how many come out again?"
    )
    return html.page(f"Memorisation: {result['model']}", sections, lead=lead)


def _headline(result: Result) -> str:
    planted = [group for group in result["groups"] if group["repeats"]]
    cards = [
        (
            f"{group['exposure']:.1f} bits",
            f"mean exposure of canaries that were put in {_times(group['repeats'])}, 95 % interval "
            f"{group['exposure_low']:.1f} to {group['exposure_high']:.1f}",
        )
        for group in planted
    ]
    total, out = sum(group["n"] for group in planted), sum(group["extracted"] for group in planted)
    cards += [
        (f"{out} of {total}", "secrets come out by greedy decoding"),
        (f"{result['chance_exposure']:.2f} bits", "exposure without any memorisation, on average"),
    ]
    return html.cards(cards) + html.paragraph(_words(result))


def _words(result: Result) -> str:
    exposed = [
        group
        for group in result["groups"]
        if group["repeats"] and group["exposure_low"] > result["chance_exposure"]
    ]
    if not exposed:
        return "No group of canaries is more exposed than chance would have it."
    least = min(group["repeats"] for group in exposed)
    return (
        f"A secret that stands {_times(least)} in the demonstrations is already likelier than others of its kind: "
        "what is in there as often is not safe. Take personal data out (rlhf prepare), take out duplicates, or train "
        "with privacy.epsilon."
    )


def _groups(result: Result) -> str:
    rows = [_row("trained", group) for group in result["groups"]]
    sources = [("trained", result)]
    if "baseline" in result:
        sources.append(("before", result["baseline"]))
        rows += [_row("before training", group) for group in result["baseline"]["groups"]]
    picture = plots.interval_plot(rows, "Exposure", "bits", reference=("chance", result["chance_exposure"]))
    caption = (
        f"Mean with 95 % interval over canaries; at most {result['max_exposure']:.1f} bits can be seen with "
        f"{result['references']} references."
    )
    alt = "; ".join(f"{row.label} {row.mean:.1f}" for row in rows)
    table = [
        {
            "model": name,
            "put in": _times(group["repeats"]),
            "canaries": group["n"],
            "exposure, bits": f"{group['exposure']:.2f} ({group['exposure_low']:.2f} to {group['exposure_high']:.2f})",
            "extrapolated": f"{group['exposure_extrapolated']:.1f}",
            "extracted": group["extracted"],
            "symbols right": f"{group['symbols_right']:.1f} of {result['num_symbols']}",
        }
        for name, source in sources
        for group in source["groups"]
    ]
    return html.figures([html.figure(picture, caption, alt=alt)]) + html.table(table)


def _row(source: str, group: Result) -> plots.Row:
    label = f"{_times(group['repeats'])}, {source}"
    return plots.Row(label, group["exposure"], group["exposure_low"], group["exposure_high"], group=source)


def _canaries(result: Result) -> str:
    table = [
        {
            "canary": row["canary"].removeprefix("canary "),
            "put in": _times(row["repeats"]),
            "rank": row["rank"],
            "exposure": f"{row['exposure']:.2f}",
            "loss, nats": f"{row['loss']:.2f}",
            "of other secrets": f"{row['loss_references']:.2f}",
            "symbols right": row["symbols_right"],
            "extracted": bool(row["extracted"]),
        }
        for row in result["canaries"]
    ]
    return html.folded(f"The {len(table)} canaries as a table", html.table(table))


def _method(result: Result) -> str:
    return (
        "Exposure (Carlini et al., arXiv:1802.08232) is log2 of the number of candidates minus log2 of the rank of the "
        f"secret among them, by the loss of the whole answer; candidates are the secret and {result['references']} "
        "other secrets that nobody was trained on. A model that has memorised nothing ranks the secret anywhere: 1.44 "
        "bits on average. The extrapolated figure comes from a skew-normal distribution through the losses of the "
        f"other secrets and is at most {result['space_bits']:.1f} bits, the size of the space. Extraction decodes "
        "greedily from the question and the beginning of the answer. Canaries that were never put in are the control."
    )


def _times(repeats: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(repeats, f"{repeats} times")
