"""Thousands of rows into a table, or looked up by their ids, at the cost of the database driver.

SQLAlchemy builds the parameters of every row anew and writes out a list of ids as one parameter each: with
imports and exports that took longer than the database's own work. Here the text of an insert is made once per
table and columns, and ids travel as one JSON parameter.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import JSON, Connection, CursorResult, Table, TextClause, text

# The ids come first in a CROSS JOIN, so that SQLite looks up each instead of walking the whole table.
_WANTED = {
    "sqlite": "(SELECT value AS id FROM json_each(:ids))",
    "postgresql": "(SELECT json_array_elements_text(CAST(:ids AS json)) AS id)",
}
_encoded = json.JSONEncoder().encode
_MARKS = {"sqlite": "?", "postgresql": "%s"}


def insert_rows(connection: Connection, table: Table, rows: Collection[dict[str, Any]]) -> None:
    """Insert rows that all have the columns of the first, in its order."""
    if not rows:
        return
    names = tuple(next(iter(rows)))
    statement, json_places = _insert(table, names, connection.dialect.name)
    connection.exec_driver_sql(statement, [_values(row, json_places) for row in rows])


def look_up(connection: Connection, query: str, ids: Iterable[str]) -> Sequence[tuple[Any, ...]]:
    """The rows of a query in which `{wanted} w CROSS JOIN ...` stands for a table of these ids, `w.id`."""
    return run_for(connection, query, ids).tuples().all()


def run_for(connection: Connection, statement: str, ids: Iterable[str], **values: Any) -> CursorResult[Any]:
    """Any other statement in which `{wanted}` stands for a table of these ids."""
    return connection.execute(
        _with_ids(statement, connection.dialect.name), {"ids": json.dumps(sorted(ids)), **values}
    )


@lru_cache(maxsize=64)
def _insert(table: Table, names: tuple[str, ...], dialect: str) -> tuple[str, tuple[int, ...]]:
    marks = ", ".join([_MARKS[dialect]] * len(names))
    statement = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks})"
    return statement, tuple(i for i, name in enumerate(names) if isinstance(table.c[name].type, JSON))


def _values(row: dict[str, Any], json_places: tuple[int, ...]) -> tuple[Any, ...]:
    values = list(row.values())
    for place in json_places:
        if values[place] is not None:
            values[place] = _encoded(values[place])
    return tuple(values)


@lru_cache(maxsize=64)
def _with_ids(statement: str, dialect: str) -> TextClause:
    return text(statement.format(wanted=_WANTED[dialect]))
