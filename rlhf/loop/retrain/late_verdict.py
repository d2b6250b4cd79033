"""People's late verdict on a champion that was promoted on the judge's: it stands, or the promotion is undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import Connection

from rlhf.core.errors import ConfigError, DataError, StoreError
from rlhf.core.run import Launch
from rlhf.core.validation import one_line
from rlhf.loop.gates.verdict import Verdict
from rlhf.loop.gates.win_rate import NAME as WIN_RATE
from rlhf.loop.registry import CHAMPION, PREVIOUS, Artifact, Registry, check_usable, lock_names, move_in
from rlhf.loop.retrain.config import RetrainConfig
from rlhf.loop.retrain.judging import people_verdict
from rlhf.loop.retrain.rounds import CHAMPION as PROMOTED
from rlhf.loop.retrain.rounds import Round, Rounds
from rlhf.loop.retrain.stages import ACTOR

FolderOf = Callable[[RetrainConfig, Round], Path]


def settle(
    project: str, rounds: Rounds, registry: Registry, launch: Launch, folder_of: FolderOf
) -> Round | None:
    """Where the champion is provisional and people have spoken since: confirm or undo it. Returns its round then.

    folder_of: where a round's pairs for people are. What cannot be read is said, and the champion stays provisional.
    Raises DataError where the promotion has to be undone and the champion before it cannot be used.
    """
    champion = registry.alias(CHAMPION)
    if champion is None:
        return None
    promoted = [
        found
        for found in rounds.all(project)
        if found.candidate_id == champion.artifact_id and found.state == PROMOTED
    ]
    if not promoted:
        return None
    found = promoted[-1]
    before = next((verdict for verdict in rounds.verdicts(found.round_id) if verdict.name == WIN_RATE), None)
    if before is None or not before.provisional:
        return None
    try:
        config = settings_of(found)
        said = people_verdict(folder_of(config, found), config, launch)
    except (ConfigError, DataError) as error:
        told = f"what people say about the champion of round {found.number} cannot be read: {error}"
        print(f"retrain: alert: {told}; it stays provisional", flush=True)
        return None
    if said.provisional:
        return None
    verdict = replace(said, details=said.details | {"provisional": before.row()})
    print(f"retrain: people on round {found.number}: {verdict.reason}", flush=True)
    if verdict.passed:
        rounds.replace_verdict(found, champion.artifact_id, verdict)
    else:
        _undo(found, champion, verdict, rounds, registry)
    return rounds.get(found.round_id)


def _undo(found: Round, champion: Artifact, verdict: Verdict, rounds: Rounds, registry: Registry) -> None:
    """Back to what the champion was compared with; not to `previous`, which people may have refused as well.

    The verdict and the names are one transaction: what was killed between them would never be undone.
    """
    back = None if found.champion_id is None else registry.artifact(found.champion_id)
    try:
        if back is not None:
            check_usable(back)
    except DataError as error:
        raise DataError(
            f"people did not find the champion of round {found.number} ({champion.artifact_id}) better, and what "
            f"it was compared with cannot take its place: {error}; name another with `rlhf promote`"
        ) from error
    reason = f"people on round {found.number}: {verdict.reason}"

    def also(connection: Connection) -> None:
        lock_names(connection)
        now = registry.alias_in(connection, CHAMPION)
        if now is None or now.artifact_id != champion.artifact_id:
            raise StoreError("the champion moved in this moment; look at `rlhf status` and try again")
        move_in(connection, CHAMPION, found.champion_id, ACTOR, reason)
        move_in(connection, PREVIOUS, champion.artifact_id, ACTOR, reason)

    details = {"undone": verdict.reason}
    rounds.replace_verdict(found, champion.artifact_id, verdict, also=also, details=details)
    told = (
        "there is no champion, as before it" if back is None else f"{back.artifact_id} is the champion again"
    )
    print(f"retrain: {told}", flush=True)


def settings_of(found: Round) -> RetrainConfig:
    """What a round began with. Raises ConfigError where another version of this program wrote it."""
    try:
        return RetrainConfig.model_validate(found.config)
    except ValidationError as error:
        raise ConfigError(
            f"round {found.number} was begun by another version, and its settings cannot be read "
            f"({one_line(str(error))}); begin a new one with --now"
        ) from error
