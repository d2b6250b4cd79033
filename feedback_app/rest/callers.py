"""Who calls, and whether they may: role and scope, asked for in every handler.

A session may do what its person's role may. A token may do that within its scopes: `read` for looking,
`write` for changing work, `admin` for accounts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from feedback_app.accounts import Person
from feedback_app.rest.errors import Refused
from feedback_app.security import BEARER, PERSON
from feedback_app.tokens import Bearer, Scope

LEADS = ("lead", "admin")
EVERYBODY = ("annotator", "lead", "admin")


def allowed(scope: Scope, roles: tuple[str, ...]) -> Callable[[Request], Person]:
    """A dependency that gives the person who calls, or refuses them."""

    def caller(request: Request) -> Person:
        person, bearer = request.scope.get(PERSON), request.scope.get(BEARER)
        if not isinstance(person, Person):
            raise Refused(401, "log in first", expected="a session or 'Authorization: Bearer TOKEN'")
        if person.role not in roles:
            raise Refused(403, f"this is not for the role '{person.role}'", expected=" or ".join(roles))
        if isinstance(bearer, Bearer) and scope not in bearer.scopes:
            raise Refused(403, f"this token has no scope '{scope}'", expected=f"a token of scope '{scope}'")
        return person

    return caller


Reader = Annotated[Person, Depends(allowed("read", LEADS))]
Writer = Annotated[Person, Depends(allowed("write", LEADS))]
Admin = Annotated[Person, Depends(allowed("admin", ("admin",)))]
Anybody = Annotated[Person, Depends(allowed("read", EVERYBODY))]
