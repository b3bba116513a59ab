"""Queries on base models."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.record import append
from app.base_models.tables import BaseModelRow
from app.kit.pagination import newest_first, split_page


class BaseModelRepository:
    """Base models of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._mine = select(BaseModelRow).where(BaseModelRow.tenant_id == tenant_id)

    async def by_name(self, name: str) -> BaseModelRow | None:
        """The base model of that name."""
        return await self._session.scalar(self._mine.where(BaseModelRow.name == name))

    async def by_id(self, base_model_id: str) -> BaseModelRow | None:
        """The base model with that id."""
        return await self._session.scalar(self._mine.where(BaseModelRow.id == base_model_id))

    async def page(self, limit: int, cursor: str | None) -> tuple[list[BaseModelRow], bool]:
        """One page, newest first, and whether more follow."""
        statement = newest_first(self._mine, BaseModelRow.created_at, BaseModelRow.id, limit, cursor)
        return split_page((await self._session.scalars(statement)).all(), limit)

    async def add(self, row: BaseModelRow) -> None:
        """Store a new one. Raises IntegrityError when the name is taken."""
        self._session.add(row)
        await self._session.flush()
        data = {"digest": row.digest, "parameters": row.parameters}
        append(self._session.sync_session, self._tenant_id, "base_model.registered", "base_model", row.id, data)
