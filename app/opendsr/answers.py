"""How OpenDSR answers: signed bodies, and refusals in the specification's error shape."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from app.auth.guard import GuardedRoute
from app.kit.certificates import Credentials
from app.kit.problems import BadRequest, FieldError, Problem, invalid_fields
from app.opendsr.schemas import SpecError, SpecErrorItem, SubjectRequest

# Statuses that the specification knows only as 400.
_REFUSALS = {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.CONFLICT}


def signature_headers(credentials: Credentials, body: bytes) -> dict[str, str]:
    """The headers by which a receiver knows who speaks. It verifies the bytes before it reads them."""
    return {"X-OpenDSR-Processor-Domain": credentials.domain, "X-OpenDSR-Signature": credentials.sign(body)}


def signed(document: BaseModel, credentials: Credentials, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """An answer whose very bytes are signed. Nobody on the way may keep it: it may hold what was sent."""
    body = document.model_dump_json().encode()
    headers = signature_headers(credentials, body) | {"Cache-Control": "no-store"}
    return Response(body, int(status), headers=headers, media_type="application/json")


def read_request(body: bytes) -> SubjectRequest:
    """Read the body of a request. Raises Invalid, which names places and quotes nothing."""
    try:
        return SubjectRequest.model_validate_json(body)
    except ValidationError as error:
        items = error.errors(include_input=False, include_url=False, include_context=False)
        raise invalid_fields([_field_error(item) for item in items]) from None


class OpenDsrRoute(GuardedRoute):
    """A route whose refusals are the specification's 400, with its error object beside the problem's own members."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The guarded handler, with refusals put into the specification's words."""
        handler = super().get_route_handler()

        async def speaking(request: Request) -> Response:
            try:
                return await handler(request)
            except Problem as problem:
                raise _in_their_words(problem) from None

        return speaking


def _in_their_words(problem: Problem) -> Problem:
    if problem.status in _REFUSALS:
        problem = BadRequest(problem.detail, errors=problem.errors, headers=problem.headers)
    items = [
        SpecErrorItem(domain="Validation", reason=problem.code, message=f"{error.pointer}: {error.detail}")
        for error in problem.errors
    ]
    error = SpecError(code=int(problem.status), message=problem.detail, errors=items)
    problem.extensions = {"error": error.model_dump()}
    return problem


def _field_error(item: Mapping[str, Any]) -> FieldError:
    place = item["loc"]
    if item["type"] == "extra_forbidden":
        # A name that we do not know may itself be personal data.
        return FieldError(_pointer(place[:-1]), "holds a field that the specification does not have")
    if item["type"] == "json_invalid":
        return FieldError("", "the body is not valid JSON")
    return FieldError(_pointer(place), str(item["msg"]))


def _pointer(place: tuple[int | str, ...]) -> str:
    return "".join(f"/{part}" for part in place)
