"""Queries on the audit chain."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.chain import Head
from app.audit.tables import AuditEntry, AuditHead
from app.kit.pagination import split_page

# Entries that are held in memory at once when a whole chain is read.
BATCH = 1000


class AuditRepository:
    """The chain of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._mine = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id)

    async def page(
        self, limit: int, before: int | None, action: str | None, subject: str | None
    ) -> tuple[list[AuditEntry], bool]:
        """One page, newest first, and whether more follow; of one action, or about one subject's id."""
        statement = self._mine
        if before is not None:
            statement = statement.where(AuditEntry.sequence < before)
        if action is not None:
            statement = statement.where(AuditEntry.action == action)
        if subject is not None:
            statement = statement.where(AuditEntry.subject_id == subject)
        rows = await self._session.scalars(statement.order_by(AuditEntry.sequence.desc()).limit(limit + 1))
        return split_page(rows.all(), limit)

    async def batch(self, after: int) -> list[AuditEntry]:
        """The next entries in the order of the chain; none when there are no more."""
        statement = self._mine.where(AuditEntry.sequence > after).order_by(AuditEntry.sequence).limit(BATCH)
        rows = (await self._session.scalars(statement)).all()
        # A whole chain must not pile up in the session.
        self._session.expunge_all()
        return list(rows)

    async def head(self) -> Head | None:
        """The stored head; nothing when there never was an entry."""
        columns = select(AuditHead.sequence, AuditHead.hash).where(AuditHead.tenant_id == self._tenant_id)
        row = (await self._session.execute(columns)).one_or_none()
        return Head(row.sequence, row.hash) if row else None

    async def freeze(self) -> None:
        """Have all that follows in this transaction see the chain as it is now. Must come first."""
        await self._session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
