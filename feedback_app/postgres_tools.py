"""PostgreSQL's own programs for copies: pg_dump and pg_restore, in the custom format.

They must be at least as new as the server. The password goes to them in the environment, which other users of the
machine cannot read, not on the command line, which they can.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from feedback_app.store.engine import shown_url
from rlhf.core.errors import BusyError, ConfigError, StoreError

OLD = "rlhf_old_"
DEBIAN = Path("/usr/lib/postgresql")
_TABLES = text("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'")
_OTHERS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND backend_type = 'client backend'"
)
_SCHEMAS = text("SELECT nspname FROM pg_namespace")

Facts = TypeVar("Facts")


def counted_dump(url: URL, file: Path, facts_of: Callable[[Connection], Facts]) -> Facts:
    """Dump the database into `file`; what `facts_of` finds is of the very same moment."""
    engine = create_engine(url, isolation_level="REPEATABLE READ")
    try:
        with engine.connect() as connection, connection.begin():
            facts = facts_of(connection)
            moment = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
            _call(
                "pg_dump",
                url,
                *("--format=custom", f"--file={file}", f"--snapshot={moment}"),
                *("--no-owner", "--no-privileges", f"--exclude-schema={OLD}*"),
            )
    except DBAPIError as error:
        raise StoreError(f"cannot read the feedback store {shown_url(url)}: {error.orig}") from error
    finally:
        engine.dispose()
    return facts


def prepare_target(url: URL, force: bool) -> str:
    """Make room in the database: '' when it is empty, else (with `force`) the schema that holds the old tables."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection, connection.begin():
            if not connection.execute(_TABLES).scalar_one():
                return ""
            if not force:
                raise StoreError(f"{shown_url(url)} holds tables already; give --force to set them aside")
            if connection.execute(_OTHERS).scalar_one():
                raise BusyError(f"{shown_url(url)} is open in another process; stop the server first")
            taken = set(connection.execute(_SCHEMAS).scalars())
            aside = next(name for i in range(1, 10**6) if (name := f"{OLD}{i}") not in taken)
            connection.execute(text(f"ALTER SCHEMA public RENAME TO {aside}"))
            connection.execute(text("CREATE SCHEMA public"))
            return aside
    except DBAPIError as error:
        raise StoreError(f"cannot prepare {shown_url(url)}: {error.orig}") from error
    finally:
        engine.dispose()


def restore_dump(url: URL, file: Path) -> None:
    """Restore a dump into the empty schema, all of it or nothing."""
    _call("pg_restore", url, "--single-transaction", "--exit-on-error", "--no-owner", str(file))


def put_back(url: URL, aside: str) -> None:
    """After a failed restore: what was set aside is the store again."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection, connection.begin():
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(
                text(f"ALTER SCHEMA {aside} RENAME TO public" if aside else "CREATE SCHEMA public")
            )
    finally:
        engine.dispose()


def find_program(name: str) -> str:
    """The newest program of that name: Debian keeps the versions out of PATH. Raises ConfigError."""
    versions = sorted(DEBIAN.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        raise ConfigError(
            f"{name} is not installed; install PostgreSQL's client programs (postgresql-client)"
        )
    return found


def _call(program: str, url: URL, *options: str) -> None:
    environment = dict(os.environ)
    if url.password is not None:
        environment["PGPASSWORD"] = str(url.password)
    plain = URL.create(
        "postgresql", url.username, None, url.host, url.port, url.database, dict(url.query)
    ).render_as_string()
    command = [find_program(program), f"--dbname={plain}", "--no-password", *options]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())
        raise StoreError(f"{program} failed on {shown_url(url)}: {reason[-500:]}")
