"""Queries on requests of data subjects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters.tables import Adapter
from app.audit.actions import Action
from app.audit.record import append
from app.jobs.tables import UnlearnJob
from app.kit.ids import new_id
from app.opendsr.tables import OpenDsrCallback, OpenDsrJob, OpenDsrRequest

JobRow = Row[UnlearnJob, str]


class OpenDsrRepository:
    """Requests of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def reserve(self, **values: Any) -> bool:  # noqa: ANN401 - columns
        """Store a new request. False when its subject_request_id is taken, by a request that is committed by now."""
        statement = insert(OpenDsrRequest).values(tenant_id=self._tenant_id, **values)
        statement = statement.on_conflict_do_nothing(index_elements=["tenant_id", "subject_request_id"])
        return (await self._session.execute(statement.returning(OpenDsrRequest.id))).one_or_none() is not None

    async def by_subject_request_id(self, subject_request_id: str) -> OpenDsrRequest | None:
        """The request with the id that its controller gave it."""
        return await self._session.scalar(
            select(OpenDsrRequest).where(
                OpenDsrRequest.tenant_id == self._tenant_id, OpenDsrRequest.subject_request_id == subject_request_id
            )
        )

    async def jobs(self, request_id: str) -> Sequence[JobRow]:
        """The jobs of a request as they are now, with their adapters' names."""
        statement = jobs_of(self._tenant_id, request_id).execution_options(populate_existing=True)
        return (await self._session.execute(statement)).all()

    async def link(self, request_id: str, job_id: str) -> None:
        """Note that a job works on a request."""
        self._session.add(OpenDsrJob(request_id=request_id, job_id=job_id, tenant_id=self._tenant_id))
        await self._session.flush()

    async def add_callbacks(self, request_id: str, urls: Iterable[str]) -> None:
        """Have these told whenever the status of a request changes."""
        for url in urls:
            self._session.add(
                OpenDsrCallback(id=new_id("dsc"), tenant_id=self._tenant_id, request_id=request_id, url=url)
            )
        await self._session.flush()

    def record(self, action: Action, request_id: str, **data: object) -> None:
        """Have the audit chain say so once the transaction commits."""
        append(self._session.sync_session, self._tenant_id, action, "opendsr_request", request_id, data)


def jobs_of(tenant_id: str, request_id: str) -> Select[UnlearnJob, str]:
    """The jobs of a request, with their adapters' names."""
    return (
        select(UnlearnJob, Adapter.name)
        .join(OpenDsrJob, OpenDsrJob.job_id == UnlearnJob.id)
        .join(Adapter, Adapter.id == UnlearnJob.adapter_id)
        .where(OpenDsrJob.tenant_id == tenant_id, OpenDsrJob.request_id == request_id)
        .order_by(Adapter.name)
    )
