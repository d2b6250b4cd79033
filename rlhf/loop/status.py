"""`rlhf status`, `promote` and `rollback`: who is champion, and moving the name by hand. Torch-free, within seconds."""

from __future__ import annotations

import getpass
import time
from typing import Any

from sqlalchemy import text

from feedback_app.store.engine import Store
from rlhf.core.files import to_json
from rlhf.core.run import Launch, Workspace
from rlhf.loop.registry import CHAMPION, PREVIOUS, Artifact, Registry
from rlhf.loop.registry_config import PromoteConfig, RollbackConfig, StatusConfig
from rlhf.loop.retrain.leader import current_leader, is_led
from rlhf.loop.retrain.rounds import Round, Rounds

_ERASED_IN = text(
    "SELECT s.snapshot_id, s.path, count(*) AS num FROM snapshots s "
    "JOIN snapshot_members m ON m.snapshot_id = s.snapshot_id "
    "JOIN tombstones d ON d.annotation_id = m.annotation_id "
    "GROUP BY s.snapshot_id, s.path, s.created_at ORDER BY s.created_at"
)


def status(config: StatusConfig, launch: Launch) -> None:
    """Print the state of the registry."""
    with Store.open(launch.db, create=False) as store:
        found = gather(store, Workspace(launch.workspace), config.rounds)
    print(to_json(found, indent=2) if config.json_output else shown(found))


def promote(config: PromoteConfig, launch: Launch) -> None:
    """Make an artifact, or a finished run that is registered by this, the champion."""
    with Store.open(launch.db, create=False) as store:
        registry = Registry(store, Workspace(launch.workspace))
        artifact = _named(registry, config.artifact, launch)
        before = registry.alias(CHAMPION)
        registry.promote(artifact.artifact_id, actor=config.actor or _me(), reason=config.reason)
    was = "the first one" if before is None else f"before: {before.artifact_id}"
    print(f"promote: {artifact.artifact_id} is the champion ({was})")


def rollback(config: RollbackConfig, launch: Launch) -> None:
    """Make the previous champion the champion."""
    started = time.monotonic()
    with Store.open(launch.db, create=False) as store:
        registry = Registry(store, Workspace(launch.workspace))
        artifact = registry.rollback(actor=config.actor or _me(), reason=config.reason)
    seconds = time.monotonic() - started
    print(f"rollback: {artifact.artifact_id} is the champion again ({seconds:.2f} s)")


def _named(registry: Registry, name: str, launch: Launch) -> Artifact:
    """What a person named; a run directory is registered by it."""
    for path in (launch.workspace / name, Workspace(launch.workspace).resolve(name)):
        if path.is_dir():
            return registry.register(path)
    return registry.artifact(name)


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        return "command line"


# ---- status -------------------------------------------------------------------------------------------------


def gather(store: Store, workspace: Workspace, num_rounds: int) -> dict[str, Any]:
    """Names, leader, the newest rounds with their verdicts, and what still depends on erased ratings."""
    registry, rounds = Registry(store, workspace), Rounds(store)
    leading = current_leader(store)
    with store.read() as connection:
        erased = connection.execute(_ERASED_IN).all()
    names = registry.aliases()
    marked = [artifact for artifact in registry.artifacts() if artifact.erasure_at is not None]
    return {
        "workspace": str(workspace.root),
        "aliases": {name: _artifact(artifact, workspace) for name, artifact in names.items()},
        "retraining": None
        if leading is None or not is_led(store)
        else {"holder": leading[0], "since": leading[1]},
        "rounds": [_round(rounds, one) for one in rounds.all()[: -num_rounds - 1 : -1]],
        "depends_on_erased": {
            "snapshots": [
                {
                    "snapshot_id": row.snapshot_id,
                    "path": workspace.relative(workspace.resolve(row.path)),
                    "num_ratings": int(row.num),
                }
                for row in erased
            ],
            "artifacts": [
                _artifact(artifact, workspace)
                | {"erasure_at": artifact.erasure_at}
                | {"aliases": [n for n, a in names.items() if a.artifact_id == artifact.artifact_id]}
                for artifact in marked
            ],
        },
    }


def _artifact(artifact: Artifact, workspace: Workspace) -> dict[str, Any]:
    return {
        "artifact_id": artifact.artifact_id,
        "stage": artifact.stage,
        "path": workspace.relative(artifact.path),
        "simulated": artifact.simulated,
    }


def _round(rounds: Rounds, found: Round) -> dict[str, Any]:
    verdicts = rounds.verdicts(found.round_id)
    return {
        "round": found.number,
        "project": found.project,
        "state": found.state,
        "reason": found.error,
        "candidate_id": found.candidate_id,
        "provisional": any(verdict.provisional for verdict in verdicts),
        "undone": found.details.get("undone"),
        "started_at": found.started_at,
        "ended_at": found.ended_at,
        "verdicts": {v.name: {"passed": v.passed, "figure": v.figure, "reason": v.reason} for v in verdicts},
    }


def shown(found: dict[str, Any]) -> str:
    """The same for people, in a few lines."""
    lines = []
    for name in dict.fromkeys((CHAMPION, PREVIOUS, *found["aliases"])):
        artifact = found["aliases"].get(name)
        told = "nothing" if artifact is None else f"{artifact['artifact_id']}  {artifact['path']}"
        told += "  (simulated)" if artifact is not None and artifact["simulated"] else ""
        lines.append(f"{name:<10} {told}")
    leading = found["retraining"]
    lines.append(
        "retraining "
        + ("nobody" if leading is None else f"{leading['holder']} since {_when(leading['since'])}")
    )
    lines.append("rounds" if found["rounds"] else "rounds     none yet")
    for one in found["rounds"]:
        ending = one["state"] if one["ended_at"] else f"open, after '{one['state']}'"
        ending += ", provisional" if one["provisional"] else ""
        ending += ", undone since" if one["undone"] else ""
        told = one["reason"] or one["undone"] or one["candidate_id"] or ""
        lines.append(f"  {one['round']:>4}  {_when(one['started_at'])}  {ending}{': ' if told else ''}{told}")
    return "\n".join([*lines, *_erased_lines(found["depends_on_erased"])])


def _erased_lines(depends: dict[str, Any]) -> list[str]:
    if not depends["snapshots"] and not depends["artifacts"]:
        return ["erased     nothing depends on ratings that were erased"]
    lines = ["erased     these still depend on ratings that were erased:"]
    for row in depends["snapshots"]:
        lines.append(f"  snapshot {row['snapshot_id']}  {row['path']}  ({row['num_ratings']} ratings)")
    for row in depends["artifacts"]:
        named = f"  ({', '.join(row['aliases'])})" if row["aliases"] else ""
        lines.append(f"  {row['stage']:<8} {row['artifact_id']}  {row['path']}{named}")
    lines.append("  the next round is made without these ratings; remove what you must not keep")
    return lines


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
