"""Pages: `limit` rows at a time, and a cursor that says where the next page begins.

A cursor holds the sort keys of the last row, so a page costs the same however far one has read, and rows that
are added meanwhile neither repeat nor push others off a page.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any

from fastapi import Query

from feedback_app.rest.errors import Refused

Limit = Annotated[int, Query(ge=1, le=500, description="rows on a page")]
Cursor = Annotated[str, Query(max_length=400, description="`next` of the page before; empty for the first")]


def after(cursor: str, kinds: tuple[type, ...], start: tuple[Any, ...]) -> tuple[Any, ...]:
    """The sort keys behind a cursor, `start` for the first page. A made-up cursor is refused."""
    if not cursor:
        return start
    try:
        keys = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise _unknown() from error
    fits = isinstance(keys, list) and len(keys) == len(kinds)
    if not fits or not all(type(k) is kind for k, kind in zip(keys, kinds, strict=True)):
        raise _unknown()
    if any(isinstance(k, str) and not k.isprintable() for k in keys):
        raise _unknown()
    return tuple(keys)


def cursor_of(*keys: Any) -> str:
    """The cursor after a row with these sort keys."""
    return base64.urlsafe_b64encode(json.dumps(keys).encode("ascii")).decode("ascii")


def page(rows: list[Any], limit: int, *names: str) -> tuple[list[Any], str | None]:
    """The rows of a page out of up to `limit` + 1, and the cursor of the next page if there is one."""
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], cursor_of(*(getattr(last, name) for name in names))


def _unknown() -> Refused:
    return Refused(422, "this cursor is not one of ours", where="query.cursor", expected="`next` of a page")
