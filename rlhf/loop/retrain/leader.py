"""One retrainer at a time: a lock that dies with its holder, and a token that outlives it.

On SQLite the lock is a file beside the database, on PostgreSQL an advisory lock of a connection of its own. Either can
be lost while its holder goes on (a connection breaks, a disk is mounted anew). So whoever takes the lock also counts
up a token in the database, and every step of a round checks in its own transaction that the token is still the
newest (Kleppmann, How to do distributed locking, 2016): a holder that was replaced cannot write any more.
"""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType

from filelock import FileLock, Timeout
from sqlalchemy import Connection, insert, select, text, update

from feedback_app.store.engine import Store, sqlite_path
from feedback_app.store.registry_schema import leaders
from rlhf.core.errors import BusyError, ConfigError

NAME = "retrain"
POSTGRES_LOCK = 0x72657472  # 'retr'
LOOK_S = 0.2
_TRY = text("SELECT pg_try_advisory_lock(:key)")


class Leader:
    """The right to retrain, held until the `with` block ends. token: greater than that of every leader before."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._file: FileLock | None = None
        self._connection: Connection | None = None
        self.holder = f"{socket.gethostname()} process {os.getpid()}"
        self.token = 0

    def __enter__(self) -> Leader:
        """Raises BusyError at once, saying who holds it, where somebody does."""
        self._lock()
        try:
            self.token = self._store.run(self._count_up)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.release()
        if self._connection is not None:
            # Not given back to the pool, where it would keep its lock.
            self._connection.invalidate()
            self._connection.close()

    def _lock(self) -> None:
        if self._store.dialect == "postgresql":
            self._connection = self._store.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if not self._connection.execute(_TRY, {"key": POSTGRES_LOCK}).scalar():
                self._connection.close()
                self._connection = None
                raise self._busy()
            return
        path = sqlite_path(self._store.engine.url)
        if path is None:
            raise ConfigError(
                "--db: retrain needs a database that other processes can see; found one in memory"
            )
        # `rlhf status` holds it for a moment to see whether somebody retrains.
        self._file = FileLock(f"{path}.retrain.lock", timeout=LOOK_S)
        try:
            self._file.acquire()
        except Timeout as error:
            raise self._busy() from error

    def _busy(self) -> BusyError:
        leading = current_leader(self._store)
        if leading is None:
            return BusyError("another process has just begun to retrain; it goes on, this one ends")
        holder, taken_at = leading
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(taken_at))
        return BusyError(f"{holder} has been retraining since {since}; it goes on, this one ends")

    def _count_up(self, connection: Connection) -> int:
        now = time.time()
        query = select(leaders.c.token).where(leaders.c.name == NAME).with_for_update()
        before = connection.execute(query).scalar()
        row = {"token": (before or 0) + 1, "holder": self.holder, "taken_at": now}
        if before is None:
            connection.execute(insert(leaders), row | {"name": NAME})
        else:
            connection.execute(update(leaders).where(leaders.c.name == NAME).values(row))
        return int(row["token"])

    def check(self, connection: Connection) -> None:
        """Refuse to write when another leader came after this one. Raises BusyError."""
        query = select(leaders.c.token, leaders.c.holder).where(leaders.c.name == NAME).with_for_update()
        row = connection.execute(query).one()
        if row.token != self.token:
            raise BusyError(
                f"{row.holder} has taken over (token {row.token}, this is {self.token}); it goes on"
            )


def current_leader(store: Store) -> tuple[str, float] | None:
    """(who took the lead last, when), whether or not they are still at it; None where nobody ever did."""
    with store.read() as connection:
        row = connection.execute(select(leaders).where(leaders.c.name == NAME)).first()
    return None if row is None else (row.holder, row.taken_at)


def is_led(store: Store) -> bool:
    """Whether somebody retrains at this moment."""
    if store.dialect == "postgresql":
        held = text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = :key AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        with store.read() as connection:
            return bool(connection.execute(held, {"key": POSTGRES_LOCK}).scalar())
    lock = FileLock(f"{sqlite_path(store.engine.url)}.retrain.lock", timeout=0)
    try:
        with lock:
            return False
    except Timeout:
        return True
