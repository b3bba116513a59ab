"""``/problems``: the pages at which the ``type`` of every error points. Anybody may read them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from app.kit.negotiation import HTML, wants
from app.kit.problems import NotFound, responses
from app.problems.codes import CODES, Code
from app.problems.page import HEADERS, page

router = APIRouter(prefix="/problems", tags=["problems"])


class ProblemKind(BaseModel):
    """What a code means and what to do about it."""

    object: Literal["problem_kind"] = "problem_kind"
    code: str
    title: str
    status: int | None
    of_jobs: bool
    meaning: str
    remedy: str


class ProblemKinds(BaseModel):
    """Every code."""

    object: Literal["list"] = "list"
    data: list[ProblemKind]
    has_more: bool = False
    next_cursor: str | None = None


@router.get("", operation_id="list_problem_kinds")
async def list_all() -> ProblemKinds:
    """Every code that an error may carry, those of failed jobs included."""
    return ProblemKinds(data=[_present(code) for code in CODES.values()])


@router.get(
    "/{code}",
    operation_id="get_problem_kind",
    response_model=ProblemKind,
    responses={200: {"content": {HTML: {"schema": {"type": "string"}}}}, **responses(HTTPStatus.NOT_FOUND)},
)
async def get(code: str, request: Request, response: Response) -> ProblemKind | Response:
    """What an error code means and what to do about it: JSON, or a page with `Accept: text/html`."""
    found = CODES.get(code)
    if found is None:
        raise NotFound("there is no such code; GET /problems lists them")
    if wants(request, HTML):
        return HTMLResponse(page(found), headers=HEADERS)
    response.headers["Vary"] = HEADERS["Vary"]
    return _present(found)


def _present(code: Code) -> ProblemKind:
    return ProblemKind(
        code=code.code,
        title=code.title,
        status=code.status,
        of_jobs=code.of_jobs,
        meaning=code.meaning,
        remedy=code.remedy,
    )
