"""Storing an accepted job with all that belongs to it, in one statement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import CTE, Table, Text, bindparam, insert, literal, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app import outbox
from app.jobs.grounds import Moment
from app.jobs.lookup import JobView, view
from app.jobs.tables import JobEvent, OutboxMessage, Run, UnlearnJob
from app.kit.db import Base
from app.kit.driver import Asked, Prepared


async def store(session: AsyncSession, job: Mapping[str, Any]) -> Asked:
    """Store a new job with its run, its first event and, unless it waits for approval, the message to the workers.

    Waits for another transaction that stores a job for the same person's request. No row comes back when the person's
    request has a job on the adapter by now, or another job begins the adapter.

    Args:
        job: a value for each column of `_GIVEN`.
    """
    message = "accepted; waits for approval" if job["status"] == "awaiting_approval" else "accepted"
    values = {f"job_{name}": value for name, value in job.items()}
    return await _STORE.ask(session, **values, message=message)


def shown(job: Mapping[str, Any], moment: Moment, *, adapter: str, control: str | None) -> JobView:
    """A job that `store` has stored, as it is shown; `adapter` and `control` are names."""
    waits = job["status"] == "awaiting_approval"
    at, position, wait = moment
    of_job = {name: value for name, value in job.items() if name != "metadata"}
    of_run = {**_NEW_RUN, "id": job["run_id"], **{name: job[name] for name in _SHARED}}
    return view(
        {**of_job, "labels": job["metadata"], "created_at": at},
        {**of_run, "created_at": at},
        adapter,
        None if waits else position,
        None if waits else wait,
        job["due_at"] < at,
        control,
    )


def _store() -> Prepared:
    jobs = _table(UnlearnJob)
    given = {name: bindparam(f"job_{name}", type_=jobs.c[name].type) for name in _GIVEN}
    shared = {name: given[name] for name in _SHARED}
    run = insert(_table(Run)).values(id=given["run_id"], **shared, **_NEW_RUN).cte("run")
    # Nothing comes back, and nothing that follows is stored, where a unique index says that there is such a job.
    new = postgresql.insert(jobs).values(given).on_conflict_do_nothing()
    job = new.returning(jobs.c.id, jobs.c.tenant_id, jobs.c.run_id, jobs.c.status).cte("job")
    return Prepared(select(job.c.id).add_cte(run, _first_event(job), _message(job)))


def _first_event(job: CTE) -> CTE:
    row = {
        "job_id": job.c.id,
        "tenant_id": job.c.tenant_id,
        "level": literal("info", Text),
        "type": literal("status", Text),
        "message": bindparam("message", type_=Text),
        "data": literal({}, JSONB),
    }
    return insert(_table(JobEvent)).from_select(list(row), select(*row.values())).cte("told")


def _message(job: CTE) -> CTE:
    row = {"task": literal(outbox.RUN_TASK, Text), "queue": literal(outbox.GPU_QUEUE, Text), "argument": job.c.run_id}
    approved = select(*row.values()).where(job.c.status == "queued")
    return insert(_table(OutboxMessage)).from_select(list(row), approved).cte("sent")


def _table(entity: type[Base]) -> Table:
    # Of an entity the session makes an insert of its own.
    return cast(Table, entity.__table__)


# What the request decides of a job, and what its run has of it.
_GIVEN = (
    "id",
    "tenant_id",
    "adapter_id",
    "run_id",
    "status",
    "forget_set_id",
    "retain_set_id",
    "holdout_set_id",
    "control_version_id",
    "method",
    "policy",
    "statistics",
    "costs",
    "fresh_lora",
    "seed",
    "subject_request_id",
    "callback_url",
    "requested_at",
    "due_at",
    "metadata",
    "submitted_by",
)
_SHARED = ("tenant_id", "adapter_id", "status")
_NEW_RUN = {"attempt": 0, "lost_workers": 0, "publish_count": 0, "step": 0, "percent": 0.0}
_STORE = _store()
