"""Whether a round is due, and if not, why not."""

from __future__ import annotations

import time
from dataclasses import dataclass

from feedback_app.store.engine import Store
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.news import News, any_new, drift_alerts, news
from rlhf.loop.retrain.rounds import Round


@dataclass(frozen=True)
class Due:
    """is_due: begin a round; reason: why, or why not; alerts: what drifts."""

    is_due: bool
    reason: str
    news: News
    alerts: tuple[str, ...]


def look(store: Store, config: RetrainConfig, last: Round | None, *, now: float | None = None) -> Due:
    """Ask the triggers. last: the round of the project that ended last, None before the first."""
    settings = config.trigger
    snapshot_id = last.snapshot_id if last else None
    if not config.now and not any_new(store, config.project, snapshot_id):
        return Due(False, f"nothing new {f'since round {last.number}' if last else 'yet'}", News((), {}), ())
    found = news(store, config.project, snapshot_id)
    alerts = tuple(drift_alerts(found, settings)) if settings.drift != "ignore" else ()
    waited = (time.time() if now is None else now) - (last.ended_at or 0.0 if last else 0.0)
    since = f"since round {last.number}" if last else "yet"
    if config.now:
        return Due(True, f"asked for by --now ({found.num_new} new comparisons)", found, alerts)
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
        return Due(False, reason, found, alerts)
    why = f"drift: {alerts[0]}" if drifting and found.num_new < settings.min_new else ""
    return Due(True, why or f"{found.num_new} new comparisons {since}", found, alerts)
