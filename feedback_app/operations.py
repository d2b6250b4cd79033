"""`rlhf backup` and `rlhf restore`: the feedback store as a folder that can be checked, and back.

    OUT/feedback.db or feedback.pgdump   a consistent copy, taken while servers go on reading and writing
    OUT/manifest.json                    its SHA-256, the rows of every table, the head of the audit chain

SQLite is copied through its backup API, PostgreSQL through pg_dump within the transaction that counted the rows.
A backup is checked when it is made and again before it is restored; OUT is complete or absent. What a restore
replaces is set aside, never deleted. Restored sessions and one-time links are ended: who was logged out since the
backup stays logged out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Connection, create_engine, delete, inspect, select, text, update
from sqlalchemy.engine import URL

from feedback_app.config import BackupConfig, RestoreConfig
from feedback_app.postgres_tools import counted_dump, prepare_target, put_back, restore_dump
from feedback_app.store import audit, migrate
from feedback_app.store.engine import Store, check_sqlite_path, parse_url, shown_url
from feedback_app.store.schema import audit_log, one_time_links, sessions
from rlhf.core.errors import BusyError, ConfigError, DataError, StoreError
from rlhf.core.files import atomic_folder, file_sha256, write_json
from rlhf.core.run import Launch

MANIFEST = "manifest.json"
FORMAT = 1
FILES = {"sqlite": "feedback.db", "postgresql": "feedback.pgdump"}


class StoreFacts(BaseModel):
    """By which two copies of a store are told to be the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_revision: str
    rows: dict[str, int]
    audit_entries: int
    audit_head: str


class BackupManifest(BaseModel):
    """What a backup is. `sha256` and `num_bytes` are those of `file`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    database: Literal["sqlite", "postgresql"]
    file: str
    sha256: str
    num_bytes: int
    created_at: float
    facts: StoreFacts


def backup(db_url: str, out: Path) -> BackupManifest:
    """Write a backup of the store into the new folder `out`.

    Servers may read and write meanwhile. Raises ConfigError when `out` holds something, StoreError when there is
    no store or what was copied is not whole.
    """
    url, out = parse_url(db_url), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; choose another --out")
    with atomic_folder(out, 0o700) as building:  # it holds password hashes
        database: Literal["sqlite", "postgresql"] = (
            "sqlite" if url.get_backend_name() == "sqlite" else "postgresql"
        )
        file = building / FILES[database]
        if database == "sqlite":
            facts = _copy_sqlite(url, file)
        else:
            facts = counted_dump(url, file, facts_of)
        manifest = BackupManifest(
            database=database,
            file=file.name,
            sha256=file_sha256(file),
            num_bytes=file.stat().st_size,
            created_at=time.time(),
            facts=facts,
        )
        file.chmod(0o600)
        write_json(building / MANIFEST, manifest)
    return manifest


def restore(folder: Path, db_url: str, *, force: bool = False) -> tuple[BackupManifest, str]:
    """Put a backup in the place that `db_url` names. Returns its manifest and where the old store went ('').

    The backup is checked first, and what was restored is compared with it. Raises DataError for a damaged backup,
    ConfigError for one of another kind of database, StoreError when a store is there and `force` is not given,
    BusyError while somebody has it open.
    """
    manifest = read_backup(folder)
    url = parse_url(db_url)
    if url.get_backend_name() != manifest.database:
        raise ConfigError(
            f"{folder} is a backup of a {manifest.database} store; --db is {shown_url(url)}. "
            "A store cannot be moved from one kind of database to the other by a backup"
        )
    file = Path(folder) / manifest.file
    if manifest.database == "sqlite":
        aside = _restore_sqlite(file, url, manifest, force)
    else:
        aside = _restore_postgres(file, url, manifest, force)
    with Store.open(db_url) as store:  # brings an older schema up to date
        store.run(lambda connection: _end_visits(connection, manifest))
    return manifest, aside


def read_backup(folder: Path) -> BackupManifest:
    """The manifest of a backup whose file is what the manifest says. Raises DataError."""
    path = Path(folder) / MANIFEST
    try:
        manifest = BackupManifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no such file; expected a folder that `rlhf backup` wrote") from error
    except ValidationError as error:
        raise DataError(f"{path}: is not a manifest of a backup of this version") from error
    file = Path(folder) / manifest.file
    if Path(manifest.file).name != manifest.file or not file.is_file():
        raise DataError(f"{file}: no such file, but {path} names it")
    if (found := file_sha256(file)) != manifest.sha256:
        raise DataError(
            f"{file} is damaged: SHA-256 {found[:12]}..., expected {manifest.sha256[:12]}... ({path})"
        )
    if manifest.facts.schema_revision not in migrate.KNOWN_REVISIONS:
        raise StoreError(
            f"{folder} has schema '{manifest.facts.schema_revision}', which this version does not know "
            f"(newest known: '{migrate.HEAD}'); update rlhf-loop"
        )
    return manifest


def facts_of(connection: Connection) -> StoreFacts:
    """Rows per table and the audit chain, checked link by link. Raises StoreError when the chain is broken."""
    revision = migrate.current_revision(connection)
    if revision is None:
        raise StoreError("there is no feedback store in this database")
    broken = audit.first_broken(connection)
    if broken is not None:
        raise StoreError(
            f"the audit log is broken at entry {broken}: somebody changed the store behind its back"
        )
    rows = {
        table: int(connection.execute(text(f'SELECT count(*) FROM "{table}"')).scalar_one())
        for table in sorted(inspect(connection).get_table_names())
    }
    head = select(audit_log.c.row_hash).order_by(audit_log.c.seq.desc()).limit(1)
    return StoreFacts(
        schema_revision=revision,
        rows=rows,
        audit_entries=rows["audit_log"],
        audit_head=connection.execute(head).scalar() or audit.GENESIS,
    )


def run_backup(settings: BackupConfig, launch: Launch) -> None:
    """`rlhf backup`: into --out, or a folder named by the time in the workspace."""
    out = launch.out or launch.workspace / "backups" / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    manifest = backup(launch.db, out)
    print(f"backup of {shown_url(launch.db)} in {out}")
    print(f"  {_in_words(manifest)}; SHA-256 {manifest.sha256[:12]}, {manifest.num_bytes / 1e6:.1f} MB")


def run_restore(settings: RestoreConfig, launch: Launch) -> None:
    """`rlhf restore FOLDER`."""
    manifest, aside = restore(settings.folder, launch.db, force=launch.force)
    if aside:
        print(f"the old store is kept as {aside}")
    print(f"restored {settings.folder} to {shown_url(launch.db)}")
    print(f"  {_in_words(manifest)}; everybody has to log in again")


def _in_words(manifest: BackupManifest) -> str:
    rows = manifest.facts.rows
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(manifest.created_at))
    return (
        f"{rows['annotations']} answers, {rows['tasks']} tasks, {rows['annotators']} accounts, "
        f"{manifest.facts.audit_entries} audit entries, as of {when}"
    )


def _end_visits(connection: Connection, manifest: BackupManifest) -> None:
    connection.execute(update(sessions).where(sessions.c.revoked_at.is_(None)).values(revoked_at=time.time()))
    connection.execute(delete(one_time_links).where(one_time_links.c.used_at.is_(None)))
    audit.append(
        connection, "system", "store.restore", manifest.sha256[:64], backup_made_at=manifest.created_at
    )


# --- SQLite ---------------------------------------------------------------------------------------------


def _copy_sqlite(url: URL, file: Path) -> StoreFacts:
    path = check_sqlite_path(url, create=False)
    try:
        migrate.backup_sqlite(path, file)
    except sqlite3.DatabaseError as error:
        raise StoreError(f"cannot copy {path}: {error}") from error
    _sync(file)
    return _facts_of_file(file)


def _facts_of_file(file: Path) -> StoreFacts:
    """The facts of a copy that nobody writes to, and SQLite's own check of every page."""
    engine = create_engine(f"sqlite:///file:{file}?immutable=1&uri=true")
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
            if found != "ok":
                raise StoreError(f"{file} is damaged: {found}")
            return facts_of(connection)
    finally:
        engine.dispose()


