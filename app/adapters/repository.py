"""Queries on adapters and their versions."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters.tables import Adapter, AdapterVersion
from app.audit.record import append
from app.base_models.tables import BaseModelRow
from app.kit.db import on_rollback
from app.kit.pagination import newest_first, split_page


class AdapterRepository:
    """Adapters of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    # Built when they are asked for: a job is accepted without most of them.
    @property
    def _mine(self) -> Select[Adapter]:
        return select(Adapter).where(Adapter.tenant_id == self._tenant_id)

    @property
    def _versions(self) -> Select[AdapterVersion]:
        return select(AdapterVersion).where(AdapterVersion.tenant_id == self._tenant_id)

    @property
    def _bases(self) -> Select[str, str]:
        return select(BaseModelRow.id, BaseModelRow.name).where(BaseModelRow.tenant_id == self._tenant_id)

    async def by_name(self, name: str) -> Adapter | None:
        """The adapter of that name."""
        return await self._session.scalar(self._mine.where(Adapter.name == name))

    async def page(self, limit: int, cursor: str | None) -> tuple[list[Adapter], bool]:
        """One page of adapters, newest first, and whether more follow."""
        statement = newest_first(self._mine, Adapter.created_at, Adapter.id, limit, cursor)
        return split_page((await self._session.scalars(statement)).all(), limit)

    async def base_names(self, adapters: list[Adapter]) -> dict[str, str]:
        """Names of the adapters' base models by id."""
        ids = {adapter.base_model_id for adapter in adapters}
        rows = await self._session.execute(self._bases.where(BaseModelRow.id.in_(ids)))
        return {row.id: row.name for row in rows}

    async def version(self, adapter_id: str, number: int) -> AdapterVersion | None:
        """A version by number."""
        return await self._session.scalar(
            self._versions.where(AdapterVersion.adapter_id == adapter_id, AdapterVersion.number == number)
        )

    async def version_page(
        self, adapter_id: str, limit: int, cursor: str | None
    ) -> tuple[list[AdapterVersion], bool]:
        """One page of an adapter's versions, newest first, and whether more follow."""
        mine = self._versions.where(AdapterVersion.adapter_id == adapter_id)
        statement = newest_first(mine, AdapterVersion.created_at, AdapterVersion.id, limit, cursor)
        return split_page((await self._session.scalars(statement)).all(), limit)

    async def add(self, adapter: Adapter, version: AdapterVersion, undo: Callable[[], None]) -> None:
        """Store a new adapter with its first version; `undo` is called should the transaction fail.

        Raises:
            IntegrityError: the name is taken.
        """
        on_rollback(self._session, undo)
        self._session.add(adapter)
        await self._session.flush()
        self._session.add(version)
        await self._session.flush()
        data = {
            "base_model": adapter.base_model_id,
            "version": version.id,
            "number": version.number,
            "weights_sha256": version.weights_sha256,
            "archive_sha256": version.archive_sha256,
        }
        append(self._session.sync_session, self._tenant_id, "adapter.registered", "adapter", adapter.id, data)
