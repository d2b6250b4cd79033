"""Writes that a client may repeat: the same `Idempotency-Key` gives the first answer again.

The answer is kept in the audit log, where every write of the API is written down anyway. Between two of one
person's requests with the same key the work may be done twice; that changes nothing, since what the API adds
is added by content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header, Request
from pydantic import BaseModel
from sqlalchemy import JSON, text

from feedback_app.accounts import Person
from feedback_app.rest.errors import Refused
from feedback_app.store import audit
from feedback_app.store.engine import Store

ACTION = "api.write"
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=8,
        max_length=128,
        pattern=r"^[\x21-\x7e]+$",
        description="made once per write; sending it again gives the first answer",
    ),
]
_KNOWN = text("SELECT details FROM audit_log WHERE subject = :subject AND action = :action").columns(
    details=JSON
)


def once(
    store: Store,
    person: Person,
    request: Request,
    key: str | None,
    body: BaseModel | str,
    act: Callable[[], dict[str, Any]],
    *,
    secret: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The result of `act`, or of the first request with this key. `secret` fields are never kept.

    The same key with another body is refused (409).
    """
    sent = body if isinstance(body, str) else body.model_dump_json()
    digest = hashlib.sha256(sent.encode("utf-8", "surrogatepass")).hexdigest()
    what = f"{request.method} {request.scope['route'].path}"
    subject = ""
    if key is not None:
        asked = json.dumps([person.annotator_id, request.method, request.url.path, key])
        subject = f"key-{hashlib.sha256(asked.encode()).hexdigest()}"
        with store.read() as connection:
            known = connection.execute(_KNOWN, {"subject": subject, "action": ACTION}).scalar()
        if known is not None:
            if known["body"] != digest:
                raise Refused(
                    409,
                    "this Idempotency-Key was used for another body",
                    where="header.Idempotency-Key",
                    expected="a new key for a new write",
                )
            return dict(known["result"])
    result = act()
    kept = {name: value for name, value in result.items() if name not in secret}
    kept |= dict.fromkeys(secret)
    details = (
        {"what": what, "body": digest, "result": kept} if key is not None else {"what": what, "body": digest}
    )
    store.run(lambda connection: audit.append(connection, person.annotator_id, ACTION, subject, **details))
    return result
