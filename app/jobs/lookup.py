"""The question that clients ask again and again: how is my job."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
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


def view(
    job: Mapping[str, Any],
    run: Mapping[str, Any],
    adapter: str,
    position: int | None,
    wait: float | None,
    overdue: bool,
    control: str | None,
) -> JobView:
    """The same of a job that was just stored; columns that are not given are null."""
    whole_job, whole_run = (_Job(**_NO_JOB | dict(job)), _Run(**_NO_RUN | dict(run)))
    return JobView(whole_job, whole_run, adapter, position, wait, overdue, control)


_JOB_COLUMNS, _RUN_COLUMNS = columns(UnlearnJob), columns(Run)
_Job = namedtuple("_Job", _JOB_COLUMNS)  # type: ignore[misc] # the fields are the table's
_Run = namedtuple("_Run", _RUN_COLUMNS)  # type: ignore[misc]
_NO_JOB, _NO_RUN = dict.fromkeys(_JOB_COLUMNS), dict.fromkeys(_RUN_COLUMNS)
_BY_ID = Prepared(shown(*_JOB_COLUMNS.values(), *_RUN_COLUMNS.values()).where(UnlearnJob.id == bindparam("id")))
