"""Errors as ``application/problem+json`` (RFC 9457), in one shape, without echoing what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from app.kit.logs import places

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20
TAG = "type"  # the field that tells the members of a union apart, in every request

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class FieldError:
    """One thing wrong with one field; `pointer` is a JSON Pointer (RFC 6901) into the request."""

    pointer: str
    detail: str


class Problem(Exception):
    """An answer other than success. Subclasses set the status and the stable code."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal_error"

    def __init__(
        self, detail: str, *, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors[:MAX_ERRORS])
        self.headers = dict(headers or {})
        # Members beyond our own (RFC 9457, section 3.2), for callers who read another shape.
        self.extensions: Mapping[str, Any] = {}


class Unauthenticated(Problem):
    """No valid credentials."""

    status, code = HTTPStatus.UNAUTHORIZED, "unauthenticated"


class Forbidden(Problem):
    """Valid credentials that do not allow this call."""

    status, code = HTTPStatus.FORBIDDEN, "forbidden"


class BadRequest(Problem):
    """The request cannot be read."""

    status, code = HTTPStatus.BAD_REQUEST, "bad_request"


class NotFound(Problem):
    """There is no such thing, or it belongs to somebody else."""

    status, code = HTTPStatus.NOT_FOUND, "not_found"


class Conflict(Problem):
    """The state of things does not allow it."""

    status, code = HTTPStatus.CONFLICT, "conflict"


class Gone(Problem):
    """It was there and is no longer handed out."""

    status, code = HTTPStatus.GONE, "gone"


class Invalid(Problem):
    """The request is understood and cannot be accepted."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request"


class TooLarge(Problem):
    """The body exceeds a limit."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large"


class RangeNotSatisfiable(Problem):
    """The range lies outside of what there is."""

    status, code = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "range_not_satisfiable"


class UnsupportedMediaType(Problem):
    """The body has a content type that this call does not take."""

    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"


class RateLimited(Problem):
    """Too many requests in a while."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "rate_limited"


class QuotaExceeded(Problem):
    """Too much at the same time."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "quota_exceeded"


class Unavailable(Problem):
    """A part of the service is down."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"


class ErrorItem(BaseModel):
    """One thing wrong with one field."""

    pointer: str
    detail: str


class ProblemDocument(BaseModel):
    """The shape of every error answer."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ErrorItem]


def invalid_fields(errors: Sequence[FieldError]) -> Invalid:
    """A 422 about one field or several, the first of which gives the detail."""
    first = errors[0]
    return Invalid(f"{first.pointer}: {first.detail}" if first.pointer else first.detail, errors=errors)


def invalid_field(pointer: str, detail: str) -> Invalid:
    """A 422 about a single field."""
    return invalid_fields([FieldError(pointer, detail)])


def responses(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """The error answers of an endpoint, for the OpenAPI document."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {int(status): {"description": status.phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Render the errors of `app` as problem documents. Crashes are the outermost middleware's (`on_crash`)."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_problem(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, Problem)  # noqa: S101 - the type under which it is registered
    return render(request, exc)


async def _on_validation_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)  # noqa: S101 - the type under which it is registered
    # The default answer carries `input`, which is personal data here: only place and reason are kept.
    errors = [_field_error(error, exc.body) for error in exc.errors()]
    return render(request, invalid_fields(errors))


async def _on_http_exception(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)  # noqa: S101 - the type under which it is registered
    if isinstance(exc.__cause__, Problem):
        # FastAPI wraps what is raised while it reads a body.
        return render(request, exc.__cause__)
    problem = Problem(str(exc.detail), headers=exc.headers)
    problem.status = HTTPStatus(exc.status_code)
    problem.code = problem.status.phrase.lower().replace(" ", "_").replace("-", "_")
    return render(request, problem)


def on_crash(request: Request, error: Exception) -> JSONResponse:
    """The answer when something broke. Type and places are logged; the text is not, since it may quote a record."""
    log.error(
        "request crashed",
        error=type(error).__name__,
        places=places(error),
        # The pattern, not the path: what a caller puts into a path may be anything.
        route=getattr(request.scope.get("route"), "path", "none"),
        request_id=request_id(request),
    )
    return render(request, Problem("something went wrong on our side; quote the request id when you report it"))


def render(request: Request, problem: Problem) -> JSONResponse:
    """The HTTP answer of a problem."""
    document = {
        # Where the service explains the code (app/problems).
        "type": f"/problems/{problem.code}",
        "title": title_of(problem.code),
        "status": int(problem.status),
        "detail": _sendable(problem.detail),
        "code": problem.code,
        "request_id": request_id(request),
        "errors": [
            {"pointer": _sendable(error.pointer), "detail": _sendable(error.detail)} for error in problem.errors
        ],
        **problem.extensions,
    }
    return JSONResponse(document, int(problem.status), headers=problem.headers, media_type=MEDIA_TYPE)


def title_of(code: str) -> str:
    """What a code says, in words: the same in every answer that carries it."""
    return code.replace("_", " ").capitalize()


def _sendable(text: str) -> str:
    """A name that a client made up may hold half a surrogate pair, which no answer can carry."""
    return text.encode(errors="replace").decode()


def request_id(request: Request) -> str:
    """The id that this request was given."""
    return str(getattr(request.state, "request_id", ""))


def _field_error(error: Mapping[str, Any], body: object) -> FieldError:
    """Where in the request an error is; query, path and header come as a first part."""
    source, *parts = error["loc"]
    if source != "body":
        return FieldError(_join([source, *parts]), str(error["msg"]))
    place = _place(parts, body, absent=error["type"] == "missing")
    if error["type"] != "union_tag_invalid":
        return FieldError(_join(place), str(error["msg"]))
    # pydantic's own message quotes what was sent.
    known = error["ctx"]["expected_tags"]
    if isinstance(_at(place, body), dict):
        return FieldError(_join([*place, TAG]), f"must be one of {known}")
    return FieldError(_join(place), f"must be an object whose {TAG} is one of {known}")


def _place(parts: Sequence[int | str], here: object, *, absent: bool) -> list[int | str]:
    """The parts of an error's place that are in the body: the others name the members of unions.

    A field may be called like a member of a union. Then the way that leads to the last part is right, or else the
    longer one.

    Args:
        absent: the last part is a field that is missing.
    """
    if not parts:
        return []
    part, rest = parts[0], parts[1:]
    skipped = _place(rest, here, absent=absent)
    if not _holds(here, part):
        return [part] if absent and not rest else skipped
    taken = [part, *_place(rest, here[part], absent=absent)]  # type: ignore[index] # `_holds` has looked
    return max(taken, skipped, key=lambda way: (way[-1:] == [parts[-1]], len(way)))


def _holds(here: object, part: int | str) -> bool:
    if isinstance(here, list):
        return isinstance(part, int) and part < len(here)
    return isinstance(here, dict) and part in here


def _at(place: Sequence[int | str], body: Any) -> object:  # noqa: ANN401 - any JSON value
    for part in place:
        body = body[part]
    return body


def _join(parts: Sequence[int | str]) -> str:
    return "".join("/" + str(part)[:200].replace("~", "~0").replace("/", "~1") for part in parts)
