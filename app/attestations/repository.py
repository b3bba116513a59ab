"""Queries on attestations."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.attestations.tables import Attestation


class AttestationRepository:
    """Attestations of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._mine = select(Attestation).where(Attestation.tenant_id == tenant_id)

    async def by_job(self, job_id: str) -> Attestation | None:
        """The attestation of a job's release."""
        return await self._session.scalar(self._mine.where(Attestation.job_id == job_id))
