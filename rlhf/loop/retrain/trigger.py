"""Whether a round is due, and if not, why not."""

from __future__ import annotations

import time
from dataclasses import dataclass

from feedback_app.store.engine import Store
from rlhf.loop.gates.data import raters_one_by_one
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.news import News, any_new, drift_alerts, news
from rlhf.loop.retrain.rounds import Rounds


@dataclass(frozen=True)
class Due:
    """is_due: begin a round; reason: why, or why not; alerts: what drifts."""

    is_due: bool
    reason: str
    news: News
    alerts: tuple[str, ...]


def look(store: Store, config: RetrainConfig, rounds: Rounds, *, now: float | None = None) -> Due:
    """Ask the triggers, with what the project's ended rounds have seen."""
    settings = config.trigger
    last, snapshot_id = rounds.last_ended(config.project), rounds.last_snapshot(config.project)
    if not config.now and not any_new(store, config.project, snapshot_id):
        said = f"nothing new {f'since round {last.number}' if last else 'yet'}"
        if last is not None and last.error is not None:
            said += f", which was rejected ({last.error}); --now begins one all the same"
        return Due(False, said, News((), {}), ())
    found = news(store, config.project, snapshot_id)
    alerts = tuple(drift_alerts(found, settings)) if settings.drift != "ignore" else ()
    waited = (time.time() if now is None else now) - (last.ended_at or 0.0 if last else 0.0)
    since = f"since round {last.number}" if last else "yet"
    if config.now:
        return Due(True, f"asked for by --now ({found.num_new} new comparisons)", found, alerts)
    if last and last.snapshot_id is None and found.num_new == last.details.get("num_new"):
        # It failed before it had a snapshot: without anything new it would again, and again.
        return Due(
            False,
            f"the same ratings as round {last.number}, which failed: {last.error}; mend that and start with --now",
            found,
            alerts,
        )
    if waited < settings.cooldown_s:
        left = settings.cooldown_s - waited
        return Due(False, f"cooling down for {left:.0f} s more (trigger.cooldown_s)", found, alerts)
    drifting = settings.drift == "trigger" and bool(alerts)
    if found.num_new < settings.min_new and not drifting:
        wanted = f"{settings.min_new} are wanted (trigger.min_new)"
        return Due(False, f"{found.num_new} new comparisons {since}; {wanted}", found, alerts)
    agreed = found.agreement()
    if agreed.raw is not None and agreed.raw < settings.min_agreement:
        wanted = f"{settings.min_agreement:.2f} is wanted (trigger.min_agreement)"
        reason = (
            f"raters agree on {agreed.raw:.2f} of the {agreed.n_items} new pairs that two answered; {wanted}"
        )
        one_by_one = raters_one_by_one(found, config.gates)
        reason += "" if one_by_one.passed else f"; {one_by_one.reason}"
        return Due(False, reason, found, alerts)
    why = f"drift: {alerts[0]}" if drifting and found.num_new < settings.min_new else ""
    return Due(True, why or f"{found.num_new} new comparisons {since}", found, alerts)
