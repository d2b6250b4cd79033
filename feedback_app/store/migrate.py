"""Bringing a database to the current schema, once, whoever opens it first.

Migrations ship inside the package (`feedback_app/store/migrations`). Opening an up-to-date store costs one
query and does not import alembic's machinery twice; a database from a newer program is refused.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, inspect, text

from rlhf.core.errors import BusyError, StoreError

HEAD = "0003_rounds_of_retraining"
KNOWN_REVISIONS: tuple[str, ...] = ("0001_first_schema", "0002_gold_and_disputes", HEAD)
MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_TIMEOUT_S = 60.0
POSTGRES_LOCK = 0x726C6866  # 'rlhf': one advisory lock for migrations


def current_revision(connection: Connection) -> str | None:
    """The revision a database is at; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def ensure_current(engine: Engine) -> None:
    """Migrate to HEAD if needed; safe when several processes open a new store at the same moment."""
    with engine.connect() as connection, connection.begin():
        revision = current_revision(connection)
    if revision == HEAD:
        return
    if engine.dialect.name != "sqlite":
        _upgrade_postgres(engine)
        return
    path = Path(str(engine.url.database))
    try:
        with FileLock(f"{path}.migrate.lock", timeout=LOCK_TIMEOUT_S):
            with engine.connect() as connection, connection.begin():
                revision = current_revision(connection)
            if revision == HEAD:
                return
            _refuse_unknown(revision)
            if revision is not None:
                backup_sqlite(
                    path, path.with_name(f"{path.name}.backup-{revision}-{time.strftime('%Y%m%dT%H%M%S')}")
                )
            with engine.connect().execution_options(rlhf_write=True) as connection, connection.begin():
                upgrade(connection)
    except Timeout as error:
        raise BusyError(f"another process has been migrating {path} for {LOCK_TIMEOUT_S:g} s") from error


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations inside the caller's transaction."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    command.upgrade(alembic_config(connection), revision)


def alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def backup_sqlite(source: Path, target: Path) -> None:
    """A consistent copy of a live SQLite database, through SQLite's own backup API."""
    reader, writer = sqlite3.connect(source), sqlite3.connect(target)
    try:
        reader.backup(writer)
    finally:
        reader.close()
        writer.close()


def _upgrade_postgres(engine: Engine) -> None:
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRES_LOCK})
        revision = current_revision(connection)
        if revision != HEAD:
            _refuse_unknown(revision)
            upgrade(connection)


def _refuse_unknown(revision: str | None) -> None:
    if revision is not None and revision not in KNOWN_REVISIONS:
        raise StoreError(
            f"the feedback store has schema '{revision}', which this version does not know "
            f"(newest known: '{HEAD}'); update rlhf-loop"
        )
