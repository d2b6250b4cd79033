"""report.html: the figures of report.json with pictures and words, one file, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.core import html, plots
from sft.prepare.tally import bin_labels, shares

Result = Mapping[str, Any]
MASK_NAMES = {
    "KEY": "keys and tokens",
    "EMAIL": "email addresses",
    "IBAN": "bank accounts (IBAN)",
    "CARD": "payment cards",
    "IP": "IP addresses",
    "PHONE": "phone numbers",
}


def page(result: Result) -> str:
    """The whole page; sections of what was not done are missing."""
    sections: list[tuple[str, str]] = [("", _headline(result))]
    sections += [("", html.note(text)) for text in result["notes"]]
    sections += [("Inputs", _inputs(result)), ("What was taken out", _reasons(result))]
    if result["leaks"]:
        sections.append(("Leaks of evaluation files", _leaks(result)))
    if result["duplicates"]["examples"]:
        sections.append(("Duplicates", _duplicates(result)))
    sections += [("Personal data", _personal(result)), ("Cleaning", _cleaning(result))]
    sections += [("Lengths", _lengths(result)), ("Splits", _splits(result)), ("Skew", _skew(result))]
    lead = "What came in, what was taken out and why, and what the training data are made of."
    return html.page("Prepared data", sections, lead=lead, footer="The same figures are in report.json.")


def _headline(result: Result) -> str:
    rows = result["rows"]
    kept = 100 * rows["kept"] / rows["read"] if rows["read"] else 0.0
    cards = [
        (f"{rows['read']:,}", "rows were read"),
        (f"{rows['kept']:,}", f"are kept ({kept:.1f} %)"),
        (f"{rows['reasons'].get('exact duplicate', 0):,}", "exact duplicates"),
        (f"{rows['reasons'].get('near duplicate', 0):,}", "near-duplicates"),
        (f"{rows['reasons'].get('bad row', 0):,}", "rows could not be used"),
        (f"{sum(result['personal_data']['items'].values()):,}", "items of personal data"),
    ]
    if result["leaks"]:
        cards.append(
            (f"{rows['reasons'].get('leaks an evaluation file', 0):,}", "rows leaked an evaluation file")
        )
    return html.cards(cards)


def _inputs(result: Result) -> str:
    table = [
        {
            "source": row["name"],
            "file": row["file"],
            "layout": ", ".join(
                f"{name} ({number})" if len(row["layouts"]) > 1 else name
                for name, number in row["layouts"].items()
            )
            or "none",
            "rows": row["read"],
            "kept": row["kept"],
        }
        for row in result["inputs"]
    ]
    return html.table(table)


def _counted(numbers: Mapping[str, int]) -> str:
    if len(numbers) < 2:
        return next(iter(numbers), "none")
    return ", ".join(f"{name} ({number})" for name, number in numbers.items())


def _reasons(result: Result) -> str:
    reasons = result["rows"]["reasons"]
    if not reasons:
        return html.paragraph("Nothing was taken out.")
    total = result["rows"]["read"]
    table = [
        {"reason": reason, "rows": number, "share": f"{100 * number / total:.2f} %"}
        for reason, number in sorted(reasons.items(), key=lambda item: -item[1])
    ]
    text = html.paragraph(
        "A row is counted once, for the first reason that holds. Each is in quarantine.jsonl with file, line and "
        "reason."
    )
    faults = result["bad_reasons"]
    if not faults:
        return text + html.table(table)
    rows = [{"fault": fault, "rows": number} for fault, number in list(faults.items())[:20]]
    return (
        text
        + html.table(table)
        + html.folded("What was wrong with rows that could not be used", html.table(rows))
    )


def _leaks(result: Result) -> str:
    table = [
        {"evaluation file": name, "how": how, "rows taken out": number}
        for name, found in result["leaks"].items()
        for how, number in (found or {"none": 0}).items()
    ]
    passed = result["duplicates"]["templates"]
    more = (
        f" {passed} such runs stand in more than 10 rows and were passed over as templates." if passed else ""
    )
    return html.table(table) + html.paragraph(
        "A row leaks when it or its prompt is that of an evaluation row, exactly or nearly, or when they share 13 "
        f"words in a row (Brown et al. 2020).{more}"
    )


def _duplicates(result: Result) -> str:
    table = [
        {
            "kind": row["kind"],
            "kept": f"{row['kept']}\n{row['kept_text']}",
            "taken out": f"{row['taken']}\n{row['taken_text']}",
        }
        for row in result["duplicates"]["examples"]
    ]
    estimated = result["duplicates"]["by_estimate"]
    words = "Near-duplicates share most of their runs of 5 characters (Jaccard similarity); the first row is kept."
    if estimated:
        words += f" {estimated} pairs were decided by the estimate of their signatures."
    return html.paragraph(words) + html.table(table)


def _personal(result: Result) -> str:
    found = result["personal_data"]
    if found["mode"] == "off":
        return html.paragraph("Nobody looked for personal data (pii: off).")
    said = {
        "mask": "Each item was replaced by its kind, such as [EMAIL].",
        "drop": "Rows with an item were taken out.",
        "report": "Items were counted and left where they are.",
    }[found["mode"]]
    if not found["items"]:
        return html.paragraph(f"No personal data of the kinds that have a pattern was found. {said}")
    table = [
        {
            "kind": MASK_NAMES.get(kind, kind),
            "mask": f"[{kind}]",
            "items": number,
            "rows": found["rows"].get(kind, 0),
        }
        for kind, number in found["items"].items()
    ]
    hidden = "Names and places are not found by patterns."
    return html.paragraph(f"{said} The items themselves are never written here. {hidden}") + html.table(table)


def _cleaning(result: Result) -> str:
    names = {
        "unicode": "Unicode normal form",
        "control": "control characters taken out",
        "whitespace": "line ends and spaces",
    }
    table = [
        {"step": names.get(step, step), "rows changed": number} for step, number in result["cleaned"].items()
    ]
    table += [
        {"step": f"boilerplate: {name}", "rows changed": number}
        for name, number in result["boilerplate"].items()
    ]
    return html.table(table) if table else html.paragraph("No row had to be changed.")


def _lengths(result: Result) -> str:
    pictures = []
    both = zip(result["lengths"]["before"], result["lengths"]["after"], strict=True)
    used = [place for place, counts in enumerate(both) if any(counts)]
    span = slice(used[0], used[-1] + 1)
    for name, title in (("before", "As read"), ("after", "Kept")):
        counts = result["lengths"][name]
        values = dict(zip(bin_labels()[span], shares(counts)[span], strict=True))
        picture = plots.bar_plot(values, title, "characters, up to", "share of rows, %")
        alt = "; ".join(f"up to {label}: {value:.1f} %" for label, value in values.items())
        pictures.append(html.figure(picture, f"{title}: all texts of a row together.", alt=alt))
    return html.figures(pictures)


def _splits(result: Result) -> str:
    table = [
        {"split": name, "rows": row["rows"], "prompt families": row["families"]}
        for name, row in result["splits"].items()
    ]
    mixture = result["mixture"]
    words = (
        "Prompts that are nearly the same, and rows of one group_id, are one family; none is in two splits."
    )
    if mixture["left_out"] or mixture["repeated"]:
        words += (
            f" The mixture left out {mixture['left_out']} training rows and repeats {mixture['repeated']}."
        )
    return html.paragraph(words) + html.table(table)


def _skew(result: Result) -> str:
    parts = []
    train = result["splits"]["train"]
    for what in ("sources", "labels"):
        if len(train[what]) > 1:
            total = sum(train[what].values())
            rows = [
                {what[:-1]: name, "training rows": number, "share": f"{100 * number / total:.1f} %"}
                for name, number in train[what].items()
            ]
            parts.append(html.table(rows))
    if result["languages"]:
        total = sum(result["languages"].values())
        rows = [
            {"language": name, "rows": number, "share": f"{100 * number / total:.1f} %"}
            for name, number in list(result["languages"].items())[:10]
        ]
        parts.append(html.paragraph(f"Languages of {total} rows:") + html.table(rows))
    if result["topics"]:
        several = len(train["sources"]) > 1
        rows = []
        for topic in result["topics"]:
            row = {
                "share": f"{100 * topic['share']:.0f} %",
                "words that tell it from the others": ", ".join(topic["terms"]),
            }
            if several:
                row["sources"] = ", ".join(
                    f"{name} {100 * share:.0f} %" for name, share in topic["sources"].items()
                )
            rows.append(row)
        parts.append(html.paragraph("Topics of a sample of the training rows:") + html.table(rows))
    return "".join(parts) or html.paragraph("Too few rows to say something about topics.")
