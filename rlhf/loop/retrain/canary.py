"""A candidate on a share of the traffic: does it get as many thumbs up as the champion beside it?"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text

from feedback_app.quality.drift import newcombe
from feedback_app.store.engine import Store
from rlhf.core.errors import ConfigError
from rlhf.core.stats import wilson_interval
from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.retrain.config import CanarySettings

TIMEOUT_S = 5.0
NAME = "canary"
_THUMBS = text(
    "SELECT c.model_id, a.thumb, count(*) AS num FROM current_annotations a "
    "JOIN task_completions tc ON tc.task_id = a.task_id JOIN completions c ON c.completion_id = tc.completion_id "
    "WHERE a.project_id = :project AND a.kind = 'thumbs' AND a.created_at >= :since GROUP BY c.model_id, a.thumb"
)


@dataclass(frozen=True)
class Trial:
    """state: skipped (nobody serves), waiting (reason says for what), or decided by `verdict`."""

    state: Literal["skipped", "waiting", "decided"]
    reason: str
    verdict: Verdict | None = None


def served_models(health_url: str) -> dict[str, str] | None:
    """name -> identity of the model that an endpoint serves under it; None where nobody answers.

    Raises ConfigError for an address that is none or answers something else than a health check.
    """
    if not health_url.startswith(("http://", "https://")):
        raise ConfigError(f"canary.health_url: expected http://HOST:PORT/health; found '{health_url}'")
    try:
        with urllib.request.urlopen(health_url, timeout=TIMEOUT_S) as answer:
            body = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it is loading, or going
            return {}
        raise ConfigError(f"canary.health_url: {health_url} answered {error.code}") from error
    except (OSError, TimeoutError):
        return None
    except ValueError as error:
        raise ConfigError(f"canary.health_url: {health_url} is no health check of `rlhf serve`") from error
    models = body.get("models") if isinstance(body, dict) else None
    if not isinstance(models, dict):
        raise ConfigError(f"canary.health_url: {health_url} is no health check of `rlhf serve`")
    return {str(name): str(model) for name, model in models.items()}


def try_candidate(store: Store, settings: CanarySettings, since: float, now: float) -> Trial:
    """Look at the thumbs that candidate and champion got since the candidate has its name."""
    if settings.health_url is None:
        return Trial("skipped", "nothing is being served (canary.health_url is not given)")
    models = served_models(settings.health_url)
    if models is None:
        return Trial("skipped", f"nothing is being served at {settings.health_url}")
    late = now - since > settings.timeout_s
    if "candidate" not in models or "champion" not in models:
        if late:
            verdict = Verdict(NAME, False, f"was not served within {settings.timeout_s:g} s")
            return Trial("decided", verdict.reason, verdict)
        return Trial("waiting", "the endpoint does not serve the candidate yet")
    thumbs = {name: _thumbs(store, settings.project, model, since) for name, model in models.items()}
    up, asked = thumbs["candidate"]
    if asked < settings.min_thumbs:
        said = f"{asked} of {settings.min_thumbs} thumbs on the candidate's answers"
        if late:
            verdict = Verdict(
                NAME,
                False,
                f"{said} within {settings.timeout_s:g} s",
                float(asked),
                threshold=settings.min_thumbs,
            )
            return Trial("decided", verdict.reason, verdict)
        return Trial("waiting", said)
    verdict = compare((up, asked), thumbs["champion"], settings.max_fall)
    return Trial("decided", verdict.reason, verdict)


def compare(candidate: tuple[int, int], champion: tuple[int, int], max_fall: float) -> Verdict:
    """(thumbs up, thumbs) of both; failed where the share falls by more than max_fall, or below 0 with its whole
    interval (Newcombe 1998)."""
    mine = wilson_interval(*candidate)
    if not champion[1]:
        reason = f"{mine.mean:.0%} thumbs up of {mine.n}; none on the champion's answers to compare with"
        return Verdict.of(NAME, True, reason, mine, None)
    theirs = wilson_interval(*champion)
    change = newcombe(theirs, mine)
    passed = change.mean >= -max_fall and change.high >= 0
    reason = f"{mine.mean:.0%} thumbs up of {mine.n}, the champion's {theirs.mean:.0%} of {theirs.n}"
    reason += "" if passed else f"; a fall of at most {max_fall:.0%} within chance is accepted"
    return Verdict.of(NAME, passed, reason, change, -max_fall)


def _thumbs(store: Store, project: str, model: str, since: float) -> tuple[int, int]:
    with store.read() as connection:
        rows = connection.execute(_THUMBS, {"project": project, "since": since}).all()
    mine = {row.thumb: int(row.num) for row in rows if row.model_id == model}
    return mine.get("up", 0), sum(mine.values())
