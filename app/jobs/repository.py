"""Queries on jobs, runs and events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Executable, Row, Select, and_, bindparam, case, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import SQLCoreOperations

from app import outbox
from app.adapters.tables import Adapter, AdapterVersion
from app.audit.actions import Action
from app.audit.record import append
from app.evaluations.tables import EvaluationRow
from app.jobs import listing, transitions
from app.jobs.estimate import EarlierRun
from app.jobs.filters import JobFilters
from app.jobs.tables import HEARTBEAT_AGE, LIVE, JobEvent, Run, UnlearnJob, WorkerHeartbeat
from app.kit.pagination import split_page

JobRow = Row[UnlearnJob, Run, str, int | None, float | None, bool, str | None]
# A place in the queue is counted up to here: what is beyond says "far", and costs no more than this.
QUEUE_COUNTED = 100
# Runs of the tenant whose mean duration tells how long a queued one will wait.
_MEASURED_RUNS = 20


def shown(*columns: Any) -> Select[*tuple[Any, ...]]:  # noqa: ANN401 - entities or columns
    """These of jobs and their runs, then adapter's name, place in the queue, seconds until its end, overdue, control.

    The control is shown as name@version. The tenant is the bound value `tenant`.
    """
    queued = UnlearnJob.status == "queued"
    place = place_in_queue(Run.created_at, Run.id)
    of_control = aliased(Adapter)
    control = (
        select(func.concat(of_control.name, "@", AdapterVersion.number))
        .select_from(AdapterVersion)
        .join(of_control, of_control.id == AdapterVersion.adapter_id)
        .where(AdapterVersion.id == UnlearnJob.control_version_id)
        .correlate(UnlearnJob)
        .scalar_subquery()
    )
    # Postgres computes the branches of CASE for the rows that need them alone.
    about = {
        "adapter": Adapter.name,
        "position": case((queued, place)),
        "wait": case((queued, seconds_until_end(place))),
        "overdue": transitions.overdue(),
        "control": case((UnlearnJob.control_version_id.is_not(None), control)),
    }
    return (
        select(*columns, *(column.label(name) for name, column in about.items()))
        .select_from(UnlearnJob)
        .join(Run, Run.id == UnlearnJob.run_id)
        .join(Adapter, Adapter.id == UnlearnJob.adapter_id)
        .where(UnlearnJob.tenant_id == bindparam("tenant"))
    )


def place_in_queue(created_at: SQLCoreOperations[datetime], run_id: SQLCoreOperations[str]) -> ColumnElement[int]:
    """1 for the run that is next, at most one more than `QUEUE_COUNTED`; of the run that came then."""
    ahead = aliased(Run)
    # Runs of all tenants, since they share the workers; only the number leaves the service.
    counted = (
        select(ahead.id)
        .where(ahead.status == "queued", tuple_(ahead.created_at, ahead.id) < tuple_(created_at, run_id))
        .correlate(Run)
        .limit(QUEUE_COUNTED)
        .subquery()
    )
    return select(func.count() + 1).select_from(counted).scalar_subquery()


def seconds_until_end(place: ColumnElement[int]) -> ColumnElement[float]:
    """Seconds until a queued run will have ended; null while no worker lives or nothing was measured."""
    measured = (
        select((Run.finished_at - Run.started_at).label("took"))
        .where(Run.tenant_id == bindparam("tenant"), Run.status.in_(("succeeded", "gate_failed")))
        .order_by(Run.finished_at.desc())
        .limit(_MEASURED_RUNS)
        .subquery()
    )
    mean = select(func.avg(func.extract("epoch", measured.c.took))).scalar_subquery()
    alive = and_(WorkerHeartbeat.queue == outbox.GPU_QUEUE, WorkerHeartbeat.seen_at > func.now() - HEARTBEAT_AGE)
    workers = select(func.nullif(func.count(), 0)).where(alive).scalar_subquery()
    return mean * func.ceil(place / (workers * 1.0))


def of_request(tenant_id: Any, adapter_id: Any, subject_request_id: Any) -> Select[str]:  # noqa: ANN401 - values or SQL
    """The job that a person's request has on an adapter, live or succeeded."""
    return select(UnlearnJob.id).where(
        UnlearnJob.tenant_id == tenant_id,
        UnlearnJob.adapter_id == adapter_id,
        UnlearnJob.subject_request_id == subject_request_id,
        UnlearnJob.status.in_((*LIVE, "succeeded")),
    )


