"""A job's events as they happen: Server-Sent Events (WHATWG HTML, section 9.2).

Whoever writes events of a job holds its run's row, so that their ids rise in the order in which they become visible
(app/jobs/transitions.py): reading on from the last id misses none and repeats none. Between two looks a stream holds
nothing of the database.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from psycopg import Error as DriverError
from sqlalchemy import and_, bindparam, select
from sqlalchemy.exc import SQLAlchemyError

from app.jobs.present import present_event
from app.jobs.schemas import EventRead
from app.jobs.tables import JobEvent, UnlearnJob
from app.jobs.transitions import FINAL
from app.kit.driver import Prepared, Reads
from app.kit.negotiation import EVENT_STREAM
from app.kit.stopping import server_is_stopping

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept"}
END = "end"
# Seconds: between two looks, the first while something happens; of silence before a comment; between two looks at
# whether the caller may still read.
SOONEST, LATEST = 0.5, 2.0
HEARTBEAT = 15.0
RECHECK = 30.0
# Milliseconds that a client is to wait before it comes back.
RETRY = 2000
BATCH = 100
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Followed:
    """The job that is followed, of a tenant."""

    reads: Reads
    tenant_id: str
    job_id: str


class News(NamedTuple):
    """What a look at a job has found: its status, and events after those that were known, at most `BATCH`."""

    status: str
    events: list[EventRead]

    @property
    def complete(self) -> bool:
        """Whether there were no more at that moment."""
        return len(self.events) < BATCH

    @property
    def over(self) -> bool:
        """Whether the job had ended and all of its events are known."""
        return self.complete and self.status in FINAL


async def news(job: Followed, after: int) -> News | None:
    """A job's status and its events after the one with that id, oldest first; None when there is no such job."""
    rows = await job.reads.rows(_NEWS, tenant=job.tenant_id, job=job.job_id, after=after)
    # A job without news is one row that holds no event.
    return News(rows[0].status, [present_event(row) for row in rows if row.id is not None]) if rows else None


def stream(job: Followed, after: int, allowed: Callable[[], Awaitable[bool]]) -> StreamingResponse:
    """The answer that follows a job from an event on until it has ended.

    Args:
        allowed: whether the caller may still read; asked every `RECHECK` seconds.
    """
    return StreamingResponse(_follow(job, after, allowed), media_type=EVENT_STREAM, headers=HEADERS)


async def _follow(job: Followed, after: int, allowed: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RETRY)
    try:
        async for message in _messages(job, after, allowed):
            yield message
    except (DriverError, SQLAlchemyError) as error:
        # The client comes back, and is told then.
        log.warning("event stream ended: database away", error=type(error).__name__)


async def _messages(job: Followed, after: int, allowed: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    heartbeat, recheck, pause = _Clock(HEARTBEAT), _Clock(RECHECK), SOONEST
    while not server_is_stopping() and (not recheck.struck() or await allowed()):
        found = await news(job, after)
        if found is None:
            return
        for event in found.events:
            after = event.id
            yield format_sse_event(id=str(event.id), event=event.type, data_str=event.model_dump_json())
        if found.over:
            yield format_sse_event(event=END, data_str=json.dumps({"job": job.job_id, "status": found.status}))
            return
        if found.events:
            heartbeat, pause = _Clock(HEARTBEAT), SOONEST
        elif heartbeat.struck():
            yield KEEPALIVE_COMMENT
        if found.complete:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LATEST)


class _Clock:
    """Strikes every so many seconds, for whoever looks."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._at = time.monotonic() + seconds

    def struck(self) -> bool:
        """Whether it has struck since the last look."""
        if time.monotonic() < self._at:
            return False
        self._at = time.monotonic() + self._seconds
        return True


_COLUMNS = [getattr(JobEvent, name) for name in EventRead.model_fields if name != "object"]
# One statement, and so one moment: an ended job is never seen without its last event.
_NEWS = Prepared(
    select(UnlearnJob.status, *_COLUMNS)
    .outerjoin(JobEvent, and_(JobEvent.job_id == UnlearnJob.id, JobEvent.id > bindparam("after")))
    .where(UnlearnJob.tenant_id == bindparam("tenant"), UnlearnJob.id == bindparam("job"))
    .order_by(JobEvent.id)
    .limit(BATCH)
)
