"""A page per round, and one over all rounds: what came in, what was trained, what the gates said, and why it ended so.

    runs/round-0001/report.html, report.json     the round
    rounds.html, rounds.json                     all rounds of the workspace

Everything is read from the database and the round's run directories, so a page can be made again at any time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feedback_app.store.engine import Store
from rlhf.core import html, plots
from rlhf.core.files import read_rows, write_json, write_text
from rlhf.core.metrics import finite, read_metrics
from rlhf.core.run import METRICS, Workspace, is_finished, read_manifest
from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.gates.win_rate import NAME as WIN_RATE
from rlhf.loop.retrain import rounds as steps
from rlhf.loop.retrain.rounds import Round, Rounds

NUM_SAMPLES = 8
REPORT_HTML, REPORT_JSON = "report.html", "report.json"
TIMELINE_HTML, TIMELINE_JSON = "rounds.html", "rounds.json"
PASSED, FAILED = "#3a9d6e", "#cf5062"


def write_reports(store: Store, workspace: Workspace, found: Round) -> Path:
    """Write the page of a round and the page over all rounds; returns the former."""
    rounds = Rounds(store)
    folder = workspace.runs / found.name
    figures = round_figures(rounds, found)
    write_json(folder / REPORT_JSON, figures)
    write_text(folder / REPORT_HTML, round_page(figures, folder))
    known = [round_figures(rounds, one) for one in rounds.all(found.project)]
    write_json(workspace.root / TIMELINE_JSON, [_without_details(one) for one in known])
    write_text(workspace.root / TIMELINE_HTML, timeline_page(known))
    return folder / REPORT_HTML


def round_figures(rounds: Rounds, found: Round) -> dict[str, Any]:
    """A round as nested figures: what report.json holds."""
    verdicts = rounds.verdicts(found.round_id)
    figures: dict[str, Any] = finite(
        {
            "round": found.number,
            "name": found.name,
            "project": found.project,
            "state": found.state,
            "reason": found.error,
            "provisional": any(verdict.provisional for verdict in verdicts),
            "undone": found.details.get("undone"),
            "trigger": found.details.get("trigger"),
            "alerts": found.details.get("alerts", []),
            "num_new": found.details.get("num_new"),
            "num_judgements": found.details.get("num_judgements"),
            "agreement": found.details.get("agreement"),
            "counts": found.details.get("counts"),
            "simulated": found.details.get("simulated"),
            "canary": found.details.get("canary"),
            "snapshot_id": found.snapshot_id,
            "champion_before": found.champion_id,
            "reward_id": found.reward_id,
            "candidate_id": found.candidate_id,
            "verdicts": [_verdict(verdict) for verdict in verdicts],
            "started_at": found.started_at,
            "ended_at": found.ended_at,
            "steps": rounds.steps(found.round_id),
            "config": found.config,
        }
    )
    return figures


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "gate": verdict.name,
        "passed": verdict.passed,
        "provisional": verdict.provisional,
        "figure": verdict.figure,
        "low": verdict.low,
        "high": verdict.high,
        "threshold": verdict.threshold,
        "reason": verdict.reason,
        "details": verdict.details,
    }


def _without_details(figures: Mapping[str, Any]) -> dict[str, Any]:
    verdicts = [{k: v for k, v in one.items() if k != "details"} for one in figures["verdicts"]]
    return {k: v for k, v in figures.items() if k != "config"} | {"verdicts": verdicts}


# ---- one round ----------------------------------------------------------------------------------------------


def round_page(figures: Mapping[str, Any], folder: Path) -> str:
    """The page of a round, from its figures and its run directories."""
    simulated = figures["simulated"]
    sections = [
        ("", html.note("Ratings of this round are simulated: no person gave them.") if simulated else ""),
        ("Decision", _decision(figures)),
        ("Gates", _gates(figures["verdicts"])),
        ("What came in", _came_in(figures)),
        ("What was trained", _trained(folder)),
        ("Answers", _samples(folder)),
        ("Steps", _steps(figures)),
    ]
    lead = f"Project {figures['project']}, begun {_when(figures['started_at'])}."
    return html.page(f"Round {figures['round']}", [s for s in sections if s[1]], lead=lead)


def _decision(figures: Mapping[str, Any]) -> str:
    win = _of(figures, WIN_RATE)
    kl = _of(figures, "kl")
    passed = sum(one["passed"] for one in figures["verdicts"])
    cards = [
        (_ending(figures), "how it ended"),
        (f"{passed} of {len(figures['verdicts'])}", "gates passed"),
        (_number(win["figure"] if win else None), "win rate over the champion" + _span(win)),
        (f"{_number(kl['figure'] if kl else None)} nats", "KL from the backbone per completion"),
        (str(figures["num_new"] or 0), "new comparisons"),
    ]
    text = f"The candidate {figures['candidate_id']} became the champion."
    if figures["state"] == steps.REJECTED:
        text = f"It was rejected: {figures['reason']}."
    elif figures["state"] != steps.CHAMPION:
        text = f"It has not ended; its last step is '{figures['state']}'."
    if figures["undone"]:
        text += f" It was undone later: {figures['undone']}."
    body = html.cards(cards) + html.paragraph(text)
    if figures["provisional"]:
        body += html.note(
            "A verdict is provisional: it is a reward model's, and people's answers will confirm or undo it."
        )
    return body


def _ending(figures: Mapping[str, Any]) -> str:
    if figures["undone"]:
        return "undone"
    return {steps.CHAMPION: "champion", steps.REJECTED: "rejected"}.get(figures["state"], "open")


def _gates(verdicts: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(_gate_row(one) for one in verdicts)
    head = "<tr><th>gate</th><th></th><th>measured</th><th>threshold</th><th>because</th></tr>"
    table = f'<div class="scroll"><table>{head}{rows}</table></div>'
    pictures = [_gate_picture(one) for one in verdicts if one["low"] is not None]
    for one in verdicts:
        rows_of = one["details"].get("slices") or one["details"].get("raters")
        if rows_of and len(rows_of) > 1:
            pictures.append(_many(one, rows_of))
    return table + html.figures(pictures)


def _gate_row(one: Mapping[str, Any]) -> str:
    color, word = (PASSED, "passed") if one["passed"] else (FAILED, "failed")
    word += ", provisional" if one["provisional"] else ""
    measured = _number(one["figure"]) + _span(one)
    return (
        f'<tr><td><b>{html.escape(one["gate"])}</b></td><td style="color:{color};font-weight:600">{word}</td>'
        f'<td style="white-space:nowrap">{html.escape(measured)}</td><td>{_number(one["threshold"])}</td>'
        f"<td>{html.escape(one['reason'])}</td></tr>"
    )


def _gate_picture(one: Mapping[str, Any]) -> str:
    row = plots.Row("", one["figure"], one["low"], one["high"], group="passed" if one["passed"] else "failed")
    threshold = one["threshold"]
    picture = plots.interval_plot(
        [row], one["gate"], "", reference=None if threshold is None else ("threshold", threshold)
    )
    return html.figure(
        picture, f"{one['gate']}: {'passed' if one['passed'] else 'failed'}, with its 95 % interval."
    )


def _many(one: Mapping[str, Any], rows_of: Sequence[Mapping[str, Any]]) -> str:
    """All groups of a gate that asks about groups."""
    is_slice = "slice" in rows_of[0]
    rows = [
        plots.Row(
            f"{row['slice' if is_slice else 'rater']} ({row['n']})",
            row["win_rate" if is_slice else "agreement"],
            row["low"],
            row["high"],
            faint=is_slice and not row["counted"],
        )
        for row in rows_of
    ]
    what = "win rate by group" if is_slice else "agreement by rater"
    picture = plots.interval_plot(rows, what, "", reference=("threshold", one["threshold"]))
    return html.figure(
        picture, f"Every {'group of prompts' if is_slice else 'rater'}, with the number asked about."
    )


def _came_in(figures: Mapping[str, Any]) -> str:
    parts = [html.paragraph(f"The round began because of this: {figures['trigger']}.")]
    parts += [html.note(f"Alert: {alert}.") for alert in figures["alerts"]]
    if figures["counts"]:
        rows = [
            {"split": split, **{key: counts[key] for key in ("rows", "ties", "prompts", "annotators")}}
            for split, counts in figures["counts"].items()
        ]
        parts.append(html.table(rows))
        agreement = figures["agreement"]
        told = (
            "no new pair has two raters"
            if agreement is None
            else f"raters agree on {agreement:.0%} of new pairs"
        )
        parts.append(html.paragraph(f"{figures['num_judgements']} accepted answers in all; {told}."))
    return "".join(parts)


def _trained(folder: Path) -> str:
    parts = []
    for name, what in (("reward", "Reward model"), ("judge", "Judge, which PPO never sees")):
        if is_finished(folder / name):
            m = read_manifest(folder / name).metrics
            accuracy = _number(m["heldout_accuracy"])
            low, high = m["heldout_accuracy_low"], m["heldout_accuracy_high"]
            span = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
            parts.append(
                html.paragraph(f"{what}: {accuracy}{span} of the held-out comparisons as their raters.")
            )
    if (folder / "reward-eval" / "reward_eval.html").is_file():
        parts.append('<p><a href="reward-eval/reward_eval.html">The reward model\'s examination</a></p>')
    ppo = folder / "ppo"
    if is_finished(ppo):
        rows = read_metrics(ppo / METRICS)
        best = read_manifest(ppo).metrics["best_iteration"]
        parts.append(html.paragraph(f"PPO: the policy of iteration {best} was kept."))
        parts.append(html.figures(_curves(rows)))
    return "".join(parts)


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    trained = [row for row in rows if "score" in row]
    watched = [row for row in rows if "eval_score" in row]

    def xy(of: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float | None]]:
        return [int(row["step"]) for row in of], [row.get(key) for row in of]

    score = {"training prompts": xy(trained, "score"), "watched prompts": xy(watched, "eval_score")}
    if watched and "eval_heldout_score" in watched[0]:
        score["judge, watched prompts"] = xy(watched, "eval_heldout_score")
    return [
        html.figure(
            plots.line_plot(score, "Reward", "iteration", "score"),
            "What PPO maximises, and what the judge that it never sees thinks of the same answers.",
        ),
        html.figure(
            plots.line_plot({"KL": xy(trained, "kl")}, "KL", "iteration", "nats per completion"),
            "How far the policy has moved from what KL is measured from.",
        ),
    ]


def _samples(folder: Path) -> str:
    """Evenly spaced held-out prompts: chosen by position, not by result."""
    path = folder / "evaluate" / "pairs.jsonl"
    if not path.is_file():
        return ""
    rows = [row for _, row in read_rows(path)]
    shown = rows[:: max(1, len(rows) // NUM_SAMPLES)][:NUM_SAMPLES]
    table = [
        {
            "prompt": row["prompt"],
            "champion": row["baseline"],
            "candidate": row["candidate"],
            "judge prefers": {1.0: "candidate", 0.0: "champion"}.get(row["win"], "neither"),
        }
        for row in shown
    ]
    note = f"{len(shown)} of {len(rows)} held-out prompts, evenly spaced, not picked by result."
    return html.paragraph(note) + html.table(table)


def _steps(figures: Mapping[str, Any]) -> str:
    rows, before = [], figures["started_at"]
    for state, done_at in figures["steps"].items():
        rows.append({"step": state, "done": _when(done_at), "seconds": round(done_at - before, 1)})
        before = done_at
    ids = {name: figures[name] for name in ("snapshot_id", "champion_before", "reward_id", "candidate_id")}
    known = [{"what": name.replace("_", " "), "id": value} for name, value in ids.items() if value]
    return html.table(rows) + html.table(known)


# ---- all rounds ---------------------------------------------------------------------------------------------


def timeline_page(known: Sequence[Mapping[str, Any]]) -> str:
    """All rounds of a project, the newest first, and how their figures went."""
    rows = [
        {
            "round": one["round"],
            "begun": _when(one["started_at"]),
            "ended": _ending(one),
            "new": one["num_new"],
            "win rate": _cell(_of(one, WIN_RATE)),
            "KL": _cell(_of(one, "kl")),
            "reason": one["reason"] or ("provisional" if one["provisional"] else ""),
        }
        for one in reversed(known)
    ]
    champions = [one for one in known if one["state"] == steps.CHAMPION and not one["undone"]]
    cards = [
        (str(len(known)), "rounds"),
        (str(len(champions)), "made a champion that stands"),
        (str(known[-1]["num_judgements"] or 0) if known else "0", "accepted answers in the newest snapshot"),
    ]
    sections = [
        ("", html.cards(cards)),
        ("How it went", html.figures(_history(known))),
        ("Rounds", html.table(rows)),
    ]
    return html.page(
        "Rounds of retraining", sections, lead=f"Project {known[0]['project']}." if known else ""
    )


def _history(known: Sequence[Mapping[str, Any]]) -> list[str]:
    """Win rate, KL, agreement and volume over the rounds; promoted and rejected ones apart."""
    pictures = []
    for gate, title, ylabel, caption in (
        (
            WIN_RATE,
            "Win rate over the champion",
            "win rate",
            "Of each round's candidate, with its 95 % interval.",
        ),
        ("kl", "KL from the backbone", "nats per completion", "Of each round's candidate."),
    ):
        series: dict[str, Any] = {}
        bands: dict[str, Any] = {}
        for name, wanted in (("promoted", True), ("rejected", False)):
            of = [(one, _of(one, gate)) for one in known if (one["state"] == steps.CHAMPION) == wanted]
            points = [(int(one["round"]), v) for one, v in of if v is not None and v["figure"] is not None]
            if points:
                xs = [x for x, _ in points]
                series[name] = (xs, [v["figure"] for _, v in points])
                bands[name] = (xs, [v["low"] for _, v in points], [v["high"] for _, v in points])
        if series:
            picture = plots.line_plot(series, title, "round", ylabel, bands)
            pictures.append(html.figure(picture, caption))
    xs = [int(one["round"]) for one in known]
    agreement = [one["agreement"] for one in known]
    if any(value is not None for value in agreement):
        picture = plots.line_plot(
            {"agreement": (xs, agreement)}, "Agreement of raters", "round", "share of new pairs"
        )
        pictures.append(html.figure(picture, "How often two raters of a new pair prefer the same side."))
    volume = {
        "accepted answers": (xs, [one["num_judgements"] for one in known]),
        "new comparisons": (xs, [one["num_new"] for one in known]),
    }
    picture = plots.line_plot(volume, "Data", "round", "answers")
    pictures.append(html.figure(picture, "What the snapshot held, and what was new in it."))
    return pictures


# ---- small things -------------------------------------------------------------------------------------------


def _of(figures: Mapping[str, Any], gate: str) -> dict[str, Any] | None:
    return next((one for one in figures["verdicts"] if one["gate"] == gate), None)


def _number(value: float | None) -> str:
    if value is None:
        return "\u2013"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _span(one: Mapping[str, Any] | None) -> str:
    if one is None or one["low"] is None:
        return ""
    return f" [{one['low']:.3f}, {one['high']:.3f}]"


def _cell(one: Mapping[str, Any] | None) -> str:
    return "" if one is None else _number(one["figure"]) + _span(one)


def _when(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
