"""The registry: trained artifacts with their hashes and parents, and the names that point at them. Torch-free.

    champion    what is served, and what a candidate has to beat
    candidate   what has passed its gates and waits, or is tried on a share of the traffic
    previous    the champion before this one: where `rlhf rollback` goes

An artifact is a finished run directory. Its id is its stage with the first digits of its content hash, so the same
run has one id wherever it is registered from. A move of a name, its entry in `alias_moves` and in the audit log are
one transaction.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, text, update

from feedback_app.store import audit
from feedback_app.store.engine import Store
from feedback_app.store.registry_schema import alias_moves, aliases, artifact_parents, artifacts
from feedback_app.store.schema import snapshots
from rlhf.core.errors import DataError
from rlhf.core.records import content_id
from rlhf.core.run import (
    FINISHED,
    MANIFEST,
    Manifest,
    Workspace,
    directory_sha256,
    is_finished,
    read_manifest,
)
from rlhf.core.validation import nearest

CHAMPION, CANDIDATE, PREVIOUS = "champion", "candidate", "previous"
# What no name may point at: it writes no completions.
NOT_POLICIES = frozenset(
    {
        "reward",
        "evaluate",
        "reward-eval",
        "reward-history",
        "adjudicate",
        "prepare",
        "compare",
        "sft-eval",
        "best-of-n",
    }
)
MAX_VERIFIED_BYTES = 256 << 20
HASH_DIGITS = 12
POSTGRES_LOCK = 0x72656769  # 'regi': names move one after the other
_SELECT = select(artifacts)


@dataclass(frozen=True)
class Artifact:
    """A finished run. path: absolute. simulated: it or an ancestor learned from simulated ratings. retired_at and
    erasure_at: seconds since the epoch; the latter when somebody it learned from asked for deletion."""

    artifact_id: str
    stage: str
    path: Path
    sha256: str
    manifest: dict[str, Any]
    snapshot_id: str | None
    simulated: bool
    created_at: float
    retired_at: float | None
    erasure_at: float | None = None


class Registry:
    """Artifacts and names of one workspace."""

    def __init__(self, store: Store, workspace: Workspace) -> None:
        self.store, self.workspace = store, workspace

    # ---- artifacts ---------------------------------------------------------------------------------------

    def register(
        self,
        run: Path,
        *,
        parents: Mapping[str, str] | None = None,
        snapshot_id: str | None = None,
        simulated: bool = False,
    ) -> Artifact:
        """Note a finished run; doing it again is one artifact.

        parents: role -> id of an artifact. Runs and snapshots that the manifest names as inputs, and that are
        still there, are found by themselves and registered too; so are the reward models that people renewed
        inside of a run (`rlhf ppo --feedback-every`). Raises DataError for what is not a finished run.
        """
        run = Path(run)
        if not is_finished(run):
            raise DataError(f"{run}: is not a finished run; only a finished one can be registered")
        if (unchanged := self._unchanged(run)) is not None:
            return unchanged
        manifest, sha256 = read_manifest(run), directory_sha256(run)
        found = {role: self._input_run(parent.path) for role, parent in manifest.parents.items()}
        given = {role: self.register(path).artifact_id for role, path in found.items() if path is not None}
        given |= {role: self.register(path).artifact_id for role, path in _renewed(run).items()}
        given |= dict(parents or {})
        snapshot_id = snapshot_id or self._input_snapshot(manifest)
        return self.store.run(lambda c: self._insert(c, run, manifest, sha256, given, snapshot_id, simulated))

    def _insert(
        self,
        connection: Connection,
        run: Path,
        manifest: Manifest,
        sha256: str,
        parents: Mapping[str, str],
        snapshot_id: str | None,
        simulated: bool,
    ) -> Artifact:
        known = connection.execute(_SELECT.where(artifacts.c.sha256 == sha256)).first()
        if known is not None:
            if not (self.workspace.root / known.path).exists():  # the run was moved since
                moved = update(artifacts).where(artifacts.c.artifact_id == known.artifact_id)
                connection.execute(moved.values(path=self.workspace.relative(run)))
                known = connection.execute(_SELECT.where(artifacts.c.sha256 == sha256)).one()
            return self._artifact(known)
        ancestors = [self.find(connection, parent) for parent in parents.values()]
        learned_simulated = (
            snapshot_id is not None
            and connection.execute(
                select(snapshots.c.simulated).where(snapshots.c.snapshot_id == snapshot_id)
            ).scalar()
        )
        artifact_id = f"{manifest.stage}-{sha256[:HASH_DIGITS]}"
        erased = [a.erasure_at for a in ancestors if a.erasure_at is not None]
        row = {
            "artifact_id": artifact_id,
            "stage": manifest.stage,
            "path": self.workspace.relative(run),
            "sha256": sha256,
            "manifest": manifest.model_dump(mode="json"),
            "snapshot_id": snapshot_id,
            "simulated": bool(simulated or learned_simulated or any(a.simulated for a in ancestors)),
            "created_at": time.time(),
            "erasure_at": max([*erased, *_tombstones(connection, snapshot_id)], default=None),
        }
        connection.execute(insert(artifacts), row)
        links = {(ancestor.artifact_id, role) for role, ancestor in zip(parents, ancestors, strict=True)}
        for parent_id, role in sorted(links):
            connection.execute(
                insert(artifact_parents),
                {"artifact_id": artifact_id, "parent_id": parent_id, "role": role},
            )
        return self.find(connection, artifact_id)

    def artifact(self, name: str) -> Artifact:
        """By id, unique beginning of an id, alias, or path of a run. Raises DataError naming the nearest."""
        with self.store.read() as connection:
            return self.find(connection, name)

    def artifacts(self) -> list[Artifact]:
        """All of them, the oldest first."""
        with self.store.read() as connection:
            rows = connection.execute(_SELECT.order_by(artifacts.c.created_at, artifacts.c.artifact_id)).all()
        return [self._artifact(row) for row in rows]

    def find(self, connection: Connection, name: str) -> Artifact:
        """`artifact` as a part of the caller's transaction."""
        row = connection.execute(_SELECT.where(artifacts.c.artifact_id == name)).first()
        row = row or _aliased(connection, name)
        if row is None:
            row = connection.execute(
                _SELECT.where(artifacts.c.path == self.workspace.relative(Path(name)))
            ).first()
        if row is None:
            row = connection.execute(_SELECT.where(artifacts.c.path == name)).first()
        if row is None and name:
            begin = artifacts.c.artifact_id.startswith(name, autoescape=True)
            found = connection.execute(_SELECT.where(begin).limit(2)).all()
            if len(found) > 1:
                raise DataError(
                    f"'{name}' is the beginning of several artifacts: {found[0].artifact_id}, "
                    f"{found[1].artifact_id}, ...; give more of the id"
                )
            row = found[0] if found else None
        if row is None:
            ids = connection.execute(select(artifacts.c.artifact_id)).scalars().all()
            names = connection.execute(select(aliases.c.name)).scalars().all()
            if not ids:
                raise DataError(f"there is no artifact '{name}': the registry is empty")
            raise DataError(f"there is no artifact '{name}'{nearest(name, [*names, *ids])}")
        return self._artifact(row)

    def _artifact(self, row: Row[Any]) -> Artifact:
        return Artifact(
            artifact_id=row.artifact_id,
            stage=row.stage,
            path=self.workspace.resolve(row.path),
            sha256=row.sha256,
            manifest=dict(row.manifest),
            snapshot_id=row.snapshot_id,
            simulated=bool(row.simulated),
            created_at=row.created_at,
            retired_at=row.retired_at,
            erasure_at=row.erasure_at,
        )

    def _input_run(self, path: str) -> Path | None:
        """The finished run that a path of a manifest belongs to: itself or the folder above it."""
        folder = self.workspace.resolve(path)
        for candidate in (folder, folder.parent):
            if (candidate / MANIFEST).is_file() and is_finished(candidate):
                return candidate
        return None

    def _input_snapshot(self, manifest: Manifest) -> str | None:
        """The id of the exported snapshot that a run learned from, where this store knows it."""
        for parent in manifest.parents.values():
            folder = self.workspace.resolve(parent.path)
            for candidate in (folder, *folder.parents[:2]):
                known = self._exported(candidate)
                if known is not None:
                    return known
        return None

    def _exported(self, folder: Path) -> str | None:
        try:
            written = json.loads((folder / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return None
        snapshot_id = written.get("snapshot_id") if isinstance(written, dict) else None
        with self.store.read() as connection:
            known = select(snapshots.c.snapshot_id).where(snapshots.c.snapshot_id == snapshot_id)
            return connection.execute(known).scalar()

    def _unchanged(self, run: Path) -> Artifact | None:
        """The artifact of a run that has not been finished anew since it was registered: no need to hash it again."""
        finished_at = (run / FINISHED).stat().st_mtime
        query = _SELECT.where(
            artifacts.c.path == self.workspace.relative(run), artifacts.c.created_at >= finished_at
        )
        with self.store.read() as connection:
            row = connection.execute(query.order_by(artifacts.c.created_at.desc())).first()
        return None if row is None else self._artifact(row)

    # ---- names -------------------------------------------------------------------------------------------

    def alias(self, name: str) -> Artifact | None:
        """What a name points at, None for nothing."""
        with self.store.read() as connection:
            return self.alias_in(connection, name)

    def alias_in(self, connection: Connection, name: str) -> Artifact | None:
        """`alias` as a part of the caller's transaction."""
        row = _aliased(connection, name)
        return None if row is None else self._artifact(row)

    def aliases(self) -> dict[str, Artifact]:
        """All names, with what they point at, as of one moment."""
        query = select(aliases.c.name, artifacts).join(
            artifacts, artifacts.c.artifact_id == aliases.c.artifact_id
        )
        with self.store.read() as connection:
            rows = connection.execute(query.order_by(aliases.c.name)).all()
        return {row.name: self._artifact(row) for row in rows}

    def promote(self, artifact_id: str, *, actor: str, reason: str) -> None:
        """champion -> previous, the artifact -> champion, and candidate is free if it was this one.

        One transaction. Promoting the champion changes nothing. Raises DataError for an artifact that is unknown,
        writes no completions, is retired, or whose files are not what was registered.
        """
        artifact = self.artifact(artifact_id)
        check_usable(artifact)
        self.store.run(lambda connection: promote_in(connection, artifact.artifact_id, actor, reason))

    def set_alias(self, name: str, artifact_id: str, *, actor: str, reason: str) -> None:
        """Point a name at an artifact that writes completions."""
        artifact = self.artifact(artifact_id)
        check_usable(artifact)
        self.store.run(lambda connection: move_in(connection, name, artifact.artifact_id, actor, reason))

    def clear_alias(self, name: str, *, actor: str, reason: str) -> None:
        """Let a name point at nothing."""
        self.store.run(lambda connection: move_in(connection, name, None, actor, reason))

    def rollback(self, *, actor: str, reason: str) -> Artifact:
        """champion <-> previous, so that a second rollback undoes the first. Returns the new champion.

        Raises DataError when there is no previous champion, or it is not there any more as it was registered.
        """
        previous = self.alias(PREVIOUS)
        if previous is None:
            raise DataError("there is no previous champion to go back to; `rlhf status` shows the names")
        try:
            check_usable(previous)
        except DataError as error:
            raise DataError(f"{error}; name another with `rlhf promote`") from error

        def unit(connection: Connection) -> None:
            lock_names(connection)
            rows = {row.name: row.artifact_id for row in connection.execute(select(aliases)).all()}
            if rows.get(PREVIOUS) != previous.artifact_id:
                raise DataError("the names moved in this moment; look at `rlhf status` and try again")
            move_in(connection, CHAMPION, previous.artifact_id, actor, reason)
            move_in(connection, PREVIOUS, rows.get(CHAMPION), actor, reason)

        self.store.run(unit)
        return previous


def promote_in(connection: Connection, artifact_id: str, actor: str, reason: str) -> None:
    """`Registry.promote` as a part of the caller's transaction, without looking at files."""
    lock_names(connection)
    rows = {row.name: row.artifact_id for row in connection.execute(select(aliases)).all()}
    if rows.get(CHAMPION) == artifact_id:
        return
    if CHAMPION in rows:
        move_in(connection, PREVIOUS, rows[CHAMPION], actor, reason)
    move_in(connection, CHAMPION, artifact_id, actor, reason)
    if rows.get(CANDIDATE) == artifact_id:
        move_in(connection, CANDIDATE, None, actor, reason)


def move_in(connection: Connection, name: str, artifact_id: str | None, actor: str, reason: str) -> None:
    """Move one name as a part of the caller's transaction; nothing happens when it points there already."""
    lock_names(connection)
    now = time.time()
    before = connection.execute(select(aliases.c.artifact_id).where(aliases.c.name == name)).scalar()
    if before == artifact_id:
        return
    if artifact_id is None:
        connection.execute(delete(aliases).where(aliases.c.name == name))
    elif before is None:
        connection.execute(insert(aliases), {"name": name, "artifact_id": artifact_id, "updated_at": now})
    else:
        moved = update(aliases).where(aliases.c.name == name)
        connection.execute(moved.values(artifact_id=artifact_id, updated_at=now))
    move = {"name": name, "from_artifact": before, "to_artifact": artifact_id}
    connection.execute(insert(alias_moves), move | {"actor": actor, "reason": reason, "moved_at": now})
    audit.append(connection, actor, "alias.move", name, to=artifact_id or "", reason=reason)


def check_usable(artifact: Artifact) -> None:
    """Refuse what cannot be served. Raises DataError.

    Files are hashed again where that takes a moment only (MAX_VERIFIED_BYTES); of larger ones the presence counts.
    """
    what = f"artifact {artifact.artifact_id}"
    if artifact.stage in NOT_POLICIES:
        raise DataError(f"{what} is a {artifact.stage} run, which writes no completions; expected a policy")
    if artifact.retired_at is not None:
        raise DataError(f"{what} is retired and cannot be used again")
    if not is_finished(artifact.path):
        raise DataError(f"{what}: its run {artifact.path} is not there any more")
    size = sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file())
    if size <= MAX_VERIFIED_BYTES and directory_sha256(artifact.path) != artifact.sha256:
        raise DataError(f"{what}: the files in {artifact.path} are not those that were registered")


def new_round_id(number: int, project: str, started_at: float) -> str:
    """An id that no other workspace's round has."""
    return content_id("round", number, project, started_at)


def _renewed(run: Path) -> dict[str, Path]:
    """role -> run of a reward model that was trained within a run, from ratings of its own."""
    found = sorted(path for path in run.glob("feedback/iteration-*/reward") if is_finished(path))
    return {f"reward {number}": path for number, path in enumerate(found, start=1)}


def _aliased(connection: Connection, name: str) -> Row[Any] | None:
    query = _SELECT.join(aliases, aliases.c.artifact_id == artifacts.c.artifact_id)
    return connection.execute(query.where(aliases.c.name == name)).first()


def _tombstones(connection: Connection, snapshot_id: str | None) -> list[float]:
    """When a rating in the snapshot was erased last: a list of one, or of none."""
    if snapshot_id is None:
        return []
    query = text(
        "SELECT max(d.created_at) FROM tombstones d JOIN snapshot_members m ON m.annotation_id = d.annotation_id "
        "WHERE m.snapshot_id = :snapshot"
    )
    found = connection.execute(query, {"snapshot": snapshot_id}).scalar()
    return [] if found is None else [float(found)]


def lock_names(connection: Connection) -> None:
    """Hold all names until the transaction ends. Whoever moves one because of where one points asks for this first.

    On PostgreSQL two transactions could read the same names; SQLite has one writer.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRES_LOCK})
