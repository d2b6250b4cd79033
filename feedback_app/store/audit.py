"""The hash-chained audit log: who did what to accounts, data and exports.

Each row's hash covers the previous row's hash, so a row that was changed, removed or inserted behind the
triggers' back breaks the chain at that point. Ratings themselves are not listed here: `annotations` is
already append-only, and chaining every submit would serialise the raters.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from sqlalchemy import Connection, insert, select, text

from feedback_app.store.schema import audit_log

GENESIS = "0" * 64
POSTGRES_LOCK = 0x61756474


def append(connection: Connection, actor: str, action: str, subject: str = "", **details: Any) -> None:
    """Write one entry in the caller's transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRES_LOCK})
    last = connection.execute(
        select(audit_log.c.seq, audit_log.c.row_hash).order_by(audit_log.c.seq.desc()).limit(1)
    ).first()
    row = {
        "seq": last.seq + 1 if last else 1,
        "happened_at": round(time.time(), 6),
        "actor": actor,
        "action": action,
        "subject": subject,
        "details": details,
        "previous_hash": last.row_hash if last else GENESIS,
    }
    connection.execute(insert(audit_log), {**row, "row_hash": _hash(row)})


def first_broken(connection: Connection) -> int | None:
    """The sequence number at which the chain no longer holds, None when it is whole."""
    previous, expected_seq = GENESIS, 1
    for row in connection.execute(select(audit_log).order_by(audit_log.c.seq)).mappings():
        fields = {key: value for key, value in row.items() if key != "row_hash"}
        if row["seq"] != expected_seq or row["previous_hash"] != previous or row["row_hash"] != _hash(fields):
            return int(expected_seq)
        previous, expected_seq = row["row_hash"], expected_seq + 1
    return None


def _hash(row: dict[str, Any]) -> str:
    canonical = json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
