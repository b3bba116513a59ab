"""Queries on aliases."""

from __future__ import annotations

from sqlalchemy import Row, Select, delete, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters.tables import Adapter, AdapterAlias, AdapterVersion
from app.audit.record import append
from app.kit.ids import new_id
from app.kit.pagination import newest_first, split_page

AliasRow = Row[AdapterAlias, AdapterVersion]


class AliasRepository:
    """Aliases of one tenant's adapters."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def _mine(self, adapter: Adapter) -> Select[AdapterAlias, AdapterVersion]:
        return (
            select(AdapterAlias, AdapterVersion)
            .join(AdapterVersion, AdapterVersion.id == AdapterAlias.version_id)
            .where(AdapterAlias.tenant_id == self._tenant_id, AdapterAlias.adapter_id == adapter.id)
            .execution_options(populate_existing=True)
        )

    async def by_name(self, adapter: Adapter, name: str) -> AliasRow | None:
        """An alias with the version that it points at."""
        return (await self._session.execute(self._mine(adapter).where(AdapterAlias.name == name))).one_or_none()

    async def page(self, adapter: Adapter, limit: int, cursor: str | None) -> tuple[list[AliasRow], bool]:
        """One page of an adapter's aliases, newest first, and whether more follow."""
        statement = newest_first(self._mine(adapter), AdapterAlias.created_at, AdapterAlias.id, limit, cursor)
        return split_page((await self._session.execute(statement)).all(), limit)

    async def point(self, adapter: Adapter, name: str, version: AdapterVersion, before: AliasRow | None) -> None:
        """Make an alias, or move the one of that name."""
        fresh = postgresql.insert(AdapterAlias).values(
            id=new_id("al"),
            tenant_id=self._tenant_id,
            adapter_id=adapter.id,
            version_id=version.id,
            name=name,
        )
        moved = fresh.on_conflict_do_update(
            index_elements=[AdapterAlias.adapter_id, AdapterAlias.name],
            set_={"version_id": version.id, "updated_at": func.now()},
        )
        alias_id = await self._session.scalar(moved.returning(AdapterAlias.id))
        # By its id: the name is the caller's.
        data = {"alias": alias_id, "number": version.number, "before": before[1].number if before else None}
        append(self._session.sync_session, self._tenant_id, "adapter.alias_set", "adapter", adapter.id, data)

    async def remove(self, adapter: Adapter, alias: AdapterAlias) -> None:
        """Take an alias away."""
        await self._session.execute(delete(AdapterAlias).where(AdapterAlias.id == alias.id))
        data = {"alias": alias.id}
        append(self._session.sync_session, self._tenant_id, "adapter.alias_removed", "adapter", adapter.id, data)