def _restore_sqlite(file: Path, url: URL, manifest: BackupManifest, force: bool) -> str:
    path = check_sqlite_path(url, create=True)
    if path.exists() and path.stat().st_size and not force:
        raise StoreError(f"{path} exists already; give --force to set it aside")
    coming = path.with_name(f".{path.name}.restoring-{os.getpid()}")
    try:
        shutil.copyfile(file, coming)
        coming.chmod(0o600)
        _sync(coming)
        _compare(_facts_of_file(coming), manifest)
        aside = _set_aside(path) if path.exists() else ""
        os.replace(coming, path)
    finally:
        coming.unlink(missing_ok=True)
    return aside


def _set_aside(path: Path) -> str:
    """Rename a store that nobody has open; its write-ahead log is folded in first."""
    with contextlib.closing(sqlite3.connect(path, timeout=1)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE")  # only the last one at it may do that
        except sqlite3.OperationalError as error:
            raise BusyError(f"{path} is open in another process; stop the server first") from error
        except sqlite3.DatabaseError:
            pass  # not a database: the more reason to set it aside as it is
    old = next(p for p in (path.with_name(f"{path.name}.old-{i}") for i in count(1)) if not p.exists())
    os.rename(path, old)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{old}{suffix}")
    return str(old)


def _sync(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


# --- PostgreSQL -----------------------------------------------------------------------------------------


def _restore_postgres(file: Path, url: URL, manifest: BackupManifest, force: bool) -> str:
    aside = prepare_target(url, force)
    with _undone_on_failure(url, aside):
        restore_dump(url, file)
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                _compare(facts_of(connection), manifest)
        finally:
            engine.dispose()
    return f"schema {aside}" if aside else ""


@contextlib.contextmanager
def _undone_on_failure(url: URL, aside: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        put_back(url, aside)
        raise


def _compare(found: StoreFacts, manifest: BackupManifest) -> None:
    if found != manifest.facts:
        tables = {*found.rows, *manifest.facts.rows}
        other = [t for t in sorted(tables) if found.rows.get(t) != manifest.facts.rows.get(t)]
        raise DataError(
            f"what was restored is not what was backed up: {', '.join(other) or 'the audit log'} differ"
        )
