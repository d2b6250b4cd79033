"""Panels about models: win rates with intervals, and who beat whom. For leads only."""

from __future__ import annotations

import math

import numpy as np

from feedback_app.lead.panels import Column, Panel, ranged
from feedback_app.quality.answers import TIE, Answers
from feedback_app.quality.win_rates import win_rates

MAX_MODELS = 40
RATE_FACET = {"key": "rate", "label": "win rate", "from": 0, "to": 1, "zero": 0.5}


def model_panels(answers: Answers) -> list[Panel]:
    """Win rates and the matrix, from comparisons of two models that both have a name."""
    comparisons = answers.comparisons
    named = np.array([bool(name) for name in answers.models], dtype=bool)
    usable = named[comparisons.models].all(axis=1) if len(comparisons) else np.zeros(0, dtype=bool)
    usable &= comparisons.models[:, 0] != comparisons.models[:, 1]
    models = comparisons.models[usable]
    # the models with most comparisons; more would not be legible, nor quick
    games = np.bincount(models.ravel(), minlength=len(answers.models))
    kept = [int(m) for m in np.argsort(-games, kind="stable")[:MAX_MODELS] if games[m]]
    code = np.full(len(answers.models), -1)
    code[kept] = np.arange(len(kept))
    inside = (code[models] >= 0).all(axis=1)
    rates = None
    if inside.any():
        rates = win_rates(
            code[models[inside, 0]],
            code[models[inside, 1]],
            np.minimum(comparisons.verdict[usable][inside], TIE),
            comparisons.task[usable][inside],
            num_models=len(kept),
        )
    rows, cells = [], []
    if rates is not None:
        order = sorted(range(len(kept)), key=lambda m: -rates.rate_M[m].mean)
        names = [answers.models[m] for m in kept]
        for m in order:
            rows.append(
                {
                    "model": names[m],
                    **ranged("rate", rates.rate_M[m]),
                    **ranged("strength", rates.strength_M[m]),
                    "games": rates.rate_M[m].n,
                }
            )
        for i in order:
            for j in order:
                if i != j and not math.isnan(rates.wins_MM[i, j]):
                    cells.append(
                        {
                            "model": names[i],
                            "against": names[j],
                            "score": round(float(rates.wins_MM[i, j]), 4),
                            "games": int(rates.games_MM[i, j]),
                        }
                    )
    tie_note = f" {rates.tie_share * 100:.0f} % of the comparisons were ties." if rates else ""
    return [
        Panel(
            "win_rates",
            "Win rates",
            (
                Column("model", "model"),
                Column("rate", "win rate", "share", True, "against the average other model, ties half"),
                Column("strength", "log-strength", "number", True, "Bradley-Terry with ties (Davidson)"),
                Column("games", "comparisons", "count"),
            ),
            rows,
            {
                "kind": "dots",
                "label": ["model"],
                "facets": [{"key": "rate", "label": "win rate", "from": 0, "to": 1, "zero": 0.5}],
            },
            "Expected score against the average other model, from Bradley-Terry with ties; 95 % intervals over "
            f"tasks.{tie_note}",
            "No comparison of two different models with a name yet.",
        ),
        Panel(
            "win_matrix",
            "Who beats whom",
            (
                Column("model", "model"),
                Column("against", "against"),
                Column("score", "score", "share"),
                Column("games", "comparisons", "count"),
            ),
            cells,
            {"kind": "matrix", "row": "model", "column": "against", "y": "score", "n": "games"},
            "Share of comparisons that the model on the left won, ties half.",
            "No comparison of two different models with a name yet.",
        ),
    ]
