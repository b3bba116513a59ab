"""The life of a run: every change of status, as one guarded statement each.

API, worker and reaper all go through this module. A statement names the status that it expects and, where a worker
writes, the attempt (fencing token) that it holds; when a row comes back the change happened, when none does somebody
else was first and the caller has to stop. Times are the database's, so that clocks of machines do not matter.

    awaiting_approval ──approve──> queued         awaiting_approval ──deny, cancel──> cancelled
    queued ──claim──> running ──finish──> succeeded | gate_failed | failed | cancelled
      ^                  │
      └──hand back, lost─┘              queued ──cancel──> cancelled
    gate_failed | failed | cancelled ──retry──> queued | awaiting_approval

Whoever adds events to a job has locked its run's row before, by a change of the run or with `lock`: so the ids of a
job's events rise in the order in which they are committed, and whoever reads on from an id misses none.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Insert, Select, and_, exists, func, insert, select, update
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningUpdate

from app.jobs.tables import LIVE, UNSUCCESSFUL, JobEvent, Run, UnlearnJob
from app.webhooks import events as webhooks

FinalStatus = Literal["succeeded", "gate_failed", "failed", "cancelled"]
Level = Literal["info", "warn", "error"]
Kind = Literal["message", "metrics", "status", "job.due_soon", "job.overdue"]
Decision = Literal["approved", "denied"]
FINAL = ("succeeded", *UNSUCCESSFUL)
NOW = func.now()  # the database's, for whoever adds a time to a transition
# A queued run's message is published again after this long, then after twice as long each time, up to five minutes:
# the broker may have lost it, and a message too many does no harm.
FIRST_REPUBLISH = timedelta(seconds=60)
MAX_REPUBLISH = timedelta(minutes=5)


def claim(run_id: str, worker: str, lease: timedelta) -> ReturningUpdate[Run]:
    """Take a queued run. Nothing comes back when it is not queued or its adapter has another active run."""
    other = aliased(Run)
    busy = exists().where(other.adapter_id == Run.adapter_id, other.status == "running")
    return (
        update(Run)
        .where(Run.id == run_id, Run.status == "queued", Run.cancel_requested_at.is_(None), ~busy)
        .values(
            status="running",
            attempt=Run.attempt + 1,
            worker=worker,
            lease_until=func.now() + lease,
            phase="preparing",
            step=0,
            total_steps=None,
            percent=0.0,
            eta_seconds=None,
            started_at=func.coalesce(Run.started_at, func.now()),
        )
        .returning(Run)
    )


def held(run_id: str, attempt: int) -> Any:  # noqa: ANN401 - a SQL condition
    """The condition under which a worker may write: the run is running and its attempt is the worker's."""
    return and_(Run.id == run_id, Run.attempt == attempt, Run.status == "running")


def renew(run_id: str, attempt: int, lease: timedelta) -> ReturningUpdate[bool]:
    """Extend the lease; tells whether cancelling was asked for. Nothing comes back to a fenced worker."""
    return (
        update(Run)
        .where(held(run_id, attempt))
        .values(lease_until=func.now() + lease)
        .returning(Run.cancel_requested_at.is_not(None))
    )


def progress(run_id: str, attempt: int, **values: object) -> ReturningUpdate[bool]:
    """Write phase and progress; tells whether cancelling was asked for. Nothing comes back to a fenced worker."""
    return update(Run).where(held(run_id, attempt)).values(**values).returning(Run.cancel_requested_at.is_not(None))


def finish(run_id: str, attempt: int, status: FinalStatus, **values: object) -> ReturningUpdate[Run]:
    """End a run that this worker holds."""
    ended: dict[str, Any] = {
        "status": status,
        "lease_until": None,
        "phase": None,
        "eta_seconds": None,
        "finished_at": func.now(),
    }
    if status == "succeeded":
        ended["percent"] = 100.0
    return update(Run).where(held(run_id, attempt)).values(**ended, **values).returning(Run)


def hand_back(run_id: str, attempt: int) -> ReturningUpdate[Run]:
    """Put a run back into the queue on behalf of the worker that holds it."""
    return update(Run).where(held(run_id, attempt)).values(**_queued()).returning(Run)


def expired() -> Any:  # noqa: ANN401 - a SQL condition
    """The condition that a run's worker is gone."""
    return and_(Run.status == "running", Run.lease_until < func.now())


def requeue_lost(run_id: str) -> ReturningUpdate[Run]:
    """Put a run back whose lease is over."""
    return (
        update(Run)
        .where(Run.id == run_id, expired())
        .values(**_queued(), lost_workers=Run.lost_workers + 1)
        .returning(Run)
    )


def end_lost(run_id: str, status: Literal["failed", "cancelled"]) -> ReturningUpdate[Run]:
    """End a run whose lease is over."""
    return (
        update(Run)
        .where(Run.id == run_id, expired())
        .values(status=status, lease_until=None, phase=None, eta_seconds=None, finished_at=func.now())
        .returning(Run)
    )


def cancel_queued(run_id: str) -> ReturningUpdate[Run]:
    """End a run that no worker has."""
    return (
        update(Run)
        .where(Run.id == run_id, Run.status.in_(("queued", "awaiting_approval")))
        .values(status="cancelled", cancel_requested_at=func.now(), phase=None, finished_at=func.now())
        .returning(Run)
    )


