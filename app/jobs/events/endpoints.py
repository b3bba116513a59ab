"""``/unlearn-jobs/{job_id}/events``: a list, or a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response

from app.auth.authentication import still_allowed
from app.auth.guard import GuardedRoute
from app.auth.scopes import Scope
from app.dependencies import ReadsDep, SessionDep, TenantDep, requires
from app.jobs import lookup
from app.jobs.events.following import Followed, news, stream
from app.jobs.events.places import StreamPlaces
from app.jobs.present import present_event
from app.jobs.repository import JobRepository
from app.jobs.schemas import EventRead
from app.jobs.service import no_such_job
from app.kit.negotiation import EVENT_STREAM, wants
from app.kit.pagination import Cursor, Limit, Page
from app.kit.problems import invalid_field, responses

router = APIRouter(prefix="/unlearn-jobs", tags=["unlearn jobs"], route_class=GuardedRoute)
SCOPES: tuple[Scope, ...] = ("jobs:read",)
EXAMPLE = """\
retry: 2000

event: status
data: {"object":"unlearn_job.event","id":1042,"created_at":"2026-01-31T12:00:00Z","level":"info","type":"status",\
"message":"succeeded","data":{}}
id: 1042

event: end
data: {"job": "job_9c8d7e6f5a4b3c2d1e0f9a8b", "status": "succeeded"}

"""
LastEventId = Annotated[
    str | None,
    Header(pattern=r"^[0-9]{1,18}$", description="Of a stream: the `id` of the last event that came."),
]


async def stream_wanted(request: Request, tenant: TenantDep) -> AsyncIterator[bool]:
    """Whether a stream is asked for. It keeps its place until its answer has ended. Raises QuotaExceeded."""
    if not wants(request, EVENT_STREAM):
        yield False
        return
    places: StreamPlaces = request.app.state.stream_places
    with places.place(tenant):
        yield True


async def job_of(job_id: str, reads: ReadsDep, tenant: TenantDep) -> Followed:
    """The job in a path."""
    return Followed(reads, tenant, job_id)


@router.get(
    "/{job_id}/events",
    dependencies=[requires(*SCOPES)],
    operation_id="list_unlearn_job_events",
    response_model=Page[EventRead],
    responses={
        200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}, "example": EXAMPLE}}},
        204: {"description": "To a stream that is resumed: the job has ended and nothing has come since."},
        **responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND),
    },
)
async def events(
    request: Request,
    response: Response,
    job: Annotated[Followed, Depends(job_of)],
    streamed: Annotated[bool, Depends(stream_wanted)],
    session: SessionDep,
    limit: Limit = 20,
    cursor: Cursor = None,
    last_event_id: LastEventId = None,
) -> Page[EventRead] | Response:
    """What happened to a job, newest first.

    `Accept: text/event-stream` asks for a stream: every event from the first on, or from the one after
    `Last-Event-ID`, then each as it happens, until the job has ended. `limit` and `cursor` are of the list alone.
    """
    if streamed:
        return await _stream(request, job, last_event_id)
    if await lookup.find(job.reads, job.tenant_id, job.job_id) is None:
        raise no_such_job()
    response.headers["Vary"] = "Accept"
    rows, more = await JobRepository(session, job.tenant_id).events(job.job_id, limit, _before(cursor))
    following = str(rows[-1].id) if more else None
    return Page(data=[present_event(row) for row in rows], has_more=more, next_cursor=following)


async def _stream(request: Request, job: Followed, last_event_id: str | None) -> Response:
    after = int(last_event_id or 0)
    found = await news(job, after)
    if found is None:
        raise no_such_job()
    if last_event_id is not None and found.over and not found.events:
        # Browsers' own client comes back after every end but this one.
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return stream(job, after, partial(still_allowed, request, SCOPES))


def _before(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise invalid_field("/query/cursor", "not a cursor of this list; leave it out to start over")
    return int(cursor)
