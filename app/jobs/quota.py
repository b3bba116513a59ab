"""How many jobs a tenant may have queued or running at the same time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.dependencies import SessionDep, tenant_of
from app.jobs.repository import JobRepository
from app.kit.problems import QuotaExceeded

# Counting costs more the more there is to count. Far from the limit it is enough to count once in a while.
FAR, COUNT_SECONDS = 0.9, 1.0
RETRY_AFTER = "30"


@dataclass
class _Count:
    jobs: int
    at: float


class JobQuota:
    """The quota of every tenant, as one process sees it. Requests that arrive together may exceed it a little."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[str, _Count] = {}

    async def take(self, jobs: JobRepository, tenant_id: str) -> None:
        """Count one more job of a tenant. Raises QuotaExceeded where there are as many as there may be."""
        count = self._counts.get(tenant_id)
        now = time.monotonic()
        if count is None or now - count.at > COUNT_SECONDS or count.jobs >= self._most * FAR:
            count = self._counts[tenant_id] = _Count(await jobs.live(self._most), now)
        if count.jobs >= self._most:
            detail = f"the tenant has {self._most} jobs that are queued or running; wait for some to end"
            raise QuotaExceeded(detail, headers={"Retry-After": RETRY_AFTER})
        count.jobs += 1


class TenantQuota:
    """The quota of one tenant, for a request that brings a job into the queue."""

    def __init__(self, quota: JobQuota, jobs: JobRepository, tenant_id: str) -> None:
        self._quota = quota
        self._jobs = jobs
        self._tenant_id = tenant_id

    async def take(self) -> None:
        """Count one more job. Raises QuotaExceeded."""
        await self._quota.take(self._jobs, self._tenant_id)


async def tenant_quota(request: Request, session: SessionDep) -> TenantQuota:
    """The quota of the caller's tenant."""
    tenant = await tenant_of(request)
    return TenantQuota(request.app.state.job_quota, JobRepository(session, tenant), tenant)


QuotaDep = Annotated[TenantQuota, Depends(tenant_quota)]


async def within_quota(quota: QuotaDep) -> None:
    """A dependency of what brings jobs into the queue. Raises QuotaExceeded."""
    await quota.take()
