"""The question that clients ask again and again: how is my job."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

from sqlalchemy import bindparam

from app.jobs.repository import shown
from app.jobs.tables import Run, UnlearnJob
from app.kit.driver import Prepared, Reads, columns


class JobView(NamedTuple):
    """What a `JobRow` holds, for reading alone: job and run have the attributes of their entities."""

    job: Any
    run: Any
    adapter: str
    position: int | None
    wait: float | None
    overdue: bool
    control: str | None


async def find(reads: Reads, tenant_id: str, job_id: str) -> JobView | None:
    """A tenant's job."""
    row = await reads.one(_BY_ID, tenant=tenant_id, id=job_id)
    if row is None:
        return None
    end = len(_JOB_COLUMNS) + len(_RUN_COLUMNS)
    return JobView(_Job._make(row[: len(_JOB_COLUMNS)]), _Run._make(row[len(_JOB_COLUMNS) : end]), *row[end:])


_JOB_COLUMNS, _RUN_COLUMNS = columns(UnlearnJob), columns(Run)
_Job = namedtuple("_Job", _JOB_COLUMNS)  # type: ignore[misc] # the fields are the table's
_Run = namedtuple("_Run", _RUN_COLUMNS)  # type: ignore[misc]
_BY_ID = Prepared(shown(*_JOB_COLUMNS.values(), *_RUN_COLUMNS.values()).where(UnlearnJob.id == bindparam("id")))
