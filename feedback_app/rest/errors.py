"""Errors of the API: what was found, where, and what was expected, always in the same form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rlhf.core.errors import BusyError, DataError, RlhfError
from rlhf.core.validation import one_line


class Problem(BaseModel):
    """What is wrong (`detail`), where (a field, a path; '' for the request as a whole), and what is expected."""

    detail: str
    where: str = ""
    expected: str = ""


class Refused(Exception):
    """A request that a handler turns down."""

    def __init__(self, status: int, detail: str, *, where: str = "", expected: str = "") -> None:
        super().__init__(detail)
        self.status, self.problem = status, Problem(detail=detail, where=where, expected=expected)


def missing(what: str, name: str) -> Refused:
    """404 for a thing that is named in the address."""
    return Refused(404, f"there is no {what} '{name}'", where="path")


STATUSES: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the body is not JSON"},
    401: {"model": Problem, "description": "nobody is signed in, or the token does not work"},
    403: {"model": Problem, "description": "the role, the scope or the origin does not allow it"},
    404: {"model": Problem, "description": "what the address names is not there"},
    409: {"model": Problem, "description": "it contradicts what is there"},
    413: {"model": Problem, "description": "the body is too large"},
    422: {"model": Problem, "description": "a value cannot be used"},
    503: {"model": Problem, "description": "the store is busy; try again"},
}


def install(app: FastAPI) -> None:
    """Answer every error in the form of `Problem`."""

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> JSONResponse:
        return _answer(error.status, error.problem)

    @app.exception_handler(RlhfError)
    def store_refused(request: Request, error: RlhfError) -> JSONResponse:
        status = 422 if isinstance(error, DataError) else 503 if isinstance(error, BusyError) else 409
        return _answer(status, Problem(detail=_text(str(error))))

    @app.exception_handler(RequestValidationError)
    def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(_text(str(part)) for part in first["loc"])
        if first["type"] == "json_invalid":
            return _answer(400, Problem(detail="the body is not JSON", where=where, expected="JSON"))
        return _answer(422, Problem(detail=_text(str(first["msg"])), where=where))

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return _answer(error.status_code, Problem(detail=str(error.detail)), error.headers)


def _answer(status: int, problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(problem.model_dump(), status, headers=dict(headers or {}))


def _text(value: str) -> str:
    """One line that any JSON can hold: a client's text may be half a character."""
    return one_line(value.encode("utf-8", "replace").decode())
