"""Settings of `rlhf status`, `promote`, `rollback` and `lineage`. Torch-free, so that a rollback is quick."""

from __future__ import annotations

from pydantic import Field
from tyro.conf import Positional

from rlhf.core.config import Settings


class StatusConfig(Settings):
    """Who is champion, how the last rounds ended and why, who retrains, and what still depends on erased ratings."""

    rounds: int = Field(10, ge=1, description="rounds that are shown, the newest first")
    json_output: bool = Field(False, description="print the same as JSON")


class PromoteConfig(Settings):
    """Make an artifact the champion by hand; the champion so far becomes `previous`."""

    artifact: Positional[str] = Field(
        description="id or its beginning, alias (candidate), or path of a finished run"
    )
    reason: str = Field("promoted by hand", description="why; it is kept with the move")
    actor: str | None = Field(None, description="who promotes; default the account on this machine")


class RollbackConfig(Settings):
    """Make the previous champion the champion again; a second rollback undoes the first."""

    reason: str = Field("rolled back by hand", description="why; it is kept with the move")
    actor: str | None = Field(None, description="who rolls back; default the account on this machine")


class LineageConfig(Settings):
    """Where an artifact came from, down to the ratings; or, of a snapshot or a rating, what learned from it."""

    name: Positional[str] = Field(description="artifact, alias, run directory, snapshot id or annotation id")
    annotations: int = Field(5, ge=0, description="annotation ids that are listed per snapshot, at most")
