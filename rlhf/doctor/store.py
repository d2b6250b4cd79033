"""The feedback store: reachable, of this version's schema, writable. Looks only: no migration, no file is made."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

from feedback_app.store import migrate
from feedback_app.store.engine import check_sqlite_path, parse_url, shown_url, sqlite_path
from rlhf.core.errors import RlhfError
from rlhf.core.validation import one_line
from rlhf.doctor.check import Check

GROUP, NAME = "Feedback store", "store"
CONNECT_TIMEOUT_S = 10


def store_check(url: str) -> Check:
    """One line about the store behind a URL."""
    try:
        parsed = parse_url(url)
        shown = shown_url(parsed)
        path = sqlite_path(parsed)
        if path is None and importlib.util.find_spec("psycopg") is None and "postgresql" in shown:
            advice = 'pip install "rlhf-loop[postgres]"'
            return Check(GROUP, NAME, "broken", f"{shown}: psycopg is missing", advice)
        if path is not None and not path.exists():
            return Check(
                GROUP, NAME, "absent", f"{shown}: not there yet", "`rlhf import` or `rlhf app` makes it"
            )
        if parsed.get_backend_name() == "sqlite":
            check_sqlite_path(parsed, create=False)
            arguments: dict[str, int] = {"timeout": CONNECT_TIMEOUT_S}
        else:
            arguments = {"connect_timeout": CONNECT_TIMEOUT_S}
        engine = create_engine(parsed, connect_args=arguments, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                return _look(connection, shown, path)
        finally:
            engine.dispose()
    except RlhfError as error:
        return Check(GROUP, NAME, "broken", str(error), "give the right --db")
    except DBAPIError as error:
        advice = "see that the server runs and that address, name and password are right"
        if "sqlite" in url:
            advice = (
                "see that the file is a store and that you may read and write it (see also `rlhf restore`)"
            )
        return Check(GROUP, NAME, "broken", f"{shown}: {one_line(str(error.orig))}", advice)


def _look(connection: Connection, shown: str, path: Path | None) -> Check:
    revision = migrate.current_revision(connection)
    if path is not None:
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if verdict != "ok":
            advice = "bring a backup back with `rlhf restore`"
            return Check(GROUP, NAME, "broken", f"{shown}: damaged ({one_line(str(verdict))})", advice)
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # refused where one may not write
        connection.exec_driver_sql("ROLLBACK")
    elif connection.execute(text("SHOW transaction_read_only")).scalar() == "on":
        return Check(GROUP, NAME, "broken", f"{shown}: may only be read", "connect to the primary server")
    if revision is None:
        return Check(GROUP, NAME, "note", f"{shown}: empty", "`rlhf import` or `rlhf app` makes its tables")
    if revision not in migrate.KNOWN_REVISIONS:
        found = f"{shown}: schema '{revision}', newer than this version (it knows '{migrate.HEAD}')"
        return Check(GROUP, NAME, "broken", found, "update rlhf-loop")
    if revision != migrate.HEAD:
        advice = "the next command that opens it brings it up to date (a SQLite file is copied first)"
        return Check(
            GROUP, NAME, "note", f"{shown}: schema '{revision}', older than '{migrate.HEAD}'", advice
        )
    return Check(GROUP, NAME, "ok", f"{shown}: schema '{revision}', writable")
