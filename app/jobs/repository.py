"""Queries on jobs, runs and events."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Executable, Row, Select, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningUpdate

from app import outbox
from app.adapters.tables import Adapter, AdapterVersion
from app.audit.actions import Action
from app.audit.record import append
from app.evaluations.tables import EvaluationRow
from app.jobs.estimate import EarlierRun
from app.jobs.tables import HEARTBEAT_AGE, JobEvent, Run, UnlearnJob, WorkerHeartbeat
from app.kit.pagination import newest_first, split_page

JobRow = Row[UnlearnJob, Run, str, int | None, str | None]


class JobRepository:
    """Jobs of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def _jobs(self) -> Select[UnlearnJob, Run, str, int | None, str | None]:
        """Job, run, adapter's name, place in the queue, and the control as name@version."""
        ahead = aliased(Run)
        # Counts runs of all tenants, since they share the workers; only the number leaves the service.
        position = (
            select(func.count() + 1)
            .where(ahead.status == "queued", tuple_(ahead.created_at, ahead.id) < tuple_(Run.created_at, Run.id))
            .scalar_subquery()
        )
        of_control = aliased(Adapter)
        control = (
            select(func.concat(of_control.name, "@", AdapterVersion.number))
            .select_from(AdapterVersion)
            .join(of_control, of_control.id == AdapterVersion.adapter_id)
            .where(AdapterVersion.id == UnlearnJob.control_version_id)
            .correlate(UnlearnJob)
            .scalar_subquery()
        )
        return (
            select(UnlearnJob, Run, Adapter.name, position, control)
            .join(Run, Run.id == UnlearnJob.run_id)
            .join(Adapter, Adapter.id == UnlearnJob.adapter_id)
            .where(UnlearnJob.tenant_id == self._tenant_id)
            .execution_options(populate_existing=True)
        )

    async def by_id(self, job_id: str) -> JobRow | None:
        """A job with its run."""
        return (await self._session.execute(self._jobs().where(UnlearnJob.id == job_id))).one_or_none()

    async def live(self, most: int) -> int:
        """How many jobs are queued or running, counted up to `most`."""
        live = UnlearnJob.status.in_(("queued", "running"))
        some = select(UnlearnJob.id).where(UnlearnJob.tenant_id == self._tenant_id, live).limit(most)
        return await self._session.scalar(select(func.count()).select_from(some.subquery())) or 0

    async def by_idempotency_key(self, key: str) -> UnlearnJob | None:
        """The job that was made under this key."""
        return await self._session.scalar(
            select(UnlearnJob).where(UnlearnJob.tenant_id == self._tenant_id, UnlearnJob.idempotency_key == key)
        )

    async def page(self, limit: int, cursor: str | None, filters: dict[str, str]) -> tuple[list[JobRow], bool]:
        """One page, newest first, and whether more follow. Filters: status, adapter, subject_request_id."""
        columns: dict[str, Any] = {
            "status": UnlearnJob.status,
            "adapter": Adapter.name,
            "subject_request_id": UnlearnJob.subject_request_id,
        }
        statement = self._jobs().where(*(columns[name] == value for name, value in filters.items()))
        statement = newest_first(statement, UnlearnJob.created_at, UnlearnJob.id, limit, cursor)
        return split_page((await self._session.execute(statement)).all(), limit)

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
        """Runs of an adapter that are queued or running."""
        active = Run.status.in_(("queued", "running"))
        statement = select(func.count()).where(Run.tenant_id == self._tenant_id, Run.adapter_id == adapter_id, active)
        return (await self._session.scalars(statement)).one()

    async def add(self, run: Run, job: UnlearnJob) -> None:
        """Store a new job with its run. Raises IntegrityError when its idempotency key is taken."""
        self._session.add(run)
        await self._session.flush()
        self._session.add(job)
        await self._session.flush()

    async def change(self, transition: ReturningUpdate[Run]) -> bool:
        """Apply a transition of app.jobs.transitions; tells whether the run was in the state that it expects."""
        return (await self._session.scalars(transition)).one_or_none() is not None

    def record(self, action: Action, job_id: str, **data: object) -> None:
        """Have the audit chain say so once the transaction commits."""
        append(self._session.sync_session, self._tenant_id, action, "unlearn_job", job_id, data)

    async def execute(self, *statements: Executable) -> None:
        """Run statements that follow a transition, in its transaction."""
        for statement in statements:
            await self._session.execute(statement)
