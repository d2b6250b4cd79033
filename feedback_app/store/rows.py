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

from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    CursorResult,
    Double,
    Integer,
    String,
    Table,
    TextClause,
    text,
)
from sqlalchemy.types import TypeEngine

# The ids come first in a CROSS JOIN, so that SQLite looks up each instead of walking the whole table.
_WANTED = {
    "sqlite": "(SELECT value AS id FROM json_each(:ids))",
    "postgresql": "(SELECT json_array_elements_text(CAST(:ids AS json)) AS id)",
}
_encoded = json.JSONEncoder().encode
# The array of each kind of column, as PostgreSQL names it; JSON travels as text.
_ARRAYS: dict[type[TypeEngine[Any]], str] = {
    String: "text",
    JSON: "text",
    Integer: "bigint",
    Double: "double precision",
    Boolean: "boolean",
}


def insert_rows(connection: Connection, table: Table, rows: Collection[dict[str, Any]]) -> None:
    """Insert rows that all have the columns of the first, in its order."""
    if not rows:
        return
    names = tuple(next(iter(rows)))
    json_places = tuple(i for i, name in enumerate(names) if isinstance(table.c[name].type, JSON))
    values = [_values(row, json_places) for row in rows]
    if connection.dialect.name == "postgresql":
        # One statement with a column of each in an array: a statement a row costs twice the time.
        connection.exec_driver_sql(_insert_arrays(table, names), tuple(map(list, zip(*values, strict=True))))
    else:
        connection.exec_driver_sql(_insert(table, names), values)


def look_up(connection: Connection, query: str, ids: Iterable[str]) -> Sequence[tuple[Any, ...]]:
    """The rows of a query in which `{wanted} w CROSS JOIN ...` stands for a table of these ids, `w.id`."""
    return run_for(connection, query, ids).tuples().all()


def run_for(connection: Connection, statement: str, ids: Iterable[str], **values: Any) -> CursorResult[Any]:
    """Any other statement in which `{wanted}` stands for a table of these ids."""
    return connection.execute(
        _with_ids(statement, connection.dialect.name), {"ids": json.dumps(sorted(ids)), **values}
    )


@lru_cache(maxsize=64)
def _insert(table: Table, names: tuple[str, ...]) -> str:
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


@lru_cache(maxsize=64)
def _insert_arrays(table: Table, names: tuple[str, ...]) -> str:
    columns = [table.c[name].type for name in names]
    arrays = [next(array for kind, array in _ARRAYS.items() if isinstance(c, kind)) for c in columns]
    given = ", ".join(f"%s::{array}[]" for array in arrays)
    taken = ", ".join(
        f"{name}::json" if isinstance(column, JSON) else name
        for name, column in zip(names, columns, strict=True)
    )
    listed = ", ".join(names)
    return f"INSERT INTO {table.name} ({listed}) SELECT {taken} FROM unnest({given}) AS given ({listed})"


def _values(row: dict[str, Any], json_places: tuple[int, ...]) -> tuple[Any, ...]:
    values = list(row.values())
    for place in json_places:
        if values[place] is not None:
            values[place] = _encoded(values[place])
    return tuple(values)


@lru_cache(maxsize=64)
def _with_ids(statement: str, dialect: str) -> TextClause:
    return text(statement.format(wanted=_WANTED[dialect]))