def request_cancel(run_id: str) -> ReturningUpdate[Run]:
    """Ask the worker that has a run to stop; it reads this at its next step."""
    return (
        update(Run)
        .where(Run.id == run_id, Run.status == "running")
        .values(cancel_requested_at=func.coalesce(Run.cancel_requested_at, func.now()))
        .returning(Run)
    )


def approve(run_id: str) -> ReturningUpdate[Run]:
    """Queue a run that waited for approval."""
    return update(Run).where(Run.id == run_id, Run.status == "awaiting_approval").values(**_queued()).returning(Run)


def deny(run_id: str) -> ReturningUpdate[Run]:
    """End a run that waited for approval."""
    return (
        update(Run)
        .where(Run.id == run_id, Run.status == "awaiting_approval")
        .values(status="cancelled", finished_at=func.now())
        .returning(Run)
    )


def retry(run_id: str, *, approved: bool = True) -> ReturningUpdate[Run]:
    """Queue a run again that ended without success. Its attempts go on counting: the token never falls.

    Args:
        approved: nobody has to be asked; otherwise the run waits for approval first.
    """
    again = _queued() if approved else {**_queued(), "status": "awaiting_approval"}
    return (
        update(Run)
        .where(Run.id == run_id, Run.status.in_(UNSUCCESSFUL))
        .values(**again, lost_workers=0, cancel_requested_at=None, started_at=None, finished_at=None)
        .returning(Run)
    )


def extend(job_id: str, due_at: datetime, reason: str) -> ReturningUpdate[str]:
    """Move a job's deadline, once, before it has passed. Both deadlines are warned of again."""
    return (
        update(UnlearnJob)
        .where(
            UnlearnJob.id == job_id,
            UnlearnJob.extended_at.is_(None),
            UnlearnJob.due_at >= func.now(),
            UnlearnJob.status.not_in(("succeeded", "cancelled")),
        )
        .values(
            original_due_at=UnlearnJob.due_at,
            due_at=due_at,
            extended_at=func.now(),
            extension_reason=reason,
            due_soon_noted_at=None,
        )
        .returning(UnlearnJob.id)
    )


def overdue() -> ColumnElement[bool]:
    """The condition that a job has not ended and its deadline has passed."""
    return and_(UnlearnJob.status.in_(LIVE), UnlearnJob.due_at < func.now())


def note_due_soon(job_id: str, before: timedelta) -> ReturningUpdate[str]:
    """Note that a live job's deadline is near; nothing comes back when that was noted, or the deadline has passed."""
    return (
        update(UnlearnJob)
        .where(UnlearnJob.id == job_id, due_soon(before))
        .values(due_soon_noted_at=func.now())
        .returning(UnlearnJob.id)
    )


def due_soon(before: timedelta) -> ColumnElement[bool]:
    """The condition that a live job's deadline is near, which nobody has noted yet."""
    near = and_(UnlearnJob.due_at >= func.now(), UnlearnJob.due_at < func.now() + before)
    unnoted = and_(UnlearnJob.due_soon_noted_at.is_(None), UnlearnJob.overdue_noted_at.is_(None))
    return and_(UnlearnJob.status.in_(LIVE), near, unnoted)


def note_overdue(job_id: str) -> ReturningUpdate[str]:
    """Note that a live job's deadline has passed; nothing comes back when that was noted."""
    return (
        update(UnlearnJob)
        .where(UnlearnJob.id == job_id, UnlearnJob.overdue_noted_at.is_(None), overdue())
        .values(overdue_noted_at=func.now())
        .returning(UnlearnJob.id)
    )


def lock(run_id: str) -> Select[str]:
    """Lock a run's row, as a change of the run would."""
    return select(Run.id).where(Run.id == run_id).with_for_update()


def follow(run_id: str, status: str, **values: object) -> Select[str, str]:
    """Give the jobs of a run the run's new status, and have webhooks tell it; returns their ids and tenants."""
    ended = {"finished_at": func.now()} if status in FINAL else {"finished_at": None}
    changed = (
        update(UnlearnJob)
        .where(UnlearnJob.run_id == run_id)
        .values(status=status, **ended, **values)
        .returning(UnlearnJob.id, UnlearnJob.tenant_id)
        .cte("changed")
    )
    followed = select(changed.c.id, changed.c.tenant_id)
    event = webhooks.of_status(status)
    return followed if event is None else followed.add_cte(webhooks.along(event, changed))


def republished(run_id: str) -> ReturningUpdate[int]:
    """Note that a queued run's message was published once more; answers how often that was."""
    wait = func.least(FIRST_REPUBLISH * func.power(2, func.least(Run.publish_count + 1, 20)), MAX_REPUBLISH)
    return (
        update(Run)
        .where(Run.id == run_id, Run.status == "queued")
        .values(publish_count=Run.publish_count + 1, publish_after=func.now() + wait)
        .returning(Run.publish_count)
    )


def event(
    job_id: str,
    tenant_id: str,
    message: str,
    *,
    level: Level = "info",
    kind: Kind = "message",
    data: dict[str, Any] | None = None,
) -> Insert:
    """A line in a job's history. Only ids, numbers and words of our own."""
    return insert(JobEvent).values(
        job_id=job_id, tenant_id=tenant_id, message=message, level=level, type=kind, data=data or {}
    )


def _queued() -> dict[str, Any]:
    return {
        "status": "queued",
        "lease_until": None,
        "worker": None,
        "phase": None,
        "eta_seconds": None,
        "step": 0,
        "total_steps": None,
        "percent": 0.0,
        "source_version": None,
        "publish_count": 0,
        "publish_after": func.now() + FIRST_REPUBLISH,
    }
