"""Opening the store: one `Store` per process, SQLite by default, PostgreSQL by URL.

SQLite runs in WAL mode with `synchronous=FULL`, foreign keys and a 10 s busy timeout, and writers begin with
BEGIN IMMEDIATE: a deferred BEGIN that upgrades to a write fails with 'database is locked' under load
(measured: 916 of 960 submits lost with 16 processes), an immediate one waits its turn: threads of one process on
a lock of the `Store`, processes by drawing lots.

On PostgreSQL a unit of work that meets a serialization failure (40001), a deadlock (40P01) or a unique key
that another process wrote a moment earlier (23505) is run again from its start. That is why work is passed
to `Store.run` as a function.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError

from feedback_app.store import migrate, registry_schema  # noqa: F401  (registry tables join METADATA)
from rlhf.core.errors import BusyError, ConfigError, StoreError

BUSY_TIMEOUT_S = 10.0
LOTTERY_S = (0.001, 0.02)
RETRIED_SQLSTATES = frozenset({"40001", "40P01", "23505"})
MAX_TRIES = 8
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph"})

Result = TypeVar("Result")


class Store:
    """A handle on one feedback database. Thread-safe; open one per process (not across a fork)."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name
        # SQLite's waiting is polling with sleeps of up to 100 ms: threads of one process queue here instead.
        self._writer = threading.Lock() if self.dialect == "sqlite" else None

    @classmethod
    def open(cls, url: str, create: bool = True) -> Store:
        """Connect, and bring the schema up to date (an existing SQLite file is backed up first).

        Raises StoreError when the database is missing and `create` is False, lies on a network file system,
        cannot be opened, or was written by a newer version of this program.
        """
        parsed = parse_url(url)
        if parsed.get_backend_name() == "sqlite":
            check_sqlite_path(parsed, create)
        engine = _make_engine(parsed)
        try:
            migrate.ensure_current(engine)
        except DBAPIError as error:
            engine.dispose()
            raise StoreError(f"cannot open the feedback store {shown_url(parsed)}: {error.orig}") from error
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: committed at the end of the block, rolled back on any exception.

        Not to be nested: on SQLite the inner one would wait for the outer one and end with BusyError.
        """
        with self._turn(), self.engine.connect().execution_options(rlhf_write=True) as connection:
            try:
                with connection.begin():
                    yield connection
            except OperationalError as error:
                if _is_sqlite_busy(error):
                    raise BusyError(
                        f"the feedback store stayed locked by another process for {BUSY_TIMEOUT_S:g} s"
                    ) from error
                raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=BUSY_TIMEOUT_S):
            raise BusyError(f"the feedback store was busy with other answers for {BUSY_TIMEOUT_S:g} s")
        try:
            yield
        finally:
            self._writer.release()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One read transaction: a consistent view that never blocks writers."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def run(self, unit: Callable[[Connection], Result]) -> Result:
        """Run `unit` in a write transaction; on a conflict that a retry can solve, run all of it again."""
        for attempt in range(MAX_TRIES):
            try:
                with self.write() as connection:
                    return unit(connection)
            except DBAPIError as error:
                if attempt == MAX_TRIES - 1 or not _worth_retrying(error):
                    raise
                time.sleep(random.uniform(0.002, 0.02) * 2**attempt)
        raise AssertionError("unreachable")

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_url(url: str) -> URL:
    """The URL of a store; a bare path is not one. Raises ConfigError with an example."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            f"--db {url!r} is not a database URL; expected sqlite:///path/feedback.db or postgresql://..."
        ) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"--db {shown_url(parsed)}: expected sqlite or postgresql")
    return parsed


def shown_url(url: URL | str) -> str:
    """The URL without its password, for messages."""
    return make_url(url).render_as_string(hide_password=True)


def sqlite_path(url: URL | str) -> Path | None:
    """The file behind a SQLite URL, None for PostgreSQL and for in-memory databases."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that holds `path` ('' where /proc/mounts is not readable)."""
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    resolved, best, kind = path.resolve(), -1, ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = Path(fields[1].replace("\\040", " "))
        if resolved.is_relative_to(mount) and len(mount.parts) > best:
            best, kind = len(mount.parts), fields[2]
    return kind


def check_sqlite_path(url: URL, create: bool) -> Path:
    """The file of a SQLite store, whose folder is there and on a disk of this machine.

    Raises ConfigError for an in-memory database, StoreError for a missing file (unless `create`), a directory and
    a network file system.
    """
    path = sqlite_path(url)
    if path is None:
        raise ConfigError(
            "--db: an in-memory SQLite database cannot be shared; expected sqlite:///path/feedback.db"
        )
    if not path.exists():
        if not create:
            raise StoreError(f"there is no feedback store at {path}; `rlhf import` or `rlhf app` creates one")
        path.parent.mkdir(parents=True, exist_ok=True)
    elif path.is_dir():
        raise StoreError(f"{path} is a directory; expected a SQLite file")
    kind = file_system_of(path.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{path} lies on a network file system ({kind}), where SQLite loses data; "
            "use a local disk or --db postgresql://..."
        )
    return path


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        try:
            return create_engine(url, pool_size=10, max_overflow=20, pool_pre_ping=True)
        except (ImportError, NoSuchModuleError) as error:
            raise ConfigError(
                "PostgreSQL needs its driver; install the extra: rlhf-loop[postgres]"
            ) from error
    engine = create_engine(
        url,
        pool_size=16,
        max_overflow=32,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _on_sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    # The driver must not begin transactions by itself: `_on_sqlite_begin` says which kind is meant.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    # Without it INSERT OR REPLACE deletes rows past the triggers that refuse DELETE.
    cursor.execute("PRAGMA recursive_triggers = ON")
    cursor.execute("PRAGMA cache_size = -32000")
    cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    if not connection.get_execution_options().get("rlhf_write", False):
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite's own waiting polls ever more rarely, so that who comes late goes first: with 50 processes some waited
    # 10 s in vain. Here everybody draws a lot every few milliseconds, with equal chances.
    raw: Any = connection.connection.driver_connection
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    raw.execute("PRAGMA busy_timeout = 0")
    try:
        while time.monotonic() < deadline:
            try:
                raw.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break
            time.sleep(random.uniform(*LOTTERY_S))
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the error, as SQLAlchemy's callers know it
    finally:
        raw.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")


def _is_sqlite_busy(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


def _worth_retrying(error: DBAPIError) -> bool:
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        return False
    return getattr(original, "sqlstate", None) in RETRIED_SQLSTATES or (
        isinstance(error, IntegrityError) and getattr(original, "sqlstate", None) is None
    )