class JobRepository:
    """Jobs of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def by_id(self, job_id: str) -> JobRow | None:
        """A job with its run."""
        values = {"tenant": self._tenant_id, "id": job_id}
        return (await self._session.execute(_BY_ID, values)).one_or_none()

    async def live(self, most: int) -> int:
        """How many jobs have not ended, counted up to `most`."""
        some = (
            select(UnlearnJob.id)
            .where(UnlearnJob.tenant_id == self._tenant_id, UnlearnJob.status.in_(LIVE))
            .limit(most)
        )
        return await self._session.scalar(select(func.count()).select_from(some.subquery())) or 0

    async def of_request(self, adapter_id: str, subject_request_id: str) -> str | None:
        """The id of the job that a person's request has on an adapter, live or succeeded."""
        return await self._session.scalar(of_request(self._tenant_id, adapter_id, subject_request_id))

    async def page(self, limit: int, cursor: str | None, filters: JobFilters) -> tuple[list[JobRow], bool]:
        """One page, newest first, and whether more follow. Raises Invalid for a cursor that is none."""
        page = listing.page_ids(self._tenant_id, filters, limit, cursor)
        statement = _JOBS.join(page, page.c.id == UnlearnJob.id).order_by(page.c.at.desc(), page.c.id.desc())
        return split_page((await self._session.execute(statement, {"tenant": self._tenant_id})).all(), limit)

    async def events(self, job_id: str, limit: int, before: int | None) -> tuple[list[JobEvent], bool]:
        """One page of a job's events, newest first, and whether more follow."""
        statement = select(JobEvent).where(JobEvent.tenant_id == self._tenant_id, JobEvent.job_id == job_id)
        if before is not None:
            statement = statement.where(JobEvent.id < before)
        rows = (await self._session.scalars(statement.order_by(JobEvent.id.desc()).limit(limit + 1))).all()
        return split_page(rows, limit)

    async def evaluation(self, run_id: str) -> EvaluationRow | None:
        """The newest evaluation of a run."""
        return await self._session.scalar(
            select(EvaluationRow)
            .where(EvaluationRow.tenant_id == self._tenant_id, EvaluationRow.run_id == run_id)
            .order_by(EvaluationRow.attempt.desc())
            .limit(1)
        )

    async def earlier_runs(self, base_model_id: str) -> list[EarlierRun]:
        """What the newest evaluated runs on a base model took, twenty at most."""
        document = EvaluationRow.document
        statement = (
            select(document["durations"], document["method"], document["tries"], document["training"]["steps"])
            .join(Run, Run.id == EvaluationRow.run_id)
            .join(Adapter, Adapter.id == Run.adapter_id)
            .where(
                EvaluationRow.tenant_id == self._tenant_id,
                Adapter.base_model_id == base_model_id,
                document.has_key("durations"),
            )
            .order_by(EvaluationRow.created_at.desc())
            .limit(20)
        )
        rows = (await self._session.execute(statement)).all()
        return [
            EarlierRun.of(durations, method, sum(each["steps"] for each in tries or ()) or steps or 0)
            for durations, method, tries, steps in rows
        ]

    async def live_gpu_workers(self) -> int:
        """Workers of the GPU queue that were alive a moment ago."""
        recent = WorkerHeartbeat.seen_at > func.now() - HEARTBEAT_AGE
        statement = select(func.count()).where(WorkerHeartbeat.queue == outbox.GPU_QUEUE, recent)
        return (await self._session.scalars(statement)).one()

    async def active_runs(self, adapter_id: str) -> int:
        """Runs of an adapter that have not ended."""
        active = Run.status.in_(LIVE)
        statement = select(func.count()).where(Run.tenant_id == self._tenant_id, Run.adapter_id == adapter_id, active)
        return (await self._session.scalars(statement)).one()

    async def change(self, transition: ReturningUpdate[Run] | ReturningUpdate[str]) -> bool:
        """Apply a transition of app.jobs.transitions; tells whether the row was in the state that it expects."""
        return (await self._session.scalars(transition)).one_or_none() is not None

    async def revive(self, follow: Select[str, str]) -> bool:
        """Have ended jobs follow their run back. False when their person's request has another job by now."""
        try:
            await self._session.execute(follow)
        except IntegrityError:
            return False
        return True

    def record(self, action: Action, job_id: str, **data: object) -> None:
        """Have the audit chain say so once the transaction commits."""
        append(self._session.sync_session, self._tenant_id, action, "unlearn_job", job_id, data)

    async def execute(self, *statements: Executable) -> None:
        """Run statements that follow a transition, in its transaction."""
        for statement in statements:
            await self._session.execute(statement)


# Built once: that takes longer than asking.
_JOBS = shown(UnlearnJob, Run).execution_options(populate_existing=True)
_BY_ID = _JOBS.where(UnlearnJob.id == bindparam("id"))
